"""Errors of depth and point maps that are aligned already (MoGe's evaluation, arXiv 2410.19115)."""
import numpy as np

THRESHOLDS = np.linspace(0.05, 0.25, 10)


def depth_error(pred, true):
  """(mean relative error, share within a ratio of 1.25) of depths [N]; NaN where there is none."""
  pred, true = np.asarray(pred, np.float64), np.asarray(true, np.float64)
  if not true.size:
    return np.nan, np.nan
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio = np.maximum(true / pred, pred / true)
  good = (ratio < 1.25) & (pred > 0)
  return float(np.mean(np.abs(pred - true) / (true + 1e-6))), float(np.mean(good))


def point_error(pred, true, unit=None):
  """(mean relative error, share of near points) of points [N, 3]; NaN where there is none.

  Args:
    pred: [N, 3].
    true: [N, 3].
    unit: length that errors are relative to; by default each true point's distance for the error,
      and for the share (below a quarter) the smaller one of both points'.
  """
  pred, true = np.asarray(pred, np.float64), np.asarray(true, np.float64)
  if not true.size:
    return np.nan, np.nan
  error = np.linalg.norm(pred - true, axis=-1)
  if unit is not None:
    return float(np.mean(error) / unit), float(np.mean(error < 0.25 * unit))
  length = np.linalg.norm(true, axis=-1)
  near = error < 0.25 * np.minimum(length, np.linalg.norm(pred, axis=-1))
  return float(np.mean(error / (length + 1e-6))), float(np.mean(near))


def boundary_f1(pred, true, mask, radius=1):
  """F1 of occluding boundaries, averaged over ten thresholds weighted by themselves.

  A pixel and a neighbour at most `radius` away are a boundary if the neighbour is deeper by the
  threshold (.05 to .25); both have to be valid.

  Args:
    pred: depth [H, W]; its scale does not matter.
    true: [H, W].
    mask: bool [H, W], where `true` is valid.
    radius: in pixels.
  """
  h, w = mask.shape
  steps = range(-radius, radius + 1)
  inner = (slice(radius, h - radius), slice(radius, w - radius))
  ratios = {'pred': [], 'true': []}
  valid = []
  fill = {'pred': np.where(mask, pred, 1.0), 'true': np.where(mask, true, 1.0)}
  for i in steps:
    for j in steps:
      if 0 < i * i + j * j <= radius * radius:
        there = (slice(radius + i, h - radius + i), slice(radius + j, w - radius + j))
        valid.append(mask[inner] & mask[there])
        for name, depth in fill.items():
          ratios[name].append(depth[there] / depth[inner])
  valid = np.stack(valid)
  pred, true = (np.stack(ratios[name]) for name in ('pred', 'true'))
  scores = []
  for threshold in THRESHOLDS:
    found, real = valid & (pred > 1 + threshold), valid & (true > 1 + threshold)
    both = (found & real).sum()
    total = found.sum() + real.sum()
    scores.append(2 * both / total if total else 0.0)
  return float(np.average(scores, weights=THRESHOLDS))
