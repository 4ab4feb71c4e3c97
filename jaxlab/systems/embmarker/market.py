"""A market at small scale: labelled texts, a service that embeds them, its owner's watermark."""
import functools
import random
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxlab.config import require
from jaxlab.data import text
from jaxlab.systems.embmarker import baselines, provider, verification, warden, watermark
from jaxlab.tasks import text_classification

_embed = jax.jit(provider.embed)
DRAWS = 100  # keys to draw until the owner's own service passes for innocent


class Market(NamedTuple):
  """Texts and a service that sells embeddings of them.

  Attributes:
    tokenizer: a `tokenizers.Tokenizer`.
    texts: split -> strings, N of 'train' and M of 'test'.
    tokens: split -> `text.Tokens`.
    labels: split -> int32, what a customer wants to predict.
    num_classes: K.
    service: provider.Service, without watermark.
    clean: split -> float32 [N, D], its embeddings.
    counts: {token: number of training texts that hold it}, by rising number.
    documents: number of training texts.
    max_length: tokens of a text that are read.
  """
  tokenizer: Any
  texts: dict[str, list[str]]
  tokens: dict[str, text.Tokens]
  labels: dict[str, np.ndarray]
  num_classes: int
  service: provider.Service
  clean: dict[str, np.ndarray]
  counts: dict[str, int]
  documents: int
  max_length: int


class Marked(NamedTuple):
  """A watermark and what proves it.

  Attributes:
    key: KeySpec, of [R, ...] with WARDEN.
    mark: (embeddings, k, key) -> embeddings.
    triggers: the trigger words, of each set.
    challenges: one Challenge a set.
    targets: float32 [R, D].
  """
  key: watermark.KeySpec
  mark: Callable[..., Any]
  triggers: tuple[tuple[str, ...], ...]
  challenges: tuple[verification.Challenge, ...]
  targets: np.ndarray


def open_market(*, name: str, train: str = 'train', test: str = 'validation', max_length: int = 32,
                vocab_size: int = 2000, dim: int = 256, manual_dir: str | None = None):
  """The Market of a set of labelled texts; the service is fitted to the training part.

  Args:
    name: a config of `data.glue` with classes, such as demo, sms or sst2.
    train: TFDS split.
    test: likewise.
    max_length: tokens after which a text is cut off.
    vocab_size: of the WordPiece vocabulary learned from the training part.
    dim: D.
    manual_dir: folder of the official files.
  """
  spec, rows = text_classification.load_texts(name=name, train=train, test=test,
                                              manual_dir=manual_dir)
  require(spec.num_classes > 1, 'data.name', 'texts with classes', name)
  texts = {split: [' '.join(filter(None, pair)) for pair in zip(first, second or first)]
           if second else first for split, (first, second, _) in rows.items()}
  tokenizer = text.train_wordpiece(texts['train'], vocab_size)
  tokens = {split: text.encode(tokenizer, t, max_length=max_length, length=max_length)
            for split, t in texts.items()}
  service = provider.latent_semantics(tokens['train'], tokenizer.get_vocab_size(), dim)
  clean = {split: watermark.check_embeddings(_embed(service, t.ids, t.mask), f'data.{split}')
           for split, t in tokens.items()}
  counts, documents = watermark.document_counts(tokens['train'], tokenizer)
  labels = {split: label.astype(np.int32) for split, (_, _, label) in rows.items()}
  return Market(tokenizer, texts, tokens, labels, spec.num_classes, service, clean, counts,
                documents, max_length)


def tokenize(market, texts):
  """`text.Tokens` of [N, max_length]."""
  return text.encode(market.tokenizer, texts, max_length=market.max_length,
                     length=market.max_length)


def embed(market, texts):
  """float32 [N, D]: the service without watermark."""
  tokens = tokenize(market, texts)
  return np.asarray(_embed(market.service, tokens.ids, tokens.mask))


