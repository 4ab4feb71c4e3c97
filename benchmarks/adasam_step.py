"""An AdaSAM step against its moments without SAM, and against optax's SAM around the same moments.

  python -m benchmarks.adasam_step [--json=FILE]

Compiled training steps of the digits MLP (64-128-10, batch 50) and of the FEMNIST CNN (batch 32) on
random data, many to a call so that dispatch does not count. The second gradient about doubles a
step; the exit status is 1 if AdaSAM costs more than LIMIT times its moments alone.
"""
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from absl import app, flags

from benchmarks import comparison
from jaxlab import models, optim

REPETITIONS = flags.DEFINE_integer('repetitions', 11, 'Timed calls of each program.', lower_bound=1)

LIMIT = 2.15
RATE, RHO = 1e-3, 0.05
# name -> (model, shape of a batch of inputs, steps in a call)
PROBLEMS = {
    'MLP 64-128-10, batch 50': (models.MLP(10, features=(128,)), (50, 64), 200),
    'CNN, batch 32': (models.CNN(62), (32, 28, 28, 1), 4),
}


def moments_alone():
  """AdaSAM's moments and rate on plain gradients."""
  return optax.chain(optim.scale_by_adasam(), optax.scale(-RATE))


def optimizers(rho):
  """The programs by name; `rho` is traced, so that one compilation serves every radius."""
  ascent = optax.chain(optax.contrib.normalize(), optax.scale(-rho))
  return {
      'adasam': (optim.adasam(RATE, rho), lambda gradient: gradient),
      'scale_by_adasam': (moments_alone(), lambda gradient: gradient),
      'optax.contrib.sam': (optax.contrib.sam(moments_alone(), ascent, opaque_mode=True),
                            lambda gradient: lambda params, _: gradient(params)),
  }


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(name, model, params, batches, rho):
  """Parameters after one step of the optimizer `name` a batch of `batches` [steps, B, ...]."""
  optimizer, as_grad_fn = optimizers(rho)[name]
  optimizer = optax.with_extra_args_support(optimizer)

  def step(carry, batch):
    params, state = carry

    def loss(params):
      logits = model.apply({'params': params}, batch['image'])
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()

    gradient = jax.grad(loss)
    updates, state = optimizer.update(
        gradient(params), state, params, grad_fn=as_grad_fn(gradient))
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]


def check(programs, batches):
  """Raises AssertionError unless the programs agree: at radius 0 all, at RHO the two of SAM."""
  few = jax.tree.map(lambda x: x[:3], batches)
  for rho, peer in ((0.0, 'scale_by_adasam'), (RHO, 'optax.contrib.sam')):
    ours, theirs = programs['adasam'](few, rho), programs[peer](few, rho)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=0.02 * RATE), ours, theirs)


def seconds_per_step(programs, batches):
  """Median time of a step of each program, called in turns."""
  steps = len(jax.tree.leaves(batches)[0])
  calls = {name: functools.partial(program, batches, RHO) for name, program in programs.items()}
  times = comparison.medians(calls, REPETITIONS.value)
  return {name: value / steps for name, value in times.items()}


def measure(problem):
  """Rows of the table for a problem."""
  model, shape, steps = PROBLEMS[problem]
  keys = jax.random.split(jax.random.key(0), 3)
  batches = {'image': jax.random.uniform(keys[0], (steps, *shape)),
             'label': jax.random.randint(keys[1], (steps, shape[0]), 0, model.num_classes)}
  params = model.init(keys[2], jnp.zeros(shape))['params']
  programs = {name: functools.partial(train, name, model, params) for name in optimizers(RHO)}
  check(programs, batches)
  seconds = seconds_per_step(programs, batches)
  ours = 1e3 * seconds.pop('adasam')
  return [{'name': f'{problem}: {peer}', 'ours': ours, 'peer': 1e3 * value, 'unit': 'ms',
           'ratio': 1e3 * value / ours} for peer, value in seconds.items()]


def main(_):
  rows = [row for problem in PROBLEMS for row in measure(problem)]
  print(f'a step of adasam against a peer, on {jax.devices()[0].device_kind}')
  comparison.show(rows, 'problem: peer')
  over = [row['name'] for row in rows if row['name'].endswith(': scale_by_adasam')
          and row['ratio'] * LIMIT < 1]
  if over:
    sys.exit(f'adasam costs more than {LIMIT} times: {"; ".join(over)}')


if __name__ == '__main__':
  app.run(main)
