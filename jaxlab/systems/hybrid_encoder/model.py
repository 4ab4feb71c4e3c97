"""The modules of Hybrid Encoder (arXiv 2104.10925): siamese retrieval and cached hybrid ranking.

A user is N page vectors, an ad L token states; both come from a text encoder and are inputs here.
Retrieval pools each side to one vector. Ranking knows an ad as M disentangled vectors, which do not
depend on the user and are cached, and a user by M vectors that these ask for.
"""
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxlab.losses.contrastive import normalise
from jaxlab.models.news import AdditivePooling

_LARGE = 1e9  # finite, so that a user without pages has a softmax


def masked_softmax(logits, mask):
  """Softmax over the last axis, 0 where `mask` is False, all 0 where nothing is True."""
  return nn.softmax(jnp.where(mask, logits.astype(jnp.float32), -_LARGE)) * mask


class Pool(nn.Module):
  """One vector of a set: additive attention, the mean, or the first ('cls').

  Attributes:
    how: which of them.
    queries: width of the attention's hidden layer.
  """
  how: Literal['attention', 'mean', 'cls'] = 'attention'
  queries: int = 64

  @nn.compact
  def __call__(self, x, mask):
    """Maps x [..., L, d] and mask bool [..., L] to [..., d]; 0 where nothing is True."""
    if self.how == 'cls':
      return x[..., 0, :] * mask[..., :1]
    if self.how == 'mean':
      weights = mask / jnp.maximum(mask.sum(-1, keepdims=True), 1)
      return jnp.einsum('...l,...ld->...d', weights, x)
    return AdditivePooling(self.queries, name='attention')(x, mask)


class Siamese(nn.Module):
  """User and ad vectors of the retrieval step; their inner product is its score.

  Attributes:
    pool: of the ads' tokens; pages have no first, so that 'cls' takes their mean.
    queries: width of the attention pools.
    cosine: whether vectors have length 1.
  """
  pool: Literal['attention', 'mean', 'cls'] = 'attention'
  queries: int = 64
  cosine: bool = False

  def setup(self):
    self.user_pool = Pool('mean' if self.pool == 'cls' else self.pool, self.queries)
    self.ad_pool = Pool(self.pool, self.queries)

  def user(self, pages, mask):
    """u [..., d] of pages [..., N, d] and mask bool [..., N]."""
    u = self.user_pool(pages, mask).astype(jnp.float32)
    return normalise(u) if self.cosine else u

  def ad(self, tokens, mask):
    """v [..., d] of tokens [..., L, d] and mask bool [..., L]."""
    v = self.ad_pool(tokens, mask).astype(jnp.float32)
    return normalise(v) if self.cosine else v


class AdCodes(nn.Module):
  """Disentangled ad vectors: M learned codes attend to the tokens.

  Attributes:
    codes: M.
  """
  codes: int = 8

  @nn.compact
  def __call__(self, tokens, mask):
    """(A [..., M, d], attention [..., M, L]) of tokens [..., L, d] and mask bool [..., L]."""
    width = tokens.shape[-1]
    codes = self.param('codes', nn.initializers.normal(1.0), (self.codes, width))
    dense = lambda name: nn.Dense(width, use_bias=False, name=name)
    logits = jnp.einsum('md,...ld->...ml', codes, dense('key')(tokens)) / jnp.sqrt(width)
    attention = masked_softmax(logits, mask[..., None, :])
    return jnp.einsum('...ml,...ld->...md', attention, dense('value')(tokens)), attention


class AdRelatedUser(nn.Module):
  """Keys and values of a user's pages, which are cached, and the vectors that ads ask of them."""

  @nn.compact
  def __call__(self, pages):
    """(keys, values) [..., N, d] of pages [..., N, d]."""
    dense = lambda name: nn.Dense(pages.shape[-1], use_bias=False, name=name)
    return dense('key')(pages), dense('value')(pages)

  def attend(self, ads, keys, values, mask):
    """(U [B, C, M, d], attention [B, C, M, N]) of ads [B, C, M, d], keys, values [B, N, d], mask.
    """
    logits = jnp.einsum('bcmd,bnd->bcmn', ads, keys) / jnp.sqrt(ads.shape[-1])
    attention = masked_softmax(logits, mask[:, None, None])
    return jnp.einsum('bcmn,bnd->bcmd', attention, values), attention