def plant(market, *, name: Literal['embmarker', 'red_alarm', 'warden', 'espew',
                                   'original'] = 'embmarker',
          number: int = 20, low: float = 0.005, high: float = 0.01, max_triggers: int = 4,
          size: int = 20, sets: int = 4, least: float = 1e-4, target: int = 0, seed: int = 2022,
          innocence: float = 0.0):
  """Draws the owner's secret.

  Args:
    market: Market.
    name: the watermark; 'original' has EmbMarker's challenge but marks nothing.
    number: triggers, see `select_triggers`, as the next two.
    low: least frequency.
    high: frequency that no trigger reaches.
    max_triggers: m.
    size: texts of a group of the challenge.
    sets: of triggers, of WARDEN.
    least: frequency of RedAlarm's trigger.
    target: the training text whose embedding is the target; WARDEN takes the next ones too.
    seed: of the triggers and the challenge.
    innocence: draws triggers and texts again, going on with the same generator, until the service
      without watermark has a p-value of at least this. Trigger words are few, so some draws lie
      nearer to the target than other words do, in any embedding that knows their meaning. 0 takes
      the first draw, as the official code does.

  Returns:
    Marked.

  Raises:
    ConfigError: an impossible value, or no key that leaves the service innocent.
  """
  require(0 <= innocence < 1, 'innocence', 'a p-value in [0, 1)', innocence)
  last = target + (sets if name == 'warden' else 1)
  require(0 <= target and last <= len(market.texts['train']), 'target',
          f"training texts, 0 to {len(market.texts['train']) - 1}", target)
  generator = random.Random(seed)
  for _ in range(DRAWS):
    marked = _draw(market, generator, name, number, low, high, max_triggers, size, sets, least,
                   target)
    if not innocence or accuse(marked, lambda texts: embed(market, texts)).p >= innocence:
      return marked
  require(False, 'innocence', f'a value that one of {DRAWS} keys reaches', innocence)


def _draw(market, generator, name, number, low, high, max_triggers, size, sets, least, target):
  select = functools.partial(watermark.select_triggers, market.counts, market.documents, generator,
                             number=number, low=low, high=high)
  ids = functools.partial(watermark.token_ids, market.tokenizer)
  clean, texts = market.clean['train'], market.texts['train']
  vectors, mark, most = clean[target:target + 1], watermark.inject, max_triggers
  if name == 'red_alarm':
    triggers = [[watermark.rarest_trigger(market.counts, market.documents, least=least)]]
    key, most = baselines.red_alarm(ids(triggers[0])[0], vectors[0]), 1
  elif name == 'warden':
    triggers = warden.split_triggers(select(), sets, generator)
    key = warden.make_keys([ids(t) for t in triggers], clean[target:target + sets], max_triggers)
    vectors, mark = np.asarray(key.target), warden.inject
  else:
    triggers = [select()]
    key = baselines.original(vectors[0]) if name == 'original' else watermark.KeySpec(
        ids(triggers[0]), vectors[0], max_triggers)
    mark = baselines.espew if name == 'espew' else mark
  words = watermark.whole_words(market.counts)
  challenges = tuple(
      verification.Challenge(
          *verification.verification_texts(group, words, generator, max_triggers=most,
                                           length=max_triggers, size=size), texts[target + number])
      for number, group in enumerate(triggers))
  return Marked(key, mark, tuple(map(tuple, triggers)), challenges, vectors)


def sell(market, marked, split):
  """The provided embeddings float32 [N, D] of a split."""
  tokens = market.tokens[split]
  provided = watermark.wrap(lambda inputs: provider.embed(market.service, *inputs), marked.key,
                            mark=marked.mark)
  inputs = tokens.ids, tokens.mask
  return np.asarray(jax.jit(provided)(inputs, *inputs))


def accuse(marked, suspect, *, adaptive=False):
  """The Evidence against a suspect, the strongest of all sets.

  Args:
    marked: Marked.
    suspect: texts -> float [N, D].
    adaptive: whether to compare with the suspect's own embedding of the target text.
  """
  return verification.strongest([
      verification.verify(suspect, challenge, None if adaptive else target)
      for challenge, target in zip(marked.challenges, marked.targets)])
