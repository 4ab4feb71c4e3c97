"""Robust aggregators against NumPy and PyTorch versions of the same formulas.

  python -m benchmarks.aggregators [--clients=100] [--size=1000000] [--json=FILE]

All reject what is not finite, and all use the same number of cores. Distances come from inner
products about one of the updates, as ours do. PyTorch rows are left out where it is not installed.
The residual-based rule runs at --residual_size. The exit status is 1 where a bar is missed: faster
than NumPy everywhere, than PyTorch for mean, Krum, RFA, DnC and FedRA, and FedRA at most 1.5 times
multi-Krum.
"""
import functools
import math
import sys

import jax
import numpy as np
from absl import app, flags

from benchmarks import comparison
from jaxlab.federated import aggregators

CLIENTS = flags.DEFINE_integer('clients', 100, 'Clients.', lower_bound=15)
SIZE = flags.DEFINE_integer('size', 1_000_000, 'Parameters of a message.', lower_bound=10)
RESIDUAL_SIZE = flags.DEFINE_integer('residual_size', 10_000, 'The same for the residual rule.')
REPETITIONS = flags.DEFINE_integer('repetitions', 3, 'Timed calls of each.', lower_bound=1)

F, BOUND, TAU, COORDINATES, M_MAX = 10, 1000.0, 1000.0, 10_000, 30
TIES = 1e-5  # share of a message's numbers that a tie may decide
BEAT_TORCH = ('mean', 'krum', 'rfa', 'dnc', 'fedra')
RULES = {
    'mean': aggregators.weighted_mean, 'median': aggregators.median,
    'trimmed_mean': lambda: aggregators.trimmed_mean(beta=F),
    'norm_bound': lambda: aggregators.norm_bound(bound=BOUND),
    'krum': lambda: aggregators.krum(num_malicious=F),
    'multi_krum': lambda: aggregators.multi_krum(num_malicious=F),
    'bulyan': lambda: aggregators.bulyan(num_malicious=F),
    'rfa': aggregators.rfa, 'centered_clip': lambda: aggregators.centered_clip(tau=TAU),
    'dnc': lambda: aggregators.dnc(num_malicious=F, coordinates=COORDINATES),
    'fedra': lambda: aggregators.fedra(m_max=M_MAX), 'residual': aggregators.residual,
}


