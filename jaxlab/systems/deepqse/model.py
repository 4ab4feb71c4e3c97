"""DeepQSE and the two models of Efficient-DeepQSE (arXiv 2210.08809, section 3).

Texts come in pieces: the ids of the query, of the title and of each sentence, every one with a
separator at its end and padding after it. `compose` puts them behind a [CLS].
"""
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.models.bert import Bert, KeysValues
from jaxlab.models.bert_config import BertConfig

PADDING = -1e4  # added to the score of what is no sentence, or no candidate
CONTEXTS = ('query', 'sentences', 'none')


class Row(NamedTuple):
  """Tokens of rows that may have padding in their middle.

  Attributes:
    ids: int [..., S].
    mask: bool [..., S].
    positions: int [..., S], counted over the visible tokens.
  """
  ids: jax.Array
  mask: jax.Array
  positions: jax.Array


def compose(config, cls_id, *pieces):
  """The Row `[CLS] piece piece ...`; leading axes are broadcast.

  Attention does not see in which order keys stand, only their position ids: so this is the row
  without the padding between the pieces.

  Args:
    config: BertConfig.
    cls_id: id of the first token.
    *pieces: int [..., S_i], padded at the right with `config.pad_token_id`.
  """
  leading = jnp.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
  wide = [jnp.broadcast_to(piece, leading + piece.shape[-1:]) for piece in pieces]
  ids = jnp.concatenate([jnp.full((*leading, 1), cls_id, jnp.int32), *wide], axis=-1)
  mask = ids != config.pad_token_id
  first = config.pad_token_id + 1 if config.is_roberta else 0
  return Row(ids, mask, first + jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0))


def _encode(encoder, row, kv_prefix=None, deterministic=True):
  """Output of `encoder` on a Row of [..., S], leading axes flattened."""
  flat = Row(*(x.reshape(-1, x.shape[-1]) for x in row))
  return encoder(flat.ids, flat.mask, position_ids=flat.positions, kv_prefix=kv_prefix,
                 deterministic=deterministic)


class Ranker(nn.Module):
  """The document-aware relevance encoder and the scorer.

  Attributes:
    config: BertConfig without a word table: it encodes vectors.
    context: what a sentence is scored beside: 'query', the query and the other sentences;
      'sentences', the other sentences alone (as PARADE has it); 'none', nothing (as Birch does).
  """
  config: BertConfig
  context: Literal['query', 'sentences', 'none'] = 'query'

  @nn.compact
  def __call__(self, query, sentences, mask, positions=None, deterministic=True):
    """Scores float32 [B, n]; those of padding have `PADDING` added.

    Args:
      query: [B, D].
      sentences: [B, n, D].
      mask: [B, n], non-zero on real sentences.
      positions: int [B, n], the sentences' numbers on the page from 1 on; 1 .. n by default. The
        query has position 0.
      deterministic: False draws dropout from the rng 'dropout'.
    """
    hidden = sentences
    if self.context != 'none':
      visible = mask.astype(bool)
      if positions is None:
        positions = jnp.broadcast_to(1 + jnp.arange(mask.shape[1]), mask.shape)
      if self.context == 'query':
        hidden = jnp.concatenate([query[:, None], hidden], axis=1)
        visible, positions = (jnp.pad(x, ((0, 0), (1, 0)), constant_values=value)
                              for x, value in ((visible, True), (positions, 0)))
      encoder = Bert(self.config, name='document')
      hidden = encoder(None, visible, position_ids=positions, inputs_embeds=hidden,
                       deterministic=deterministic).last[:, -mask.shape[1]:]
    init = nn.initializers.normal(self.config.initializer_range)
    hidden = nn.tanh(nn.Dense(self.config.hidden_size // 2, kernel_init=init,
                              name='scorer_hidden')(hidden.astype(jnp.float32)))
    scores = nn.Dense(1, kernel_init=init, name='scorer_out')(hidden)[..., 0]
    return scores + PADDING * (1 - mask.astype(jnp.float32))


class DeepQSE(nn.Module):
  """One text encoder for queries and sentences, and a Ranker.

  DeepQSE encodes each sentence behind the query; the coarse model of Efficient-DeepQSE has the same
  parameters and encodes sentences without it.

  Attributes:
    config: BertConfig of the text encoder.
    document: BertConfig of the Ranker.
    context: see Ranker.
  """
  config: BertConfig
  document: BertConfig
  context: Literal['query', 'sentences', 'none'] = 'query'

  def setup(self):
    self.encoder = Bert(self.config)
    self.ranker = Ranker(self.document, self.context)

  def encode(self, row, deterministic=True):
    """The state of [CLS], [..., D], of a Row [..., S]."""
    first = _encode(self.encoder, row, deterministic=deterministic).last[:, 0]
    return first.reshape(*row.ids.shape[:-1], -1)

  def rank(self, query, sentences, mask, positions=None, deterministic=True):
    """Scores [B, n]; see Ranker."""
    return self.ranker(query, sentences, mask, positions, deterministic)

  def __call__(self, query, sentences, mask, positions=None, deterministic=True):
    """Scores [B, n] of Rows [B, S] and [B, n, S]; see Ranker."""
    return self.rank(self.encode(query, deterministic), self.encode(sentences, deterministic), mask,
                     positions, deterministic)


