"""Sentence encoders: a transformer, and the mean of word vectors."""
import flax.linen as nn
import jax.numpy as jnp

from jaxlab.losses.contrastive import normalise
from jaxlab.models import bert
from jaxlab.models.bert_config import BertConfig


class TransformerEncoder(nn.Module):
  """A transformer, pooled.

  Attributes:
    config: BertConfig without a pooler.
    pooler: see `bert.pool`.
    head: whether a dense layer with tanh follows in training; it is left off when embedding, as
      SimCSE does.
  """
  config: BertConfig
  pooler: str = 'mean'
  head: bool = False

  @nn.compact
  def __call__(self, ids, mask, train=False):
    """Unit vectors float32 [B, D] of token ids int [B, T]; with `train`, by dropout and head."""
    output = bert.Bert(self.config, name='bert')(ids, mask, deterministic=not train)
    x = bert.pool(output, mask, self.pooler)
    if self.head and train:
      init = nn.initializers.normal(self.config.initializer_range)
      x = nn.tanh(nn.Dense(self.config.hidden_size, kernel_init=init, name='head')(x))
    return normalise(x)


class WordAverage(nn.Module):
  """The mean of the tokens' vectors: the floor, and the encoder of small worlds.

  Attributes:
    vocab_size: V.
    dim: D.
  """
  vocab_size: int
  dim: int

  @nn.compact
  def __call__(self, ids, mask, train=False):
    """Unit vectors float32 [B, D] of token ids int [B, T]."""
    del train
    table = self.param('embedding', nn.initializers.normal(1.0), (self.vocab_size, self.dim))
    return normalise(jnp.sum(table[ids] * (mask != 0)[..., None], axis=1))
