"""Prompts with query tokens at static places: left padding puts everything after them at the end.
"""
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab import config as config_lib

# As in the release, inside the checkpoint's chat template.
ROBOT = ('Your task is {instruction}. Infer the temporal dynamics from frames {actions} and '
         'produce the corresponding policy actions {e_actions}.')
VIDEO = 'Your task is {instruction}. Infer the temporal dynamics of future frames {actions}.'
_PIECES = re.compile(r'\{(instruction|actions|e_actions|images)\}')


class Queries(NamedTuple):
  """The learned query tokens.

  Attributes:
    latent: ids of `<|action_i|>`, one a transition, G - 1 of them.
    per_transition: K, copies of each: the same id, told apart by their place alone.
    embodied: id of `<|embodied_action|>`.
    num_embodied: M, copies of it.
    images: ids that stand where the images do; empty for a trunk that has none in its prompt.
  """
  latent: Sequence[int]
  per_transition: int
  embodied: int
  num_embodied: int
  images: Sequence[int] = ()


class Places(NamedTuple):
  """Static positions of the query tokens in a padded prompt.

  Attributes:
    latent: (G - 1) K of them.
    embodied: M; none in a prompt for video.
  """
  latent: tuple[int, ...]
  embodied: tuple[int, ...]


def build(template, instructions, encode: Callable[[str], Sequence[int]], queries, *, length,
          pad=0):
  """Token ids of prompts.

  What stands between two insertions of queries and images is encoded in one piece, the instruction
  with the template around it: tokenizers join over such borders.

  Args:
    template: text with {instruction} and {actions}, perhaps {e_actions} and {images}.
    instructions: N texts.
    encode: text -> ids.
    queries: Queries.
    length: L of all prompts; shorter ones are padded at the left.
    pad: id of padding.

  Returns:
    (tokens int32 [N, L], mask bool [N, L], Places).

  Raises:
    ConfigError: a template without its places, in another order, or a prompt longer than L.
  """
  parts = _PIECES.split(template)
  names = parts[1::2]
  known = [name for name in ('instruction', 'actions', 'e_actions') if name in names]
  config_lib.require(
      'actions' in names and [name for name in names if name != 'images'] == known,
      'prompt', '{instruction}, {actions} and {e_actions} at most once and in this order', template)
  latent = [i for i in queries.latent for _ in range(queries.per_transition)]
  inserted = {'actions': latent, 'e_actions': [queries.embodied] * queries.num_embodied,
              'images': list(queries.images), 'end': []}
  tokens, mask = np.full((len(instructions), length), pad, np.int32), np.zeros(
      (len(instructions), length), bool)
  places = Places((), ())
  for row, instruction in enumerate(instructions):
    ids, starts, text = [], {}, ''
    for i, part in enumerate([*parts, 'end']):
      if i % 2 == 0 or part == 'instruction':
        text += instruction if i % 2 else part
        continue
      ids += list(encode(text)) if text else []
      starts[part], text = len(ids), ''
      ids += inserted[part]
    config_lib.require(len(ids) <= length, 'prompt.length', f'at least {len(ids)} for '
                       f'{instruction!r}', length)
    first = length - len(ids)
    tokens[row, first:], mask[row, first:] = ids, True
    at = lambda name: tuple(range(first + starts[name],
                                  first + starts[name] + len(inserted[name])))
    places = Places(at('actions'), at('e_actions') if 'e_actions' in starts else ())
  return tokens, mask, places


def word_encoder(words):
  """(encode, V): ids 1, 2, ... of known words, for small trunks; 0 is padding.

  `encode` raises ConfigError for a word that is not known.
  """
  ids = {word: i + 1 for i, word in enumerate(words)}
  encode = lambda text: [config_lib.choose(word, ids, 'prompt') for word in text.lower().split()]
  return encode, len(ids) + 1
