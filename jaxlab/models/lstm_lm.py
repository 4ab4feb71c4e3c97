"""LSTM language model."""
import flax.linen as nn
import jax.numpy as jnp


class LSTMLM(nn.Module):
  """Embedding, stacked LSTMs, dense layer: the next-character network of LEAF by default.

  LEAF (arXiv 1812.01097) reads Shakespeare with an embedding of 8 and two LSTMs of 256.

  Attributes:
    vocab_size: number of token ids, V.
    embed: width of the embedding.
    hidden: width of each LSTM.
    layers: number of LSTMs.
    dtype: compute dtype; parameters, cell states and logits are float32.
  """
  vocab_size: int
  embed: int = 8
  hidden: int = 256
  layers: int = 2
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens, train=False):
    """Maps tokens [B, T], integers 0..V-1, to logits [B, T, V] of the tokens that come next.

    The logits at t see the tokens 0..t. `train` is moot without dropout.
    """
    del train
    x = nn.Embed(self.vocab_size, self.embed, dtype=self.dtype)(tokens.astype(jnp.int32))
    for _ in range(self.layers):
      x = nn.RNN(nn.OptimizedLSTMCell(self.hidden, dtype=self.dtype))(x)
    return nn.Dense(self.vocab_size, dtype=self.dtype)(x).astype(jnp.float32)
