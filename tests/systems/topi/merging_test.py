"""Merging baselines: plans, reductions, and that merging nothing changes nothing."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.models import dit_sampler
from jaxlab.systems.topi import merging
from tests.models import dit_golden
from tests.systems.topi import sampler_test

MODEL = sampler_test.FLUX
X = np.random.default_rng(0).normal(size=(2, 12, 5)).astype(np.float32)


class PlanTest(parameterized.TestCase):

  def test_cells(self):
    found = merging.cells([(2, 2), (3, 3)])
    self.assertEqual([sorted(set(cell)) for cell in found.tolist()],
                     [[0, 1, 2, 3], [4, 5, 7, 8], [6, 9], [10, 11], [12]])

  def test_the_likest_go_first(self):
    destination = np.array([[0, 5], [3, 4]])
    unit = X / np.linalg.norm(X, axis=-1, keepdims=True)
    plan = merging.plan(X, destination, 7)
    for row in range(2):
      alike = unit[row] @ unit[row][destination[row]].T
      sources = [i for i in range(12) if i not in destination[row]]
      gone = sorted(sources, key=lambda i: -alike[i].max())[:5]
      np.testing.assert_array_equal(plan.keep[row], sorted(set(range(12)) - set(gone)))
      for i in range(12):
        stands = destination[row][alike[i].argmax()] if i in gone else i
        self.assertEqual(plan.keep[row][plan.slot[row][i]], stands)

  def test_reductions(self):
    plan = merging.plan(X, np.array([[0, 5], [3, 4]]), 7)
    mean, fused, pruned = (f(X, plan) for f in (merging.average, merging.norm_preserving,
                                                merging.survivors))
    for row in range(2):
      for k in range(7):
        members = X[row][np.asarray(plan.slot[row]) == k]
        np.testing.assert_allclose(mean[row, k], members.mean(0), rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(fused[row, k]),
                                   np.linalg.norm(members, axis=-1).max(), rtol=1e-5)
        np.testing.assert_array_equal(pruned[row, k], X[row, plan.keep[row, k]])


class MergeTest(parameterized.TestCase):

  def velocity(self, name, count, scope):
    noise, conditions = sampler_test.setting()
    options = {'merge_from': 1} if name == 'tofu' else {}
    merge = getattr(merging, name)(grids=sampler_test.GRIDS, n_target=6, count=count, scope=scope,
                                   key=jax.random.key(0), **options)
    return jax.jit(functools.partial(dit_sampler.velocity, MODEL, merge=merge, prune_from=1))(
        dit_golden.random_params(MODEL), noise, .5, conditions)[0]

  @parameterized.parameters(('tome', 'reference'), ('tofu', 'all'), ('sito', 'reference'))
  def test_merging(self, name, scope):
    noise, conditions = sampler_test.setting()
    want = dit_golden.velocity(MODEL, dit_golden.random_params(MODEL), noise, .5, conditions)
    total = 16 if scope == 'reference' else 22
    np.testing.assert_allclose(self.velocity(name, total, scope), want, atol=1e-4)
    fewer = self.velocity(name, 9, scope)
    self.assertTrue(jnp.isfinite(fewer).all())
    self.assertGreater(np.abs(fewer - want).max(), 1e-3)


if __name__ == '__main__':
  absltest.main()
