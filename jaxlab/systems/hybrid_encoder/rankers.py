"""Other rankers over the same page vectors and token states: the baselines of the second step.

Each is called as `model.HybridRanker` is: pages [B, N, d], mask [B, N], tokens [B, C, L, d],
token_mask [B, C, L] -> scores [B, C].
"""
import flax.linen as nn
import jax.numpy as jnp

from jaxlab.nn.attention import mask_bias
from jaxlab.nn.encoder import PostNormLayer
from jaxlab.systems.hybrid_encoder.model import AdCodes, HybridRanker, Pool


class CrossRanker(nn.Module):
  """Cross encoder: transformer layers over [CLS], pages, [SEP], tokens, and a score of [CLS].

  Attributes:
    layers: number of layers.
    heads: attention heads, a divisor of d.
    width: of the feed-forward layers; 0 for 4 d.
  """
  layers: int = 2
  heads: int = 4
  width: int = 0

  @nn.compact
  def __call__(self, pages, mask, tokens, token_mask):
    shape, width = tokens.shape[:2], pages.shape[-1]
    special = self.param('special', nn.initializers.normal(0.5), (2, width))
    segment = self.param('segment', nn.initializers.normal(0.5), (2, width))
    spread = lambda x: jnp.broadcast_to(x[:, None], (*shape, *x.shape[1:]))
    one = lambda x: jnp.broadcast_to(x, (*shape, 1, width))
    x = jnp.concatenate([one(special[0]), spread(pages + segment[0]), one(special[1]),
                         tokens + segment[1]], axis=2)
    real = jnp.ones((*shape, 1), bool)
    seen = jnp.concatenate([real, spread(mask), real, token_mask], axis=2)
    x = x.reshape(-1, *x.shape[2:])
    bias = mask_bias(seen.reshape(len(x), -1))
    for i in range(self.layers):
      x, _ = PostNormLayer(self.heads, self.width or 4 * width, nn.gelu, name=f'layer{i}',
                           kernel_init=nn.initializers.xavier_uniform())(x, bias)
    return nn.Dense(1, name='out')(x[:, 0])[:, 0].reshape(shape)


class PolyRanker(nn.Module):
  """Poly-encoder: codes summarise the user's pages; the ad's vector attends to the summaries.

  Attributes:
    codes: M.
    queries: width of the ad's pool.
  """
  codes: int = 8
  queries: int = 64

  @nn.compact
  def __call__(self, pages, mask, tokens, token_mask):
    users, _ = AdCodes(self.codes, name='user')(pages, mask)  # [B, M, d]
    ads = Pool('attention', self.queries, name='ad')(tokens, token_mask)
    weights = nn.softmax(jnp.einsum('bcd,bmd->bcm', ads, users))
    return jnp.einsum('bcm,bmd,bcd->bc', weights, users, ads)


class MultiInterestRanker(nn.Module):
  """Several user vectors, by codes; the best of their products with the ad's vector counts.

  Attributes:
    codes: M.
    queries: width of the ad's pool.
  """
  codes: int = 8
  queries: int = 64

  @nn.compact
  def __call__(self, pages, mask, tokens, token_mask):
    users, _ = AdCodes(self.codes, name='user')(pages, mask)
    ads = Pool('attention', self.queries, name='ad')(tokens, token_mask)
    return jnp.einsum('bcd,bmd->bcm', ads, users).max(-1)


class MaxSimRanker(nn.Module):
  """Late interaction as in ColBERT: each token counts by the page that is most like it."""

  @nn.compact
  def __call__(self, pages, mask, tokens, token_mask):
    dense = lambda name: nn.Dense(pages.shape[-1], use_bias=False, name=name)
    like = jnp.einsum('bcld,bnd->bcln', dense('token')(tokens), dense('page')(pages))
    best = jnp.where(mask[:, None, None], like, -1e9).max(-1)
    return jnp.where(token_mask & mask.any(-1)[:, None, None], best, 0).sum(-1)


class SiameseRanker(nn.Module):
  """Two vectors and their inner product, as in retrieval, trained for the second step."""
  queries: int = 64

  @nn.compact
  def __call__(self, pages, mask, tokens, token_mask):
    user = Pool('attention', self.queries, name='user')(pages, mask)
    ads = Pool('attention', self.queries, name='ad')(tokens, token_mask)
    return jnp.einsum('bd,bcd->bc', user, ads)


RANKERS = {'hybrid': HybridRanker, 'cross': CrossRanker, 'poly': PolyRanker,
           'multi_interest': MultiInterestRanker, 'maxsim': MaxSimRanker,
           'siamese': SiameseRanker}
