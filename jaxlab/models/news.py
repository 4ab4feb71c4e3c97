"""News recommenders: encoders of news (NRMS, LSTUR, NAML, pretrained text) and of users.

A news encoder maps features of M news to vectors [M, D], a user encoder the vectors of H clicked
news to a user vector [B, D]; the score of a candidate is their inner product. NRMS (Wu et al. 2019,
EMNLP), LSTUR (An et al. 2019, ACL), NAML (Wu et al. 2019, IJCAI); the forms are those of the
official code of UA-FedRec (arXiv 2202.06701) and Efficient-FedRec (arXiv 2109.05446).

With `mask_padding` padding (word 0, news 0) takes no part, and what is nothing but padding becomes
the zero vector. Without it padding takes part like any word or news, as in those two systems.
"""
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlab.nn import PatchConv

_LARGE = 1e9  # finite, so that a fully masked row has a softmax


def _uniform(fan_in):
  """PyTorch's default for kernels and biases: uniform in +-1 / sqrt(fan_in)."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def _dense(features, fan_in, name, dtype, kernel_init=None):
  return nn.Dense(features, dtype=dtype, name=name, bias_init=_uniform(fan_in),
                  kernel_init=kernel_init or _uniform(fan_in))


class SelfAttention(nn.Module):
  """Multi-head self-attention without output projection or residual.

  Attributes:
    heads: number of heads.
    head_dim: width of a head.
    dtype: compute dtype; parameters and softmax are float32.
  """
  heads: int
  head_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, mask=None):
    """Maps x [..., T, E] to [..., T, heads * head_dim].

    Args:
      x: what attends to itself.
      mask: bool [..., T], False for keys that nobody looks at; None for none.
    """
    def project(name):
      y = _dense(self.heads * self.head_dim, x.shape[-1], name, self.dtype,
                 nn.initializers.xavier_uniform())(x)
      return y.reshape(*y.shape[:-1], self.heads, self.head_dim)

    query, key, value = (project(name) for name in ('query', 'key', 'value'))
    logits = jnp.einsum('...qhd,...khd->...hqk', query, key).astype(jnp.float32)
    logits = logits / math.sqrt(self.head_dim)
    if mask is not None:
      logits = jnp.where(mask[..., None, None, :], logits, -_LARGE)
    weights = nn.softmax(logits).astype(self.dtype)
    context = jnp.einsum('...hqk,...khd->...qhd', weights, value)
    return context.reshape(*context.shape[:-2], -1)


class AdditivePooling(nn.Module):
  """Weighted mean over positions, weights softmax(w2 tanh(W1 x + b1) + b2).

  Attributes:
    queries: width of the hidden layer.
    dtype: compute dtype; parameters and softmax are float32.
  """
  queries: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, mask=None):
    """Maps x [..., T, D] to [..., D].

    Args:
      x: what is pooled.
      mask: bool [..., T], False for positions of weight 0; None for none. Where all are False the
        result is 0.
    """
    hidden = jnp.tanh(_dense(self.queries, x.shape[-1], 'hidden', self.dtype)(x))
    logits = _dense(1, self.queries, 'score', self.dtype)(hidden)[..., 0].astype(jnp.float32)
    if mask is None:
      weights = nn.softmax(logits)
    else:
      weights = nn.softmax(jnp.where(mask, logits, -_LARGE)) * mask
    return jnp.einsum('...t,...td->...d', weights.astype(self.dtype), x)


class WordEmbedding(nn.Module):
  """Word vectors. Row 0, of padding and unknown words, starts at 0 and is trained like any other.

  Attributes:
    vocab_size: number of word ids, V.
    features: width, E.
    dtype: compute dtype.
    deviation: standard deviation of the random vectors.
  """
  vocab_size: int
  features: int
  dtype: jnp.dtype = jnp.float32
  deviation: float = 1.0

  @nn.compact
  def __call__(self, words):
    """Maps word ids [...] to [..., E]."""
    def init(key, shape, dtype=jnp.float32):
      return self.deviation * jax.random.normal(key, shape, dtype).at[0].set(0)

    table = self.param('embedding', init, (self.vocab_size, self.features))
    return table[words].astype(self.dtype)


class ConvText(nn.Module):
  """A text view: word embeddings, convolution, ReLU, additive pooling, dropout before the last two.

  Attributes:
    features: width of the convolution, D.
    queries: width of the pooling.
    window: words that the convolution sees, odd.
    padding: 'SAME' (NAML), or 'VALID' (LSTUR), which leaves T - window + 1 positions; under
      `mask_padding` a title of fewer words than the window then becomes 0.
    dropout: rate, on the embeddings and on the convolution.
    mask_padding: see the module.
    dtype: compute dtype.
  """
  features: int
  queries: int
  window: int = 3
  padding: str = 'SAME'
  dropout: float = 0.2
  mask_padding: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, embedded, real, train=False):
    """Maps word vectors [M, T, E] and real [M, T] (True where there is a word) to [M, D]."""
    mask = real if self.mask_padding else None
    if mask is not None:
      embedded = embedded * mask[..., None]
    x = nn.Dropout(self.dropout, deterministic=not train)(embedded)
    x = PatchConv(self.features, (self.window, 1), padding=self.padding, dtype=self.dtype,
                  name='conv')(x[:, :, None])[:, :, 0]
    x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
    if mask is not None and self.padding == 'VALID':  # a position counts if all its words are real
      mask = jnp.all(jnp.stack([mask[:, i:i + x.shape[1]] for i in range(self.window)]), axis=0)
    return AdditivePooling(self.queries, self.dtype, name='pooling')(x, mask)


class NRMSNews(nn.Module):
  """NRMS: self-attention over the words of the title, additive pooling.

  Attributes:
    vocab_size: number of word ids, V.
    embed: width of the word vectors, E.
    heads: attention heads.
    head_dim: width of a head; D = heads * head_dim.
    queries: width of the pooling.
    dropout: rate, on the embeddings and on the attention.
    mask_padding: see the module.
    word_deviation: standard deviation of random word vectors.
    dtype: compute dtype.
  """
  vocab_size: int
  embed: int = 300
  heads: int = 20
  head_dim: int = 20
  queries: int = 200
  dropout: float = 0.2
  mask_padding: bool = False
  word_deviation: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, news, train=False):
    """Maps news['title'] [M, T] to [M, D]; `train` turns dropout on."""
    mask = news['title'] > 0 if self.mask_padding else None
    x = WordEmbedding(self.vocab_size, self.embed, self.dtype, self.word_deviation,
                      name='words')(news['title'])
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = SelfAttention(self.heads, self.head_dim, self.dtype, name='attention')(x, mask)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return AdditivePooling(self.queries, self.dtype, name='pooling')(x, mask).astype(jnp.float32)


class NRMSUser(nn.Module):
  """NRMS: self-attention over the clicked news, additive pooling.

  Attributes:
    heads: attention heads.
    head_dim: width of a head; D = heads * head_dim.
    queries: width of the pooling.
    input_dropout: rate on the vectors of the clicked news (Efficient-FedRec: .2).
    output_dropout: rate on the user vector (UA-FedRec: .2).
    mask_padding: see the module.
    dtype: compute dtype.
  """
  heads: int = 20
  head_dim: int = 20
  queries: int = 200
  input_dropout: float = 0.0
  output_dropout: float = 0.0
  mask_padding: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, vectors, real, train=False):
    """Maps vectors [B, H, D] of clicked news, and real [B, H] (False for padding), to [B, D]."""
    mask = real if self.mask_padding else None
    x = nn.Dropout(self.input_dropout, deterministic=not train)(vectors)
    x = SelfAttention(self.heads, self.head_dim, self.dtype, name='attention')(x, mask)
    x = AdditivePooling(self.queries, self.dtype, name='pooling')(x, mask).astype(jnp.float32)
    return nn.Dropout(self.output_dropout, deterministic=not train)(x)


class LSTURNews(nn.Module):
  """LSTUR: convolution over the words of the title, additive pooling.

  Attributes:
    vocab_size: number of word ids, V.
    embed: width of the word vectors, E.
    features: width of the convolution, D.
    queries: width of the pooling.
    window: words that the convolution sees, odd.
    dropout: rate, on the embeddings and on the convolution.
    mask_padding: see the module.
    word_deviation: standard deviation of random word vectors.
    padding: of the convolution, 'SAME' or 'VALID'; then a title has at least `window` positions.
    dtype: compute dtype.
  """
  vocab_size: int
  embed: int = 300
  features: int = 400
  queries: int = 200
  window: int = 3
  dropout: float = 0.2
  mask_padding: bool = False
  word_deviation: float = 1.0
  padding: Literal['SAME', 'VALID'] = 'VALID'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, news, train=False):
    """Maps news['title'] [M, T] to [M, D]; `train` turns dropout on."""
    x = WordEmbedding(self.vocab_size, self.embed, self.dtype, self.word_deviation,
                      name='words')(news['title'])
    return ConvText(self.features, self.queries, self.window, self.padding, self.dropout,
                    self.mask_padding, self.dtype, name='title')(
                        x, news['title'] > 0, train).astype(jnp.float32)


class LSTURUser(nn.Module):
  """LSTUR without its user embedding, which would be private: the last state of a GRU.

  Attributes:
    features: width of the GRU, D.
    mask_padding: see the module; a padded click then keeps the state as it is.
    dtype: compute dtype.
  """
  features: int = 400
  mask_padding: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, vectors, real, train=False):
    """Maps vectors [B, H, D] of clicked news, and real [B, H] (False for padding), to [B, D].

    `train` is moot without dropout.
    """
    del train
    init = _uniform(self.features)
    cell = nn.GRUCell(self.features, dtype=self.dtype, kernel_init=init, recurrent_kernel_init=init,
                      bias_init=init, name='gru')

    def step(cell, state, inputs):
      vector, keep = inputs
      new, _ = cell(state, vector)
      return jnp.where(keep[:, None], new, state), None

    keep = real if self.mask_padding else jnp.ones_like(real)
    start = jnp.zeros((*vectors.shape[:-2], self.features), self.dtype)
    scan = nn.scan(step, variable_broadcast='params', split_rngs={'params': False}, in_axes=1)
    return scan(cell, start, (vectors.astype(self.dtype), keep))[0].astype(jnp.float32)


class NAMLNews(nn.Module):
  """NAML: title, abstract, category and subcategory as views, additive pooling over the views.

  Attributes:
    vocab_size: number of word ids, V; both texts share the vectors.
    num_categories: number of category ids, 0 for unknown among them.
    num_subcategories: likewise.
    embed: width of the word vectors, E.
    features: width of a view, D.
    queries: width of the poolings.
    category_embed: width of the category vectors.
    window: words that the convolutions see, odd.
    dropout: rate, on the embeddings and on the convolutions.
    mask_padding: see the module.
    word_deviation: standard deviation of random word vectors.
    dtype: compute dtype.
  """
  vocab_size: int
  num_categories: int
  num_subcategories: int
  embed: int = 300
  features: int = 400
  queries: int = 200
  category_embed: int = 100
  window: int = 3
  dropout: float = 0.2
  mask_padding: bool = False
  word_deviation: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, news, train=False):
    """Maps 'title' and 'abstract' [M, T], 'category' and 'subcategory' [M] to [M, D]."""
    words = WordEmbedding(self.vocab_size, self.embed, self.dtype, self.word_deviation,
                          name='words')

    def text(name):
      return ConvText(self.features, self.queries, self.window, 'SAME', self.dropout,
                      self.mask_padding, self.dtype, name=name)(
                          words(news[name]), news[name] > 0, train)

    def label(name, size):
      x = nn.Embed(size, self.category_embed, dtype=self.dtype, name=f'{name}_embedding')
      return nn.relu(nn.Dense(self.features, dtype=self.dtype, name=name)(x(news[name])))

    views = jnp.stack([
        text('title'), text('abstract'), label('category', self.num_categories),
        label('subcategory', self.num_subcategories)
    ], axis=-2)
    return AdditivePooling(self.queries, self.dtype, name='pooling')(views).astype(jnp.float32)


class NAMLUser(nn.Module):
  """NAML: additive pooling over the clicked news.

  Attributes:
    queries: width of the pooling.
    mask_padding: see the module.
    dtype: compute dtype.
  """
  queries: int = 200
  mask_padding: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, vectors, real, train=False):
    """Maps vectors [B, H, D] of clicked news, and real [B, H] (False for padding), to [B, D].

    `train` is moot without dropout.
    """
    del train
    mask = real if self.mask_padding else None
    return AdditivePooling(self.queries, self.dtype, name='pooling')(
        vectors.astype(self.dtype), mask).astype(jnp.float32)


class PretrainedNews(nn.Module):
  """A pretrained text encoder over the title, additive pooling, a dense layer (PLM-NR).

  Attributes:
    encoder: module called as (ids [M, T], mask [M, T], deterministic=) whose result has
      `hidden_states`, the last of them [M, T, W], such as `models.bert.Bert`. A news without a
      token must give finite states.
    features: D.
    queries: width of the pooling; half of W in Efficient-FedRec.
    mask_padding: see the module; it concerns the pooling, for the encoder has its mask.
    dtype: compute dtype.
  """
  encoder: nn.Module
  features: int = 400
  queries: int = 384
  mask_padding: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, news, train=False):
    """Maps news['title'] and news['title_mask'] [M, T] to [M, D]."""
    x = self.encoder(news['title'], news['title_mask'], deterministic=not train).hidden_states[-1]
    mask = news['title_mask'] > 0 if self.mask_padding else None
    x = AdditivePooling(self.queries, self.dtype, name='pooling')(x, mask)
    return _dense(self.features, x.shape[-1], 'output', self.dtype)(x).astype(jnp.float32)
