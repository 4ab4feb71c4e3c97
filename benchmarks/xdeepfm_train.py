"""A training step of xDeepFM against DeepCTR-Torch and FuxiCTR, and what row-wise updates cost.

  python -m benchmarks.xdeepfm_train [--json=FILE] [--batch=4096] [--vocabulary=1000000]

All sides see the same ids (39 fields, uniform), labels, sizes (D 10, CIN 100-100-50, DNN 400-400,
no regularisation, Adam 1e-3, float32) and number of threads. DeepCTR-Torch runs its own model in
split mode; of FuxiCTR its own layers (interaction network, MLP) are put together as its xDeepFM
does, in direct mode, since it has no other. Their weights are copied to ours first and the first
loss must agree to 1e-5. 'sparse' is the peer with sparse gradients of its tables under SparseAdam.
The steps of all sides alternate. Last come row-wise steps of a large and a small vocabulary with
equally many unique rows. It wants deepctr-torch and fuxictr beside torch.
"""
import functools
import os
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks import comparison
from jaxlab.systems.xdeepfm import data, model, task, weights
from jaxlab.train import TrainState, train_step

BATCH = flags.DEFINE_integer('batch', 4096, 'Rows of a batch.', lower_bound=1)
VOCABULARY = flags.DEFINE_integer('vocabulary', 1_000_000, 'Features in all.', lower_bound=39)
ROUNDS = flags.DEFINE_integer('rounds', 3, 'Turns of each side.', lower_bound=1)
STEPS = flags.DEFINE_integer('steps', 4, 'Timed steps of a turn.', lower_bound=1)
WARM_UP = flags.DEFINE_integer('warm_up', 3, 'Steps before the timed ones.', lower_bound=1)
FORMULATION = flags.DEFINE_enum('formulation', 'outer', ['outer', 'scan'], 'Of our CIN.')
REMAT = flags.DEFINE_bool('remat', True, 'Whether our CIN recomputes its products.')

FIELDS, DIM, CIN, DNN, RATE = 39, 10, (100, 100, 50), (400, 400), 1e-3
SMALL, LARGE = 100_000, 10_000_000


