"""ToPi against its golden vectors: scores, kept sets, velocities, calibration, trajectory."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.models import dit_sampler, dit_tokens, rectified_flow
from jaxlab.models.dit_sampler import Conditions, Prompt
from jaxlab.systems.topi import calibration, sampler
from jaxlab.systems.topi import influence as influence_lib
from tests.golden_reader import Golden
from tests.models import dit_golden

GOLDEN = Golden('topi')
MODEL = dit_golden.topi_model()


@functools.cache
def params():
  return dit_golden.params(GOLDEN, 'w/', MODEL)


def conditions(part):
  prompt = Prompt(GOLDEN[f'{part}/txt'], GOLDEN[f'{part}/pooled'])
  return Conditions(prompt, GOLDEN[f'{part}/reference'], GOLDEN['img_ids'], GOLDEN['txt_ids'])


def sample():
  return GOLDEN['sample/target'], GOLDEN['sample/t'], conditions('sample')


def settings(**change):
  values = {'pivotal': tuple(int(x) for x in GOLDEN['calib/pivotal_layers']), 'bucket': 1,
            'tau': float(GOLDEN['config/tau']), 'interval': int(GOLDEN['config/update_interval']),
            'first_layer': int(GOLDEN['config/first_pruned_layer']), **change}
  return sampler.Pruning(**values)


@functools.cache
def full():
  x, t, c = sample()
  return jax.jit(functools.partial(dit_sampler.velocity, MODEL, score_layers=range(5)))(
      params(), x, t, c)


class GoldenTest(parameterized.TestCase):

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    assert not GOLDEN.unread(), GOLDEN.unread()

  def test_positions(self):
    ids, txt_ids = dit_tokens.flux_ids([(4, 4), (4, 5)], 5)
    np.testing.assert_array_equal(ids, GOLDEN['img_ids'])
    np.testing.assert_array_equal(txt_ids, GOLDEN['txt_ids'])

  def test_scores_and_order(self):
    velocity, scores = full()
    np.testing.assert_allclose(velocity, GOLDEN['sample/velocity_full'], atol=1e-4)
    mass = []
    for layer, score in scores.items():
      for name, value in (('attention_received', score.received), ('value_norm', score.value_norm),
                          ('influence', influence_lib.influence(scores, (layer,)))):
        np.testing.assert_allclose(value, GOLDEN[f'sample/layer{layer}/{name}'], rtol=1e-4)
      mass.append(score.received.sum(-1).mean() / 16)
    np.testing.assert_allclose(mass, GOLDEN['sample/context_mass_per_layer'], rtol=1e-4)
    values = influence_lib.influence(scores, settings().pivotal)
    np.testing.assert_allclose(values[0], GOLDEN['sample/influence'], rtol=1e-4)
    np.testing.assert_array_equal(influence_lib.ranking(values)[0], GOLDEN['sample/order'])
    np.testing.assert_allclose(influence_lib.cumulative_share(values)[0],
                               GOLDEN['sample/cumulative_share'], rtol=1e-4)

  @parameterized.parameters('0.5', '0.8', '0.95')
  def test_kept_sets_and_pruned_velocities(self, tau):
    x, t, c = sample()
    values = influence_lib.influence(full()[1], settings().pivotal)
    count = int(influence_lib.count_for_share(values, float(tau))[0])
    keep = influence_lib.keep_indices(influence_lib.ranking(values), count)
    np.testing.assert_array_equal(keep[0], GOLDEN[f'sample/keep_tau_{tau}'])
    mask = influence_lib.keep_mask(values, count)
    for how in ({'keep': keep}, {'mask': mask}):
      velocity = dit_golden.velocity(MODEL, params(), x, t, c, prune_from=1, **how)
      np.testing.assert_allclose(velocity, GOLDEN[f'sample/velocity_tau_{tau}'], atol=1e-4)

  def test_calibration(self):
    c = conditions('calib')
    arguments = (MODEL, params(), GOLDEN['calib/target'], GOLDEN['calib/t'], c)
    each = jax.jit(calibration.sensitivity, static_argnums=0)(*arguments)
    np.testing.assert_allclose(each, GOLDEN['calib/sensitivity_per_sample'], rtol=1e-3)
    profile = calibration.profile(*arguments)
    np.testing.assert_allclose(profile, GOLDEN['calib/sensitivity'], rtol=1e-3)
    self.assertEqual(calibration.pivotal_layers(profile, 2, first=1),
                     tuple(GOLDEN['calib/pivotal_layers']))

  def test_trajectories(self):
    x, _, c = sample()
    sigmas = rectified_flow.sigma_grid(8, 16)
    np.testing.assert_allclose(sigmas, GOLDEN['traj/sigmas'], atol=1e-6)
    plain = dit_sampler.sample(MODEL, params(), x, c, sigmas)
    np.testing.assert_allclose(plain, GOLDEN['traj/latents_full'][1:], atol=5e-4)
    np.testing.assert_array_equal(x, GOLDEN['traj/latents_full'][0])
    gathered = sampler.sample(MODEL, params(), x, c, sigmas, settings())
    want = GOLDEN['traj/latents_topi']
    np.testing.assert_allclose(gathered.latents, want[-1], atol=5e-4)

    def choose(scores, step, mask):
      del step, mask
      values = influence_lib.influence(scores, settings().pivotal)
      return influence_lib.keep_mask(values, influence_lib.count_for_share(values, settings().tau))

    latents, masks = jax.jit(lambda params, x, c: sampler.masked_sample(
        MODEL, params, x, c, jnp.asarray(sigmas), choose, first_layer=1,
        interval=settings().interval, score_layers=settings().pivotal))(params(), x, c)
    np.testing.assert_allclose(latents, want[1:], atol=5e-4)
    np.testing.assert_array_equal(masks[:, 0], GOLDEN['traj/keep_mask_in_force_after_step'])
    kept = [20 if step % 3 == 0 else int(n) for step, n in enumerate(masks[:, 0].sum(-1))]
    self.assertEqual(gathered.kept, tuple(kept))


if __name__ == '__main__':
  absltest.main()
