"""The white-box defence: boundary tokens that no text can spell, and training examples with them.

BIPIA (arXiv 2312.14197), section on the white-box defence.
"""
import re

import jax.numpy as jnp
import numpy as np

from jaxlab.config import require
from jaxlab.data import chat
from jaxlab.systems.bipia.defences import END, SPACED, START, Marker

VICUNA_SYSTEM = ('A chat between a curious user and an artificial intelligence assistant. The '
                 "assistant gives helpful, detailed, and polite answers to the user's questions. ")
IGNORED = -100  # label of a token that is not learned
MARKERS = (START, END)
_VICUNA_END = '</s>'
_EXAMPLES = {'example_user': 'user', 'example_assistant': 'assistant'}  # OpenAI's named turns


def grow(params, rows=2):
  """Adds rows to a decoder's vocabulary, each the mean of its matrix's own rows.

  Args:
    params: of a `DecoderLM`, tied or not, in either layout of the layers.
    rows: how many.

  Returns:
    New params; logits of the old ids are what they were.
  """
  def widen(matrix, axis):
    mean = jnp.mean(jnp.asarray(matrix, jnp.float32), axis=axis, keepdims=True)
    mean = jnp.repeat(mean, rows, axis=axis).astype(matrix.dtype)
    return jnp.concatenate([jnp.asarray(matrix), mean], axis=axis)

  grown = {**params, 'embed': {'embedding': widen(params['embed']['embedding'], 0)}}
  if 'lm_head' in params:
    grown['lm_head'] = {'kernel': widen(params['lm_head']['kernel'], 1)}
  return grown


class Coder:
  """From pieces of a prompt to ids, so that boundary ids come from `Marker` pieces alone.

  Args:
    encode: text -> list of ids, without special tokens added.
    decode: list of ids -> text.
    markers: (id of START, id of END), or None for a model without.
    bos: ids that every prompt begins with.
    eos: id that ends a response.
    pad: id of the padding.
    template: Jinja source of the chat template with its variables bound, messages -> text, or None
      for Vicuna's.
  """

  def __init__(self, encode, decode, *, markers=None, bos=(), eos=0, pad=0, template=None):
    self._encode, self.decode = encode, decode
    self.markers, self.bos, self.eos, self.pad = markers, tuple(bos), eos, pad
    self.template = template

  def ids(self, pieces):
    """The ids of pieces, texts and Markers, each encoded alone and joined.

    Raises:
      ConfigError: a Marker for a model without boundary tokens.
    """
    ids = []
    for piece in pieces:
      if isinstance(piece, Marker):
        require(self.markers is not None, 'defence', 'a model with boundary tokens', 'none')
        ids.append(self.markers[MARKERS.index(piece)])
      else:
        ids += self.text_ids(piece)
    return ids

  def text_ids(self, text):
    """The ids of a text that is not trusted: none of them is a boundary token's.

    A tokenizer to which the tokens were added reads their spelling as the tokens. So the spelling
    is cut after its first character, and what still is a boundary id has no place in a text.
    """
    ids = []
    for part in re.split('(?<=<)(?=data>|/data>)', text):
      ids += self._encode(part) if part else []
    banned = set(self.markers or ())
    require(not banned.intersection(ids), 'text', 'no boundary token in a text', text[:80])
    return ids

  def prompt(self, messages):
    """The ids of a chat that a response continues."""
    return [*self.bos, *self.ids(self.pieces(messages))]

  def pieces(self, messages):
    """Texts and Markers of a chat, in order, by the template.

    Vicuna's serves where there is none. Around boundary tokens its pieces are those of the training
    examples; without them, or with the official evaluation's, a text is as long as can be.

    Raises:
      ConfigError: a second system turn for Vicuna.
    """
    template = self.template
    if template is None:
      messages = vicuna_turns(messages)
      if any(isinstance(piece, Marker) and piece in MARKERS
             for turn in messages for piece in as_pieces(turn['content'])):
        return vicuna_pieces(messages)
      template = lambda turns: chat.render_chat(turns, chat.VICUNA, eos_token=_VICUNA_END)
    # The template sees a stand-in for each content, so that no content can imitate one, and is cut
    # there again. A stand-in that occurs in a content is lengthened.
    contents = [as_pieces(turn['content']) for turn in messages]
    stand_in = '\uf8ff'
    while any(stand_in in piece for content in contents for piece in content):
      stand_in += '\uf8ff'
    names = [f'{stand_in}{i}{stand_in}' for i in range(len(messages))]
    text = template([{**turn, 'content': name} for turn, name in zip(messages, names)])
    pieces = []
    for part in re.split(f'({stand_in}[0-9]+{stand_in})', text):
      pieces += contents[names.index(part)] if part in names else [part] if part else []
    return _joined(_unspaced(pieces))