class Peer:
  """The formulas in NumPy or in PyTorch: `lib` has the functions that both call alike."""

  def __init__(self, lib):
    self.lib = lib
    self.torch = lib is not np
    self.sort = (lambda x: lib.sort(x, 0).values) if self.torch else (lambda x: np.sort(x, 0))
    self.norm = lambda x: lib.sqrt((x * x).sum(1))

  def rejected(self, updates, sizes):
    """Sizes, 0 where an update is not finite: one pass, as in ours."""
    good = self.lib.isfinite((updates * 0).sum(1)) & self.lib.isfinite(sizes) & (sizes >= 0)
    if not bool(good.all()):
      raise NotImplementedError('the benchmark has finite updates')
    return sizes

  def distances(self, updates):
    """Squared distances about the update of median norm."""
    norms = self.norm(updates)
    moved = updates - updates[self.lib.argsort(norms)[(len(norms) - 1) // 2]]
    products = moved @ moved.T
    own = products.diagonal()
    apart = (own[:, None] + own[None, :] - 2 * products).clip(0)
    return apart * (1 - self.lib.eye(len(own)))

  def krum_scores(self, distances):
    """Of squared distances."""
    return self.sort(distances.T)[1:len(distances) - F - 1].sum(0)  # row 0 is the distance to self

  def mean(self, updates, sizes):
    sizes = self.rejected(updates, sizes)
    return sizes @ updates / sizes.sum()

  def middle(self, ordered):
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2

  def median(self, updates, sizes):
    self.rejected(updates, sizes)
    return self.middle(self.sort(updates))

  def trimmed_mean(self, updates, sizes):
    self.rejected(updates, sizes)
    return self.sort(updates)[F:-F].mean(0)

  def norm_bound(self, updates, sizes):
    sizes = self.rejected(updates, sizes)
    scale = (BOUND / (self.norm(updates) + 1e-6)).clip(max=1) if self.torch else np.minimum(
        1, BOUND / (self.norm(updates) + 1e-6))
    return (sizes * scale) @ updates / sizes.sum()

  def krum(self, updates, sizes):
    self.rejected(updates, sizes)
    return updates[self.krum_scores(self.distances(updates)).argmin()]

  def multi_krum(self, updates, sizes):
    self.rejected(updates, sizes)
    keep = self.lib.argsort(self.krum_scores(self.distances(updates)))[:len(updates) - F]
    return updates[keep].mean(0)

  def bulyan(self, updates, sizes):
    self.rejected(updates, sizes)
    distances, left, picks = self.distances(updates), list(range(len(updates))), []
    for _ in range(len(updates) - 2 * F):
      count = max(len(left) - F - 2, 1)
      among = distances[left][:, left]
      chosen = left[int(self.sort(among)[1:count + 1].sum(0).argmin())]
      picks.append(chosen)
      left.remove(chosen)
    rows = updates[picks]
    off = abs(rows - self.middle(self.sort(rows)))
    order = self.lib.argsort(off, 0)[:len(picks) - 2 * F]
    taken = rows.gather(0, order) if self.torch else np.take_along_axis(rows, order, 0)
    return taken.mean(0)

  def rfa(self, updates, sizes):
    sizes = self.rejected(updates, sizes)
    shares = sizes / sizes.sum()
    center = shares @ updates
    for _ in range(10):
      pull = shares / self.norm(updates - center).clip(1e-6)
      center = pull @ updates / pull.sum()
    return center

  def centered_clip(self, updates, sizes):
    self.rejected(updates, sizes)
    center = 0 * updates[0]
    for _ in range(3):
      off = updates - center
      scale = (TAU / self.norm(off)).clip(max=1) if self.torch else np.minimum(
          1, TAU / self.norm(off))
      center = center + scale @ off / len(updates)
    return center

  def dnc(self, updates, sizes):
    self.rejected(updates, sizes)
    size, count = updates.shape[1], min(COORDINATES, updates.shape[1])
    if self.torch:
      part = updates[:, self.lib.randperm(size)[:count]]
    else:
      part = updates[:, np.random.default_rng(0).permutation(size)[:count]]
    centred = part - part.mean(0)
    direction = self.lib.linalg.svd(centred, full_matrices=False)[2][0]
    keep = self.lib.argsort((centred @ direction)**2)[:len(updates) - F]
    return updates[keep].mean(0)

  def fedra(self, updates, sizes):
    sizes = self.rejected(updates, sizes)
    lib, n = self.lib, len(updates)
    distances = lib.sqrt(self.distances(updates))
    scores = (lib.sqrt(sizes[:, None] * sizes[None, :]) * distances).sum(1)
    ordered = self.sort(scores)
    ordered = ordered / self.middle(ordered)
    best, m_hat = -math.inf, 0
    for m in range(M_MAX + 1):
      total = 0.0
      for group in (ordered[:n - m], ordered[n - m:]):
        k = len(group)
        if k:
          square = float(((group - group.mean())**2).sum())
          variance = max(square / k, 0.01)
          total += -k / 2 * math.log(2 * math.pi * variance) - square / 2 / variance
          total += k * math.log(k / n)
      if total > best:
        best, m_hat = total, m
    keep = lib.argsort(scores)[:n - m_hat]
    return sizes[keep] @ updates[keep] / sizes[keep].sum()

  def residual(self, updates, sizes):
    self.rejected(updates, sizes)
    n, values, confidences = len(updates), [], 0
    for start in range(0, updates.shape[1], 500):
      y = updates[:, start:start + 500]
      ordered = self.sort(y)
      order = self.lib.argsort(y, 0)
      gap = self.lib.arange(n)[:, None] - self.lib.arange(n)[None, :]
      gap = gap + self.lib.eye(n)
      slopes = (ordered[:, None] - ordered[None]) / gap[..., None]
      slopes = (slopes.float() if self.torch else slopes.astype(np.float32))
      slopes[range(n), range(n)] = math.inf
      inner = self.sort(slopes)  # the slope to itself is last: n - 1 are left
      slope = self.middle(self.sort(self.middle(inner[:n - 1])))
      rank = self.lib.arange(n)[:, None]
      line = self.middle(ordered) - slope * (n - 1) / 2 + slope * rank
      off = ordered - line
      spread = 1.4826 * (1 + 5 / (n - 1)) * self.middle(self.sort(abs(off))[1:]) + 1e-7
      leverage = 1 / n + (rank - (n - 1) / 2)**2 / ((n**3 - n) / 12)
      ratio = off / spread / (1 - leverage)**0.5
      bound = 2 * (2 / n)**0.5
      weight = (bound / abs(ratio).clip(1e-30)).clip(None, 1)
      deviation = weight.std(0) if self.torch else weight.std(0, ddof=1)
      replaced = self.lib.where(weight < 0.1, line, ordered)
      back = self.lib.argsort(order, 0)
      take = (lambda x, b=back: x.gather(0, b)) if self.torch else (
          lambda x, b=back: np.take_along_axis(x, b, 0))
      replaced = replaced.float() if self.torch else replaced.astype(np.float32)
      values.append(take(replaced))
      confidences = confidences + take(weight * deviation).sum(1)
    shares = (confidences / confidences.max())**2
    shares = (shares / shares.sum()).float() if self.torch else (shares / shares.sum()).astype(
        np.float32)
    joined = self.lib.cat(values, 1) if self.torch else np.concatenate(values, 1)
    return shares @ joined


def peers():
  """{name: (Peer, from NumPy)} of the libraries that are here."""
  found = {'NumPy': (Peer(np), lambda x: x)}
  try:
    import torch
    found['PyTorch'] = (Peer(torch), torch.from_numpy)
  except ImportError:
    print('PyTorch is not installed: no rows for it')
  return found


def measure(name, updates, sizes):
  """Seconds of ours and of each peer, called in turns; checks first that they agree."""
  aggregator = RULES[name]()
  state = aggregator.init(updates[0])
  program, key = jax.jit(lambda u, q: aggregator.apply(state, u, q, key)[0]), jax.random.key(0)
  placed = jax.device_put((updates, sizes))
  calls = {'ours': lambda: jax.block_until_ready(program(*placed))}
  for peer, (formulas, convert) in peers().items():
    calls[peer] = functools.partial(getattr(formulas, name), convert(updates), convert(sizes))
  results = {who: np.asarray(call()) for who, call in calls.items()}
  for who, result in results.items():
    # Where two messages are as far from Bulyan's median as each other, rounding chooses one.
    far = ~np.isclose(result, results['ours'], rtol=1e-2, atol=1e-4)
    if far.sum() > TIES * far.size:
      raise AssertionError(f'{name}: {who} and ours differ in {far.sum()} of {far.size} numbers')
  return comparison.medians(calls, REPETITIONS.value)


def main(_):
  rng = np.random.default_rng(0)
  updates = rng.normal(size=(CLIENTS.value, SIZE.value)).astype(np.float32)
  sizes = rng.integers(20, 60, CLIENTS.value).astype(np.float32)
  # Outliers, so that all agree on whom to drop; DnC, from any coordinates, by what they share.
  updates[:F] = 3 * (rng.normal(size=SIZE.value).astype(np.float32) - updates[:F])
  rows, missed, ours = [], [], {}
  print(f'{CLIENTS.value} clients x {SIZE.value} parameters, residual x {RESIDUAL_SIZE.value}, on '
        f'{jax.devices()[0].device_kind}')
  print(f'{"rule: peer":28} {"ours":>9} {"peer":>9} {"unit":>5} {"peer/ours":>10}')
  for name in RULES:
    part = updates[:, :RESIDUAL_SIZE.value].copy() if name == 'residual' else updates
    seconds = measure(name, part, sizes)
    ours[name] = seconds.pop('ours')
    for peer, value in seconds.items():
      rows.append({'name': f'{name}: {peer}', 'ours': 1e3 * ours[name], 'peer': 1e3 * value,
                   'unit': 'ms', 'ratio': value / ours[name]})
      print('{name:28} {ours:9.1f} {peer:9.1f} {unit:>5} {ratio:10.2f}'.format(**rows[-1]),
            flush=True)
      if value < ours[name] and (peer == 'NumPy' or name in BEAT_TORCH):
        missed.append(rows[-1]['name'])
  rows.append({'name': 'fedra: multi_krum', 'ours': 1e3 * ours['fedra'],
               'peer': 1e3 * ours['multi_krum'], 'unit': 'ms',
               'ratio': ours['multi_krum'] / ours['fedra']})
  print('{name:28} {ours:9.1f} {peer:9.1f} {unit:>5} {ratio:10.2f}'.format(**rows[-1]))
  if ours['fedra'] > 1.5 * ours['multi_krum']:
    missed.append('fedra: multi_krum')
  comparison.write(rows)
  if missed:
    sys.exit(f'missed: {", ".join(missed)}')


if __name__ == '__main__':
  app.run(main)
