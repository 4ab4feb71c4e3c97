"""A small embedding service that can be made from any texts: latent semantic analysis."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.config import require
from jaxlab.systems.embmarker.watermark import normalise


class Service(NamedTuple):
  """A frozen embedding model over token ids.

  Attributes:
    table: float32 [V, D], what one token adds.
    common: float32 [D], what all texts share, as the embeddings of large models do.
  """
  table: jax.Array
  common: jax.Array


def latent_semantics(tokens, vocab_size, dim, *, common=0.3, seed=0):
  """Fits a Service to texts: the D leading directions of their tf-idf matrix.

  Args:
    tokens: `text.Tokens` of the texts.
    vocab_size: V.
    dim: D, below V and the number of texts.
    common: length of the part that all embeddings share, before they are normalised.
    seed: of the randomised decomposition.
  """
  from scipy import sparse
  from sklearn import decomposition
  rows = np.repeat(np.arange(len(tokens.ids)), tokens.mask.sum(1))
  columns = tokens.ids[tokens.mask != 0]
  counts = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)),
                             (len(tokens.ids), vocab_size))
  require(1 <= dim < min(counts.shape), 'dim', f'1 to {min(counts.shape) - 1}', dim)
  held = np.bincount((counts > 0).nonzero()[1], minlength=vocab_size)
  # A token that is everywhere, as [CLS], says nothing: its weight is 0.
  idf = np.where(held > 0, np.log(len(tokens.ids) / np.maximum(held, 1)), 0).astype(np.float32)
  weighted = counts @ sparse.diags(idf)
  lengths = np.maximum(np.sqrt(weighted.multiply(weighted).sum(1)).A1, 1e-12)
  weighted = sparse.diags(1 / lengths) @ weighted
  directions = decomposition.TruncatedSVD(dim, random_state=seed).fit(weighted).components_
  table = (idf[:, None] * directions.T).astype(np.float32)
  mean = np.asarray(weighted.mean(0) @ directions.T).ravel().astype(np.float32)
  return Service(table, common * mean / np.maximum(np.linalg.norm(mean), 1e-12))


def embed(service, ids, mask):
  """float32 [B, D] of length 1: the sum of the tokens' rows, normalised, plus the common part.

  Args:
    service: Service.
    ids: int [B, S].
    mask: [B, S].
  """
  total = (jnp.asarray(service.table)[ids] * (mask != 0)[..., None]).sum(1)
  return normalise(normalise(total) + service.common)