def as_pieces(content):
  """A message's content as a list of texts and Markers."""
  return [content] if isinstance(content, str) else list(content)


def as_text(content):
  """A message's content as one string, Markers spelled out: for records, never for a model."""
  return ''.join(as_pieces(content))


def _unspaced(pieces):
  """The pieces, the blanks of spaced Markers as texts of their own."""
  for piece in pieces:
    if isinstance(piece, Marker) and piece in SPACED:
      yield from (' ', MARKERS[SPACED.index(piece)], ' ')
    else:
      yield piece


def _joined(pieces):
  """Neighbouring texts as one, as the whole text would have been tokenised."""
  joined = []
  for piece in pieces:
    if joined and not isinstance(piece, Marker) and not isinstance(joined[-1], Marker):
      joined[-1] += piece
    else:
      joined.append(piece)
  return joined


def vicuna_turns(messages):
  """The messages in Vicuna's roles: examples in named system turns are turns of user and assistant.

  Raises:
    ConfigError: a system turn that is not the first, for which Vicuna has no place.
  """
  turns = [{**turn, 'role': _EXAMPLES.get(turn.get('name'), turn['role'])} for turn in messages]
  roles = [turn['role'] for turn in turns]
  require('system' not in roles[1:], 'messages',
          'one system turn, the first, for a model without a chat template', roles)
  return turns


def vicuna_pieces(messages):
  """The pieces of a Vicuna chat: system sentence, 'USER: ', ..., ' ASSISTANT: '."""
  system = VICUNA_SYSTEM
  pieces = []
  for turn in messages:
    if turn['role'] == 'system':
      system = as_text(turn['content']) + ' '
    elif turn['role'] == 'user':
      pieces += ['USER: ', *as_pieces(turn['content']), ' ASSISTANT: ']
    else:
      pieces += [as_text(turn['content']), _VICUNA_END]
  return [system, *pieces]


def example(coder, messages, response):
  """(ids, labels) of a prompt and its response; labels are IGNORED but on response and end.

  Args:
    coder: Coder.
    messages: of a defence.
    response: text.
  """
  prompt, answer = coder.prompt(messages), [*coder.text_ids(response), coder.eos]
  return prompt + answer, [IGNORED] * len(prompt) + answer


def columns(coder, pairs, max_length):
  """Training columns of (messages, response) pairs, and how many were too long and dropped.

  A long example is dropped and not cut: cutting takes its response away.

  Returns:
    ({'ids' int32 [N, T], 'labels' int32 [N, T]}, dropped), padded at the right.
  """
  rows = [example(coder, *pair) for pair in pairs]
  kept = [row for row in rows if len(row[0]) <= max_length]
  require(bool(kept), 'data.max_length', 'the length of at least one example', max_length)
  width = max(len(ids) for ids, _ in kept)
  ids = np.full((len(kept), width), coder.pad, np.int32)
  labels = np.full((len(kept), width), IGNORED, np.int32)
  for i, (row, label) in enumerate(kept):
    ids[i, :len(row)], labels[i, :len(label)] = row, label
  return {'ids': ids, 'labels': labels}, len(rows) - len(kept)


def chat_coder(tokenizer, folder, *, markers=None, eos_ids=(), **variables):
  """The Coder of a public checkpoint's folder.

  Args:
    tokenizer: `tokenizers.Tokenizer`.
    folder: with its chat template; Vicuna's form serves where it has none.
    markers: ids of the boundary tokens, or None.
    eos_ids: of generation_config.json, the first of which ends a response.
    **variables: of the template.
  """
  source, specials = chat.load_chat_template(folder)
  number = lambda name: tokenizer.token_to_id(specials[name] or '')
  eos = eos_ids[0] if eos_ids else number('eos_token')
  require(eos is not None, 'tokenizer', 'an end token in tokenizer_config.json', str(folder))
  template = None
  if source is not None:
    template = lambda messages: chat.render_chat(messages, source, **specials, **variables)
  bos = number('bos_token')
  return Coder(lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
               tokenizer.decode, markers=markers, eos=eos, pad=number('pad_token') or 0,
               bos=() if source is not None or bos is None else (bos,), template=template)