class CrossDeepQSE(nn.Module):
  """The fine model of Efficient-DeepQSE: sentences attend to the keys and values of the query.

  The query's tower never sees a sentence, so that it runs once for all candidates.

  Attributes: those of DeepQSE. The layers may not be scanned.
  """
  config: BertConfig
  document: BertConfig
  context: Literal['query', 'sentences', 'none'] = 'query'

  def setup(self):
    self.query_encoder = Bert(self.config)
    self.sentence_encoder = Bert(self.config)
    self.ranker = Ranker(self.document, self.context)

  def encode_query(self, row, deterministic=True):
    """(the state of [CLS] [B, D], KeysValues) of a Row [B, S]."""
    output = _encode(self.query_encoder, row, deterministic=deterministic)
    return output.last[:, 0], output.keys_values

  def encode_sentences(self, row, query, deterministic=True):
    """The states of [CLS], [B, K, D], of a Row [B, K, S] beside the KeysValues of B queries."""
    count = row.ids.shape[1]
    repeat = lambda x: jnp.repeat(x, count, axis=0)
    prefix = KeysValues(jax.tree.map(repeat, query.layers), repeat(query.mask))
    first = _encode(self.sentence_encoder, row, prefix, deterministic).last[:, 0]
    return first.reshape(*row.ids.shape[:2], -1)

  def rank(self, query, sentences, mask, positions=None, deterministic=True):
    """Scores [B, K]; see Ranker."""
    return self.ranker(query, sentences, mask, positions, deterministic)

  def __call__(self, query, sentences, mask, positions=None, deterministic=True):
    """Scores [B, K] of Rows [B, S] and [B, K, S]; see Ranker."""
    vector, keys_values = self.encode_query(query, deterministic)
    vectors = self.encode_sentences(sentences, keys_values, deterministic)
    return self.rank(vector, vectors, mask, positions, deterministic)


def top_k(scores, mask, k, first=None):
  """Indices int [B, K] of the best sentences, in descending order; among equals the earlier first.

  Padding comes last, and is there only where a page has fewer than K sentences.

  Args:
    scores: [B, n].
    mask: [B, n], non-zero on real sentences.
    k: K, at most n.
    first: int [B], sentences that come first whatever their score (the gold ones, in training).
  """
  keys = jnp.where(mask.astype(bool), scores, -jnp.inf)
  if first is not None:
    keys = jnp.where(jnp.arange(keys.shape[1]) == first[:, None], jnp.inf, keys)
  return jax.lax.top_k(keys, k)[1]


def candidate_positions(candidates, mask, last):
  """Positions int [B, K] of candidates on their page from 1 on; `last` for padding.

  Args:
    candidates: int [B, K], as by `top_k`.
    mask: [B, K], non-zero on real sentences.
    last: the last position of the document encoder.
  """
  return jnp.where(mask.astype(bool), candidates + 1, last)


def scatter_scores(scores, candidates, length):
  """Scores [B, n] of all sentences of a page from those [B, K] of its candidates, else PADDING."""
  rows = jnp.arange(len(scores))[:, None]
  return jnp.full((len(scores), length), PADDING).at[rows, candidates].set(scores)


def listwise_loss(scores, labels, teacher=None, weight=0.0, temperature=1.0):
  """-log softmax of the gold sentence among the sentences of its page, [B].

  With a teacher, weight * T^2 * KL(softmax(teacher / T) || softmax(scores / T)) is added.

  Args:
    scores: [B, n].
    labels: int [B].
    teacher: scores [B, n] of another model, or None.
    weight: of the teacher.
    temperature: T.
  """
  logp = jax.nn.log_softmax(scores.astype(jnp.float32))
  loss = -jnp.take_along_axis(logp, labels[:, None], axis=1)[:, 0]
  if teacher is not None:
    target = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    student = jax.nn.log_softmax(scores.astype(jnp.float32) / temperature)
    loss += weight * temperature**2 * jnp.sum(jnp.exp(target) * (target - student), axis=-1)
  return loss
