"""Sampling with pruned tokens: gather equals mask, limits, shapes, programs compiled, guidance."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.models import dit_sampler, dit_tokens, rectified_flow
from jaxlab.models.dit import DiT
from jaxlab.models.dit_sampler import Conditions, Prompt
from jaxlab.systems.topi import cost, sampler
from jaxlab.systems.topi import influence as influence_lib
from jaxlab.systems.topi.sampler import Pruning
from tests.models import dit_golden

FLUX = dit_golden.flux_model(num_double=1, num_single=1, in_channels=4)
QWEN = dit_golden.flux_model(num_double=2, num_single=0, in_channels=4, pooled_dim=0,
                             guidance=False, family='qwen')
GRIDS = [(2, 3), (3, 4), (2, 2)]  # a target that is smaller than its references
N_TARGET, N_REFERENCE, STEPS = 6, 16, 5
SIGMAS = rectified_flow.sigma_grid(STEPS, N_TARGET)
COMMON = {'pivotal': (0, 1), 'first_layer': 1, 'interval': 2, 'bucket': 4}


random_params = dit_golden.random_params


@functools.cache
def setting(model=FLUX, guided=False):
  """(noise, Conditions) of two samples with different references."""
  normal = lambda seed, *shape: np.random.default_rng(seed).normal(
      size=(2, *shape)).astype(np.float32)
  prompt = lambda seed: Prompt(normal(seed, 3, 24),
                               normal(seed + 1, 12) if model.pooled_dim else None)
  make_ids = dit_tokens.qwen_ids if model.family == 'qwen' else dit_tokens.flux_ids
  guidance = np.full(2, 2.5, np.float32) if model.guidance else None
  return normal(5, N_TARGET, 4), Conditions(
      prompt(2), normal(4, N_REFERENCE, 4), *make_ids(GRIDS, 3), guidance,
      prompt(7) if guided else None, 2.0)


def run(model=FLUX, guided=False, **change):
  noise, conditions = setting(model, guided)
  pruning = Pruning(**{**COMMON, **change})
  return sampler.sample(model, random_params(model), noise, conditions, SIGMAS, pruning)


@functools.cache
def unpruned(model=FLUX, guided=False):
  noise, conditions = setting(model, guided)
  return np.asarray(dit_sampler.sample(model, random_params(model), noise, conditions, SIGMAS))


@functools.partial(jax.jit, static_argnums=(0, 1))
def oracle(model, choose, params, noise, conditions):
  """`masked_sample`, compiled."""
  return sampler.masked_sample(model, params, noise, conditions, jnp.asarray(SIGMAS), choose,
                               first_layer=1, interval=2, score_layers=(0, 1))


def masked(model, guided, choose):
  """The oracle's ([steps, B, N, C], masks)."""
  return oracle(model, choose, random_params(model), *setting(model, guided))


def first_of_ranking(count):
  def choose(scores, step, mask):
    del step, mask
    return influence_lib.keep_mask(influence_lib.influence(scores, (0, 1)), count)
  return choose


class OracleTest(parameterized.TestCase):

  @parameterized.parameters((FLUX, False, 8), (QWEN, True, 8))
  def test_gather_equals_mask(self, model, guided, count):
    out = run(model, guided, pruned=1 - count / N_REFERENCE)
    latents, masks = masked(model, guided, first_of_ranking(count))
    np.testing.assert_allclose(out.latents, latents[-1], atol=1e-5)
    self.assertEqual(out.kept, (16, count, 16, count, 16))
    np.testing.assert_array_equal(masks.sum(-1), np.full((STEPS, 2), count))
    self.assertTrue((masks[0] != masks[2]).any() or (masks[0, 0] != masks[0, 1]).any())
    self.assertGreater(np.abs(out.latents - unpruned(model, guided)[-1]).max(), 1e-3)

  def test_everything_kept(self):
    # The unpruned program itself; a mask of zeros, bitwise; a gather of all, to rounding.
    np.testing.assert_array_equal(run(pruned=0.0).latents, unpruned()[-1])
    everything = lambda scores, step, mask: jnp.ones_like(mask)
    np.testing.assert_array_equal(masked(FLUX, False, everything)[0], unpruned())
    out = run(tau=1.0)
    self.assertEqual(out.kept, (16,) * STEPS)
    np.testing.assert_allclose(out.latents, unpruned()[-1], atol=1e-6)
    noise, conditions = setting()
    velocity = functools.partial(dit_golden.velocity, FLUX, random_params(FLUX), noise, .5,
                                 conditions)
    every = np.broadcast_to(np.arange(16), (2, 16))
    np.testing.assert_allclose(velocity(keep=every, prune_from=1), velocity(), atol=1e-6)

  def test_nothing_kept(self):
    nothing = lambda scores, step, mask: jnp.zeros_like(mask)
    out = run(pruned=1.0)
    self.assertEqual(out.kept, (16, 0, 16, 0, 16))
    np.testing.assert_allclose(out.latents, masked(FLUX, False, nothing)[0][-1], atol=1e-5)


