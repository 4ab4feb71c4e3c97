"""What training did to the weights: spectra, directions and places of parameter updates.

EffOPD (arXiv 2605.11739), section on parameter dynamics. An update is W_trained - W_base. Functions
work on one matrix [out, in], or on {public checkpoint name: array} as
`decoder_lm.params_to_torch` gives it; NumPy on the host, float64 if given float64.
"""
import re
from typing import NamedTuple

import numpy as np

KINDS = ('self_attn', 'mlp')
_MATRIX = re.compile(
    r'(^|\.)layers\.(\d+)\.(self_attn|mlp)\.([qkvo]|gate|up|down)_proj(\.weight)?$')
_EMBEDDING = re.compile(r'(^|\.)embed_tokens(\.weight)?$')


class Spectrum(NamedTuple):
  """Metrics of the singular values s of an update.

  Attributes:
    fro: Frobenius norm.
    spectral: the largest, s_1.
    ratio: s_1 / fro.
    effrank: exp(entropy of s / sum(s)), the effective rank; of the values, not their squares.
    top1pct: sqrt(sum of the first 1 % of s^2 / sum of all), at least one value.
  """
  fro: float
  spectral: float
  ratio: float
  effrank: float
  top1pct: float


class Alignment(NamedTuple):
  """How the leading directions of an update agree with those of the final one.

  Attributes:
    paired_abs_cos: [k], |cos| of the i-th left singular vectors of both; the sign is arbitrary.
    subspace_proj: [k], mean squared cosine of the principal angles between the leading q left
      singular vectors, q = 1 .. k: what no rotation inside a subspace changes.
    min_principal_cos: [k], the smallest of these cosines.
    flat_cos: cosine of the two updates as vectors.
  """
  paired_abs_cos: np.ndarray
  subspace_proj: np.ndarray
  min_principal_cos: np.ndarray
  flat_cos: float


def update(trained, base):
  """{name: trained - base}."""
  return {name: trained[name] - base[name] for name in base}


def matrices(tree):
  """The attention and MLP matrices among {name: array}."""
  return {name: value for name, value in tree.items() if _MATRIX.search(name)}


def place_of(name):
  """(layer from 0, 'self_attn' or 'mlp') of a matrix's name, or None for any other name."""
  found = _MATRIX.search(name)
  return (int(found.group(2)), found.group(3)) if found else None


def svd(matrix, gram=False):
  """(U, s, V^T) with s falling.

  Args:
    matrix: [m, n].
    gram: eigenvectors of the smaller of M M^T and M^T M instead: for large matrices. Squaring loses
      half the digits, so values below about 3e-4 of the largest (float32) are noise.
  """
  if not gram:
    return np.linalg.svd(matrix, full_matrices=False)
  if matrix.shape[0] > matrix.shape[1]:
    u, s, vt = svd(matrix.T, gram=True)
    return vt.T, s, u.T
  values, vectors = np.linalg.eigh(matrix @ matrix.T)
  s, u = np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1]
  return u, s, (u.T @ matrix) / np.maximum(s, np.finfo(s.dtype).tiny)[:, None]


