"""What only an accelerator shows: bfloat16, the same bits twice, devices of their own.

  JAX_PLATFORMS=cuda,cpu python -m pytest -m accelerator tests

Without JAX_PLATFORMS the tests take the CPU, and these are skipped.
"""
import unittest

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from absl.testing import absltest

from jaxlab import parallel, train
from jaxlab.models.mlp import MLP
from tests import conftest, toy

assert conftest.FLAGS
COUNT = 0 if jax.default_backend() == 'cpu' else jax.device_count()
FIT = {'seed': 1, 'batch_size': 8, 'steps': 4, 'optimizer': {'name': 'sgd', 'learning_rate': 0.1}}


def step(dtype):
  """Parameters after a gradient step of an MLP whose matrix products are of a dtype."""
  model, data = MLP(3, (32,), dtype), toy.columns()

  def loss(params):
    logits = model.apply({'params': params}, data['x'])
    return optax.softmax_cross_entropy_with_integer_labels(logits, data['label']).mean()

  params = model.init(jax.random.key(0), data['x'])['params']
  return jax.jit(lambda params: jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params)))(
      params)


@pytest.mark.accelerator
class AcceleratorTest(absltest.TestCase):

  @unittest.skipIf(COUNT < 1, 'no GPU or TPU')
  def test_bfloat16(self):
    rough, exact = step(jnp.bfloat16), step(jnp.float32)
    chex.assert_trees_all_close(rough, exact, atol=3e-2)
    self.assertGreater(max(jnp.abs(a - b).max() for a, b in zip(
        jax.tree.leaves(rough), jax.tree.leaves(exact))), 1e-5)
    toy.assert_trees_equal(rough, step(jnp.bfloat16))

  @unittest.skipIf(COUNT < 2, 'no two GPUs or TPUs')
  def test_two_devices(self):
    with jax.default_matmul_precision('highest'):
      one, two = (train.fit(toy.softmax_task(), FIT, devices=jax.devices()[:count])
                  for count in (1, 2))
    parallel.assert_replicated(two)
    chex.assert_trees_all_close(parallel.to_host(one.params), parallel.to_host(two.params),
                                atol=1e-5)


if __name__ == '__main__':
  absltest.main()
