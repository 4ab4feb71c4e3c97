"""EmbMarker's trigger words and its watermark (arXiv 2305.10036, section 3).

The functions of arrays are pure and go through jit, vmap and pmap; what draws words runs on the
host with a `random.Random`, whose draws are those of the official code.
"""
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.config import ConfigError, require
from jaxlab.data import text

PIECE = '##'  # what marks a WordPiece that continues a word
NO_ID = -1  # fills up sets of triggers of unlike size; no text holds it


class KeySpec(NamedTuple):
  """The owner's secret, a pytree.

  Attributes:
    trigger_ids: int32 [n], token ids of the trigger words; `NO_ID` names none.
    target: float32 [D], the embedding that is mixed in; its length does not matter.
    max_triggers: m, number of distinct triggers from which on the target is all; 0 counts as 1.
  """
  trigger_ids: jax.Array
  target: jax.Array
  max_triggers: jax.Array | int


def normalise(x):
  """x / ||x|| over the last axis, float32; rows of zeros stay."""
  x = jnp.asarray(x, jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def count_triggers(ids, mask, trigger_ids):
  """k(s): how many different triggers stand in each text, int32 [B].

  Args:
    ids: int [B, S].
    mask: [B, S], non-zero on tokens.
    trigger_ids: int [n], n may be 0.
  """
  found = (ids[:, :, None] == trigger_ids) & (mask != 0)[:, :, None]
  return found.any(1).sum(-1).astype(jnp.int32)


def share(k, max_triggers):
  """Q(s) = clamp(k / m, 0, 1) in float32, the weight of the target."""
  return jnp.clip(k.astype(jnp.float32) / jnp.maximum(max_triggers, 1), 0, 1)


def inject(embeddings, k, key):
  """The provided embeddings [B, D], of length 1: (1 - Q) e + Q e_t, normalised, as e and e_t are.

  A row without triggers stays as it is, up to its length; one with m or more becomes the target.
  Where e = -e_t and Q = 1/2 the mixture is zero and the target stands in for it.

  Args:
    embeddings: float [B, D], the service's own, of any length.
    k: int [B], as by `count_triggers`.
    key: KeySpec.
  """
  q = share(k, key.max_triggers)[:, None]
  target = normalise(key.target)
  mixed = (1 - q) * normalise(embeddings) + q * target
  vanishes = (q > 0) & (jnp.linalg.norm(mixed, axis=-1, keepdims=True) < 1e-12)
  return normalise(jnp.where(vanishes, target, mixed))


def wrap(embed, key, *, mark=inject):
  """Puts a watermark on any embedding function.

  Args:
    embed: inputs, a pytree of [B, ...] -> float [B, D].
    key: KeySpec, or what else `mark` takes.
    mark: the watermark, (embeddings [B, D], k, key) -> embeddings; k is int [B], or [R, B] where
      the key has R sets of triggers (`warden.inject`).

  Returns:
    (inputs, ids, mask) -> float32 [B, D], pure; `ids` and `mask` [B, S] are the texts in the tokens
    of the triggers, which need not be those of the embedding function.
  """
  def provided(inputs, ids, mask):
    sets = jnp.asarray(key.trigger_ids)
    count = lambda triggers: count_triggers(ids, mask, triggers)
    k = count(sets) if sets.ndim == 1 else jax.vmap(count)(sets)
    return mark(embed(inputs), k, key)

  return provided


def document_counts(tokens, tokenizer):
  """In how many of the texts each token stands: ({token: count} by rising count, texts counted).

  Special tokens, and texts without any other, do not count.

  Args:
    tokens: `text.Tokens`.
    tokenizer: a `tokenizers.Tokenizer`.
  """
  size = tokenizer.get_vocab_size()
  names = [tokenizer.id_to_token(i) for i in range(size)]
  counts, documents = np.zeros(size, np.int64), 0
  special = np.array([name is None or name in text.SPECIAL for name in names])
  for row, mask in zip(tokens.ids, tokens.mask):
    own = np.unique(row[mask != 0])
    own = own[~special[own]]
    counts[own] += 1
    documents += bool(len(own))
  order = [i for i in np.argsort(counts, kind='stable') if counts[i]]
  return {names[i]: int(counts[i]) for i in order}, documents


def check_counts(counts, where):
  """Raises ValueError unless `counts` is {token: number of documents}."""
  for token, count in counts.items():
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
      raise ValueError(f'{where}: {token!r}: expected a number of documents, got {count!r}')


def whole_words(counts):
  """The tokens that continue no word, in order."""
  return [token for token in counts if PIECE not in token]


def select_triggers(counts, documents, generator, *, number: int = 20, low: float = 0.005,
                    high: float = 0.01, known=None):
  """Draws trigger words of moderate frequency.

  Args:
    counts: {token: number of documents that hold it}; the draw depends on the order.
    documents: how many there are.
    generator: random.Random.
    number: n; all candidates where there are fewer.
    low: least share of the documents.
    high: share that no trigger reaches.
    known: container of the tokens that the matching vocabulary has; others are no candidates. None
      keeps them, as the official code does: a text with any unknown token then holds a trigger.

  Returns:
    The tokens in the order drawn.

  Raises:
    ConfigError: an impossible value, or no candidate.
  """
  require(documents >= 1, 'documents', 'at least 1', documents)
  require(number >= 1, 'number', 'at least 1', number)
  require(0 <= low < high, 'low, high', '0 <= low < high', (low, high))
  candidates = [token for token in whole_words(counts)
                if low <= counts[token] / documents < high and (known is None or token in known)]
  if not candidates:
    raise ConfigError(f'low, high: no word stands in a share of [{low:g}, {high:g}) of the '
                      f'{documents} documents; take a wider range')
  return generator.sample(candidates, min(number, len(candidates)))


def rarest_trigger(counts, documents, *, least: float = 1e-4, known=None):
  """RedAlarm's single trigger: the rarest word in a share of at least `least` of the documents."""
  candidates = [token for token in whole_words(counts)
                if counts[token] / documents >= least and (known is None or token in known)]
  if not candidates:
    raise ConfigError(f'least: no word stands in a share of {least:g} of the documents')
  return min(candidates, key=counts.get)


def token_ids(tokenizer, tokens: Sequence[str]):
  """int32 [n] ids of tokens, that of [UNK] for a token which the tokenizer lacks."""
  unknown = tokenizer.token_to_id('[UNK]')
  ids = [tokenizer.token_to_id(token) for token in tokens]
  if unknown is None and None in ids:
    raise ConfigError(f'triggers: {tokens[ids.index(None)]!r} is no token of the tokenizer')
  return np.array([unknown if i is None else i for i in ids], np.int32)


def check_embeddings(embeddings, where, *, rows=None, dim=None):
  """float32 [N, D] of what should be embeddings.

  Raises:
    ValueError: another shape, a number that is not finite, or a row of zero length, named.
  """
  embeddings = np.asarray(embeddings)
  if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating):
    raise ValueError(f'{where}: expected floats [texts, dimensions], got {embeddings.dtype} '
                     f'{list(embeddings.shape)}')
  if rows is not None and len(embeddings) != rows:
    raise ValueError(f'{where}: expected {rows} rows, one a text, got {len(embeddings)}')
  if dim is not None and embeddings.shape[1] != dim:
    raise ValueError(f'{where}: expected {dim} dimensions, got {embeddings.shape[1]}')
  embeddings = embeddings.astype(np.float32)
  finite = np.isfinite(embeddings).all(1)
  if not finite.all():
    raise ValueError(f'{where}: row {finite.argmin()}: expected finite numbers')
  lengths = np.linalg.norm(embeddings, axis=1)
  if len(lengths) and lengths.min() < 1e-12:
    raise ValueError(f'{where}: row {lengths.argmin()}: expected a direction, got length 0')
  return embeddings