class HybridRanker(nn.Module):
  """Rank score of an ad for a user from cached parts: sum over m of weight_m <A_m, U_m>.

  Attributes:
    codes: M.
    aggregate: 'weighted' by a softmax of learned numbers, 'mean', 'max', or 'mlp' of A * U.
    hidden: width of the 'mlp'.
  """
  codes: int = 8
  aggregate: Literal['weighted', 'mean', 'max', 'mlp'] = 'weighted'
  hidden: int = 64

  def setup(self):
    self.ad = AdCodes(self.codes)
    self.user = AdRelatedUser()
    if self.aggregate == 'weighted':
      self.head_weight = self.param('head_weight', nn.initializers.zeros, (self.codes,))
    if self.aggregate == 'mlp':
      self.mlp_hidden, self.mlp_out = nn.Dense(self.hidden), nn.Dense(1)

  def score(self, ads, keys, values, mask):
    """Scores [B, C] of ads [B, C, M, d] and a user's keys and values [B, N, d], mask bool [B, N].
    """
    users, _ = self.user.attend(ads, keys, values, mask)
    if self.aggregate == 'mlp':
      hidden = nn.relu(self.mlp_hidden((ads * users).reshape(*ads.shape[:2], -1)))
      return self.mlp_out(hidden)[..., 0]
    products = jnp.einsum('bcmd,bcmd->bcm', ads, users)
    if self.aggregate == 'mean':
      return products.mean(-1)
    if self.aggregate == 'max':
      return products.max(-1)
    return products @ nn.softmax(self.head_weight)

  def __call__(self, pages, mask, tokens, token_mask):
    """Scores [B, C], nothing cached.

    Args:
      pages: [B, N, d].
      mask: bool [B, N].
      tokens: [B, C, L, d] of the candidates.
      token_mask: bool [B, C, L].
    """
    return self.score(self.ad(tokens, token_mask)[0], *self.user(pages), mask)


def own_params(params):
  """Those of `params` that a HybridEncoder reads; a part of pools without weights has none."""
  return {name: params[name] for name in ('siamese', 'ranker') if name in params}


class HybridEncoder(nn.Module):
  """The two steps over one parameter tree {'siamese', 'ranker'}.

  Attributes:
    siamese: Siamese.
    ranker: HybridRanker, or another module called as it is (`rankers`).
  """
  siamese: Siamese
  ranker: nn.Module

  def __call__(self, pages, mask, tokens, token_mask):
    """Makes all parameters; arguments as those of `HybridRanker`."""
    return (self.user_retrieval(pages, mask), self.ad_retrieval(tokens, token_mask),
            self.rank(pages, mask, tokens, token_mask))

  def user_retrieval(self, pages, mask):
    """u; see `Siamese.user`."""
    return self.siamese.user(pages, mask)

  def ad_retrieval(self, tokens, mask):
    """v; see `Siamese.ad`."""
    return self.siamese.ad(tokens, mask)

  def ad_codes(self, tokens, mask):
    """(A, attention); see `AdCodes`."""
    return self.ranker.ad(tokens, mask)

  def user_keys(self, pages):
    """(keys, values) of the ranking step; see `AdRelatedUser`."""
    return self.ranker.user(pages)

  def rank_cached(self, ads, keys, values, mask):
    """Rank scores [B, C] from what is cached; see `HybridRanker.score`."""
    return self.ranker.score(ads, keys, values, mask)

  def rank(self, pages, mask, tokens, token_mask):
    """Rank scores [B, C]; see `HybridRanker`."""
    return self.ranker(pages, mask, tokens, token_mask)


def code_orthogonality(codes):
  """|| C C^T - I ||_F^2 of the codes [M, d] scaled to length 1: 0 where all are orthogonal."""
  normal = normalise(codes)
  return jnp.square(normal @ normal.T - jnp.eye(len(codes))).sum()


def mean_cosine(ads):
  """Mean cosine [...] of pairs of ad vectors [..., M, d]: 1 where the codes have collapsed."""
  normal, count = normalise(ads), ads.shape[-2]
  total = jnp.square(normal.sum(-2)).sum(-1)
  return (total - count) / max(count * (count - 1), 1)