def make_batches(vocabulary, size, count, seed=0, unique=None):
  """Batches of ids [size, 39] in 0..vocabulary-1 by field, and labels; from `unique` ids if so."""
  rng = np.random.default_rng(seed)
  per_field = vocabulary // FIELDS
  offsets = (np.arange(FIELDS) * per_field).astype(np.int32)
  batches = []
  for _ in range(count):
    if unique is None:
      ids = rng.integers(0, per_field, (size, FIELDS)).astype(np.int32) + offsets
    else:
      pool = rng.choice(per_field, unique // FIELDS, replace=False)
      ids = pool[rng.integers(0, len(pool), (size, FIELDS))].astype(np.int32) + offsets
    batches.append({'ids': ids, 'label': rng.integers(0, 2, size).astype(np.float32),
                    'weight': np.ones(size, np.float32)})
  return batches


class Ours:
  """Our compiled step on a donated state."""

  def __init__(self, vocabulary, batch, *, split_half, rows, params=None):
    net = model.make_model(
        {'name': 'xdeepfm', 'dim': DIM, 'dnn': {'features': DNN},
         'cin': {'layer_sizes': CIN, 'split_half': split_half, 'use_bias': True,
                 'formulation': FORMULATION.value, 'remat': REMAT.value}}, vocabulary, FIELDS)
    problem = task.from_model(net, data.Layout(vocabulary, FIELDS, FIELDS, True), {}, rows=rows)
    # Buffers of our own: a donated state may hold none of the peer's.
    params = jax.tree.map(jnp.array, params or problem.init(jax.random.key(0))['params'])
    optimizer, zero = optax.adam(RATE), functools.partial(jnp.zeros, (), jnp.int32)
    opt_state = jax.tree.map(jnp.array, optimizer.init(params))
    self._state = TrainState(zero(), params, {}, opt_state, jax.random.key(1), zero(), zero(), {})
    step = functools.partial(train_step, task=problem, optimizer=optimizer,
                             trainable=jax.tree.map(lambda _: True, params))
    start = time.perf_counter()
    self._program = jax.jit(step, donate_argnums=0).lower(self._state, {}, batch).compile()
    self.compile_seconds = time.perf_counter() - start

  def step(self, batch):
    """The loss before the step."""
    self._state, metrics = self._program(self._state, {}, batch)
    jax.block_until_ready(self._state)
    return float(metrics['loss'])


class Torch:
  """A step of a torch module (ids [B, 39] long) -> probability or logit [B]."""

  def __init__(self, module, forward, loss, sparse):
    import torch
    self._torch, self.module = torch, module
    self._forward, self._loss = forward, loss
    tables = [p for name, p in module.named_parameters() if 'embedding' in name]
    others = [p for name, p in module.named_parameters() if 'embedding' not in name]
    self._optimizers = [torch.optim.Adam(others, lr=RATE),
                        torch.optim.SparseAdam(tables, lr=RATE) if sparse else
                        torch.optim.Adam(tables, lr=RATE)]

  def step(self, batch):
    """The loss before the step."""
    torch = self._torch
    for optimizer in self._optimizers:
      optimizer.zero_grad()
    loss = self._loss(self._forward(torch.from_numpy(batch['ids']).long()),
                      torch.from_numpy(batch['label']))
    loss.backward()
    for optimizer in self._optimizers:
      optimizer.step()
    return float(loss.detach())


def deepctr(vocabulary, sparse):
  """(Torch side, params of ours) of DeepCTR-Torch's xDeepFM."""
  import torch
  from deepctr_torch.inputs import SparseFeat
  from deepctr_torch.models import xDeepFM
  names, per_field = [f's{i}' for i in range(FIELDS)], vocabulary // FIELDS
  columns = [SparseFeat(name, per_field, embedding_dim=DIM) for name in names]
  module = xDeepFM(columns, columns, dnn_hidden_units=DNN, cin_layer_size=CIN,
                   cin_split_half=True, cin_activation='linear', l2_reg_linear=0,
                   l2_reg_embedding=0, l2_reg_dnn=0, l2_reg_cin=0, init_std=0.1, seed=0)
  if sparse:
    for part in module.modules():
      if isinstance(part, torch.nn.Embedding):
        part.sparse = True
  offsets = torch.arange(FIELDS) * per_field
  forward = lambda ids: module((ids - offsets).float()).squeeze(-1)
  side = Torch(module, forward, torch.nn.functional.binary_cross_entropy, sparse)
  net = model.make_model({'name': 'xdeepfm', 'dim': DIM, 'dnn': {'features': DNN},
                          'cin': {'layer_sizes': CIN, 'use_bias': True}}, vocabulary, FIELDS)
  template = jax.eval_shape(
      lambda: net.init(jax.random.key(0), jnp.zeros((1, FIELDS), jnp.int32)))['params']
  state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
  return side, _padded(weights.params_from_torch, state, template, names, vocabulary)


def _padded(convert, state, template, names, vocabulary):
  """The converted params; the few features beyond 39 equal fields get rows of zeros."""
  kept = vocabulary // FIELDS * FIELDS
  cut = lambda x: jax.ShapeDtypeStruct((kept, *x.shape[1:]), x.dtype) if (
      x.shape[:1] == (vocabulary,)) else x
  grow = lambda x: np.pad(x, [(0, vocabulary - kept)] + [(0, 0)] * (x.ndim - 1)) if (
      x.shape[:1] == (kept,)) else x
  return jax.tree.map(grow, convert(state, jax.tree.map(cut, template), names))


def fuxictr(vocabulary):
  """(Torch side, params of ours) of FuxiCTR's interaction network and MLP."""
  import torch
  from fuxictr.pytorch.layers import CompressedInteractionNet, MLP_Block

  class Net(torch.nn.Module):
    """Linear part, CIN and DNN over one table."""

    def __init__(self):
      super().__init__()
      self.embedding = torch.nn.Embedding(vocabulary, DIM)
      self.linear_embedding = torch.nn.Embedding(vocabulary, 1)
      self.bias = torch.nn.Parameter(torch.zeros(1))
      self.cin = CompressedInteractionNet(FIELDS, list(CIN), output_dim=1)
      self.dnn = MLP_Block(FIELDS * DIM, hidden_units=list(DNN), hidden_activations='ReLU',
                           output_dim=1)
      torch.nn.init.normal_(self.embedding.weight, std=0.1)
      torch.nn.init.normal_(self.linear_embedding.weight, std=0.1)

    def forward(self, ids):
      x = self.embedding(ids)
      linear = self.linear_embedding(ids).sum((1, 2)) + self.bias
      return linear + self.cin(x).squeeze(-1) + self.dnn(x.flatten(1)).squeeze(-1)

  torch.manual_seed(0)
  module = Net()
  array = lambda p: p.detach().numpy().copy()
  dense = [m for m in module.dnn.modules() if isinstance(m, torch.nn.Linear)]
  kernels = [{'kernel': array(m.weight).T, 'bias': array(m.bias)} for m in dense]
  cin = {'out': {'kernel': array(module.cin.fc.weight).T, 'bias': array(module.cin.fc.bias)}}
  convolutions = [m for m in module.cin.modules() if isinstance(m, torch.nn.Conv1d)]
  for k, conv in enumerate(convolutions, 1):
    # Its products are indexed j of X0 first.
    filters = array(conv.weight).reshape(len(conv.weight), FIELDS, -1)
    cin[f'W{k}'], cin[f'b{k}'] = filters.swapaxes(1, 2), array(conv.bias)
  params = {
      'embedding': {'table': {'embedding': array(module.embedding.weight)}},
      'linear': {'table': {'weight': array(module.linear_embedding.weight)[:, 0]},
                 'bias': array(module.bias).reshape(())},
      'cin': cin,
      'dnn': {'out': kernels[-1], **{f'Dense_{k}': part for k, part in enumerate(kernels[:-1])}}}
  return Torch(module, module, torch.nn.functional.binary_cross_entropy_with_logits,
               sparse=False), params


def alternate(sides, batches):
  """Median seconds of a step of each side, turn by turn."""
  times = {name: [] for name in sides}
  for side in sides.values():
    for i in range(WARM_UP.value):
      side.step(batches[i % len(batches)])
  for turn in range(ROUNDS.value):
    for name, side in sides.items():
      for i in range(STEPS.value):
        batch = batches[(turn * STEPS.value + i) % len(batches)]
        start = time.perf_counter()
        side.step(batch)
        times[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in times.items()}


def compare(name, peer, params, batches, *, split_half, rows):
  """A row of the table for a peer; both start from the same weights."""
  ours = Ours(VOCABULARY.value, batches[0], split_half=split_half, rows=rows, params=params)
  losses = ours.step(batches[0]), peer.step(batches[0])
  np.testing.assert_allclose(*losses, atol=1e-5)
  seconds = alternate({'ours': ours, 'peer': peer}, batches)
  print(f'{name}: first losses {losses[0]:.6f} {losses[1]:.6f}, compiled in '
        f'{ours.compile_seconds:.1f} s, {BATCH.value / seconds["ours"]:.0f} rows/s, '
        f'{seconds["peer"] / seconds["ours"]:.2f}x the peer', flush=True)
  return _row(name, seconds['ours'], seconds['peer'])


def growth(batches_of):
  """The row of a row-wise step at the small vocabulary (as the peer) and the large one (ours)."""
  sides, batches = {}, {}
  for size in (LARGE, SMALL):
    batches[size] = batches_of(size)
    sides[size] = Ours(size, batches[size][0], split_half=True, rows=True)
  times = {size: [] for size in sides}
  for turn in range(WARM_UP.value + ROUNDS.value * STEPS.value):
    for size, side in sides.items():
      start = time.perf_counter()
      side.step(batches[size][turn % len(batches[size])])
      if turn >= WARM_UP.value:
        times[size].append(time.perf_counter() - start)
  large, small = (statistics.median(times[size]) for size in (LARGE, SMALL))
  return _row(f'row-wise, vocabulary {LARGE:,} (ours) against {SMALL:,}', large, small)


def _row(name, ours, peer):
  return {'name': name, 'ours': 1e3 * ours, 'peer': 1e3 * peer, 'unit': 'ms', 'ratio': peer / ours}


def main(_):
  import torch
  threads = len(os.sched_getaffinity(0))
  torch.set_num_threads(threads)
  batches = make_batches(VOCABULARY.value, BATCH.value, 4)
  rows = []
  for sparse, name in ((False, 'dense, split: DeepCTR-Torch'), (True, 'row-wise: its sparse mode')):
    rows.append(compare(name, *deepctr(VOCABULARY.value, sparse), batches, split_half=True,
                        rows=sparse))
  rows.append(compare('dense, direct: FuxiCTR', *fuxictr(VOCABULARY.value), batches,
                      split_half=False, rows=False))
  rows.append(growth(lambda size: make_batches(size, BATCH.value, 4, unique=SMALL // 2)))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(f'a step of {BATCH.value} rows, {VOCABULARY.value:,} features, {threads} thread(s), jax '
        f'{jax.__version__}, torch {torch.__version__}, peak {peak:.1f} GiB of all sides together')
  comparison.show(rows, 'name')
  bars = (1.2, 2.0, 1.2, 1 / 1.2)
  short = [row['name'] for row, bar in zip(rows, bars) if row['ratio'] < bar]
  if short:
    sys.exit(f'below the bar: {"; ".join(short)}')


if __name__ == '__main__':
  app.run(main)