class BudgetTest(parameterized.TestCase):

  def test_buckets_hold_what_tau_wants(self):
    out = run(tau=.6)
    _, masks = masked(FLUX, False, lambda scores, step, mask: influence_lib.keep_mask(
        influence_lib.influence(scores, (0, 1)), influence_lib.count_for_share(
            influence_lib.influence(scores, (0, 1)), .6)))
    wanted = masks[0].sum(-1).max()
    self.assertEqual(out.kept[1] % 4, 0)
    self.assertBetween(out.kept[1] - wanted, 0, 3)

  def test_programs(self):
    traces = []
    class Counting(DiT):
      def __call__(self, *args, **kwargs):
        traces.append(kwargs['keep'] is not None)
        return super().__call__(*args, **kwargs)
    fields = {name: getattr(FLUX, name) for name in FLUX.__dataclass_fields__
              if name not in ('parent', 'name')}
    noise, conditions = setting()
    before = jax.tree.map(np.array, random_params(FLUX))
    model = Counting(**fields)
    for _ in range(2):
      out = sampler.sample(model, random_params(FLUX), noise, conditions, SIGMAS,
                           Pruning(**COMMON, tau=.5))
    buckets = {k for step, k in enumerate(out.kept) if step % 2}
    self.assertLessEqual(len(traces), len(buckets) + 1)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(random_params(FLUX))):
      np.testing.assert_array_equal(old, new)

  def test_a_set_of_its_own_for_the_negative_prompt(self):
    shared, own = (run(QWEN, True, pruned=.75, separate=flag).latents for flag in (False, True))
    self.assertTrue(np.isfinite(own).all())
    self.assertGreater(np.abs(own - shared).max(), 1e-4)

  def test_every_reference_keeps_its_floor(self):
    noise, conditions = setting()
    pruning = Pruning(**COMMON, pruned=.75, floor=2)
    _, order, _ = sampler._anchor_step(FLUX, pruning, random_params(FLUX), noise, conditions,
                                       SIGMAS[:2])
    small = np.asarray(order[:, :4]) >= 12  # tokens of the second image
    np.testing.assert_array_equal(small.sum(-1), [2, 2])
    self.assertEqual(run(pruned=.75, floor=2).kept, (16, 4, 16, 4, 16))
    self.assertEqual(run(pruned=.75, floor=3).kept, (16, 6, 16, 6, 16))  # 3 of each of two

  def test_scaling_from_the_paper(self):
    self.assertEqual((sampler.scaled_first_layer(57), sampler.scaled_first_layer(5)), (10, 1))
    self.assertEqual([sampler.scaled_interval(n) for n in (40, 28, 12, 4, 1)], [10, 10, 4, 1, 1])

  @parameterized.parameters(
      ({}, 'tau, pruned: expected exactly one'), ({'tau': .5, 'pruned': .5}, 'exactly one'),
      ({'tau': 0.0}, 'tau: expected a share'), ({'pruned': 1.5}, 'pruned: expected a share'),
      ({'tau': .5, 'interval': 0}, 'interval: expected at least 1'),
      ({'tau': .5, 'pivotal': ()}, r'pivotal: expected some layers of 0..1'),
      ({'tau': .5, 'pivotal': (2,)}, r'pivotal: expected some layers of 0..1'),
      ({'tau': .5, 'first_layer': 2}, 'first_layer: expected below 2 layers'))
  def test_impossible_settings(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      run(**change)


class CostTest(absltest.TestCase):

  def _dots(self, jaxpr):
    """Floating-point operations of the matrix products of a jaxpr with more than 2 axes."""
    total = 0
    for equation in jaxpr.eqns:
      inner = [p for p in equation.params.values() if hasattr(p, 'jaxpr') or hasattr(p, 'eqns')]
      total += sum(self._dots(getattr(p, 'jaxpr', p)) for p in inner)
      if equation.primitive.name == 'dot_general' and equation.outvars[0].aval.ndim > 2:
        (contract, _), _ = equation.params['dimension_numbers']
        depth = np.prod([equation.invars[0].aval.shape[axis] for axis in contract])
        total += 2 * equation.outvars[0].aval.size * depth
    return total

  def test_closed_form_counts_the_products(self):
    noise, conditions = setting()
    count = lambda keep: self._dots(jax.make_jaxpr(lambda x: dit_sampler.velocity(
        FLUX, random_params(FLUX), x, .5, conditions, keep=keep, prune_from=1)[0])(noise).jaxpr)
    ends = 2 * 2 * 32 * ((N_TARGET + N_REFERENCE) * 4 + 3 * 24 + N_TARGET * 4)  # in, text, out
    for kept, keep in ((16, None), (4, np.zeros((2, 4), np.int32))):
      want = cost.sampling_flops(FLUX, 3, N_TARGET, [kept], 16, first_layer=1)
      self.assertEqual(count(keep) - ends, 2 * want)
    self.assertEqual(cost.block_flops(100, 32), 24 * 100 * 32**2 + 4 * 100**2 * 32)

  def test_the_papers_figures(self):
    flux = DiT(64, 8, 19, 38, 24, 128, (16, 56, 56))
    full = cost.sampling_flops(flux, 512, 4096, [4096] * 28, 4096, first_layer=10)
    for share, ratio in ((.5, 1.28), (.25, 1.46), (.6, 1.21)):
      kept = [4096 if step % 10 == 0 else round(share * 4096) for step in range(28)]
      less = cost.sampling_flops(flux, 512, 4096, kept, 4096, first_layer=10)
      self.assertAlmostEqual(full / less, ratio, delta=.02)


if __name__ == '__main__':
  absltest.main()