def spectrum(matrix, gram=False):
  """The `Spectrum` of an update [m, n]; all zero for a zero matrix."""
  s = svd(matrix, gram)[1].astype(np.float64)
  s = s[s > 0]
  if not len(s):
    return Spectrum(0.0, 0.0, 0.0, 0.0, 0.0)
  fro, share = np.sqrt(np.sum(s * s)), s / s.sum()
  leading = s[:-(-len(s) // 100)]
  return Spectrum(float(fro), float(s[0]), float(s[0] / fro),
                  float(np.exp(-np.sum(share * np.log(share)))),
                  float(np.sqrt(np.sum(leading * leading)) / fro))


def mean_spectrum(updates):
  """The mean `Spectrum` over the attention and MLP matrices of an update."""
  rows = [spectrum(value) for value in matrices(updates).values()]
  return Spectrum(*(float(x) for x in np.mean(rows, axis=0)))


def alignment(matrix, final, k):
  """The `Alignment` of an update with the final one over k directions."""
  (u, s, _), (w, t, _) = svd(matrix), svd(final)
  k = min(k, len(s), len(t))
  cosines = u[:, :k].T @ w[:, :k]
  principal = [np.linalg.svd(cosines[:q, :q], compute_uv=False) for q in range(1, k + 1)]
  norms = np.linalg.norm(matrix) * np.linalg.norm(final)
  return Alignment(np.abs(np.diag(cosines)), np.array([np.mean(c * c) for c in principal]),
                   np.array([c[-1] for c in principal]),
                   float(np.sum(matrix * final) / (norms or 1)))


def compactness(updates):
  """Share of variance of the first two principal components of a trajectory's top directions.

  Args:
    updates: sequence of the same matrix's updates [m, n] at several checkpoints. Their top left
      singular vectors are signed alike and centred.
  """
  tops = np.stack([svd(matrix)[0][:, 0] for matrix in updates])
  tops = tops * np.where(tops @ tops[-1] < 0, -1, 1)[:, None]
  variance = np.square(np.linalg.svd(tops - tops.mean(0), compute_uv=False))
  return float(variance[:2].sum() / variance.sum())


class Allocation(NamedTuple):
  """Where an update sits.

  Attributes:
    layers: kind -> [L], sqrt of the summed squared norms of a layer's matrices.
    embedding: Frobenius norm of the embedding's update.
    thirds: [3], share of the matrices' squared norm in the bottom, middle and top third of layers.
  """
  layers: dict[str, np.ndarray]
  embedding: float
  thirds: np.ndarray


def allocation(updates):
  """The `Allocation` of an update over modules and layers."""
  places = {name: place_of(name) for name in matrices(updates)}
  depth = 1 + max(layer for layer, _ in places.values())
  squared = {kind: np.zeros(depth) for kind in KINDS}
  for name, (layer, kind) in places.items():
    squared[kind][layer] += np.sum(np.square(updates[name], dtype=np.float64))
  embedding = [np.linalg.norm(value) for name, value in updates.items() if _EMBEDDING.search(name)]
  whole = sum(squared.values())
  thirds = np.array([part.sum() for part in np.array_split(whole, 3)]) / max(whole.sum(), 1e-300)
  return Allocation({kind: np.sqrt(value) for kind, value in squared.items()},
                    float(embedding[0]) if embedding else 0.0, thirds)


def top_rank(base, trained, k):
  """base + the k leading components of the update, scaled to the whole update's norm."""
  delta = trained - base
  u, s, vt = svd(delta)
  part = (u[:, :k] * s[:k]) @ vt[:k]
  return base + part * (np.linalg.norm(delta) / (np.linalg.norm(part) or 1))


def bottom_rank(base, trained, share=0.5):
  """The last ceil(share * r) of the r components of the update, not scaled: a matrix [m, n]."""
  u, s, vt = svd(trained - base)
  first = len(s) - int(np.ceil(share * len(s)))
  return (u[:, first:] * s[first:]) @ vt[first:]


def scale_to_norm(base, early, final, beta):
  """base + the early update times 1 + beta (||final|| - ||early||) / ||early||.

  Args:
    base: [m, n] or any shape.
    early: parameters of an early checkpoint.
    final: those of the last one; only the norm of their update counts.
    beta: 0 leaves the early checkpoint, 1 reaches the final norm.
  """
  delta = early - base
  norm, target = np.linalg.norm(delta), np.linalg.norm(final - base)
  return base + delta * (1 + beta * (target - norm) / (norm or 1))


def along(base, trained, alpha):
  """{name: base + alpha (trained - base)}, a point of the scaling curve."""
  return {name: base[name] + alpha * (trained[name] - base[name]) for name in base}


def window_layers(centre, num_layers, half=8):
  """Layers from 0 of the window max(1, l - half) .. min(L, l + half) around the 1-based centre l.

  >>> list(window_layers(1, 6, half=2))
  [0, 1, 2]
  """
  return range(max(1, centre - half) - 1, min(num_layers, centre + half))


def in_window(base, trained, layers, kinds):
  """The base with the trained matrices of some layers and kinds of modules put in.

  Args:
    base: {name: array}.
    trained: likewise.
    layers: layers from 0.
    kinds: of `KINDS`.
  """
  chosen = {(layer, kind) for layer in layers for kind in kinds}
  return {name: (trained if place_of(name) in chosen else base)[name] for name in base}


def swap_embedding(trained, base):
  """The trained parameters with the embedding of the base."""
  return {name: (base if _EMBEDDING.search(name) else trained)[name] for name in trained}


def embedding_cosine(trained, base, tokens):
  """Mean cosine between the trained and the base embedding rows of the tokens that occur.

  Args:
    trained: embedding [V, d].
    base: likewise.
    tokens: ids, repeated as they may be.
  """
  rows = np.unique(tokens)
  a, b = trained[rows], base[rows]
  return float(np.mean(np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) *
                                            np.linalg.norm(b, axis=-1))))

