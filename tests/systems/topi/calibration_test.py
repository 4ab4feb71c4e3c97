"""Sensitivity of layers against its definition; the alternatives; the choice of pivotal layers."""
import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.models.dit import HIDDEN
from jaxlab.systems.topi import calibration
from tests.models import dit_golden
from tests.systems.topi import sampler_test

MODEL = sampler_test.FLUX


class CalibrationTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.x, self.conditions = sampler_test.setting()
    self.arguments = (MODEL, dit_golden.random_params(MODEL), self.x,
                      np.array([.3, .8], np.float32), self.conditions)

  def test_one_layer_at_a_time(self):
    values = calibration.profile(*self.arguments)
    model, params, x, t, c = self.arguments
    img = np.concatenate([x, c.reference], axis=1)
    forbidden = np.zeros((1, 1, 25, 25), np.float32)
    forbidden[..., 3:9, 9:] = HIDDEN

    @jax.jit
    def without(params, switch):
      return model.apply(
          {'params': params}, img, c.prompt.txt, c.prompt.pooled, t, c.img_ids, c.txt_ids,
          c.guidance, n_target=6, attn_bias=lambda layer: switch[layer] * forbidden)[0]

    full = without(params, np.zeros(2, np.float32))
    for layer in range(2):
      out = without(params, np.eye(2, dtype=np.float32)[layer])
      want = np.square(full - out).sum((1, 2)) / np.square(full).sum((1, 2))
      np.testing.assert_allclose(values[layer], want.mean(), rtol=1e-3)
      self.assertGreater(want.min(), 0)

  def test_alternatives(self):
    mass = calibration.profile(*self.arguments, score='mass')
    self.assertTrue(((mass > 0) & (mass < 1)).all())
    proxy = calibration.profile(*self.arguments, score='proxy')
    self.assertEqual(proxy.shape, (2,))
    self.assertTrue((np.abs(proxy) <= 1).all())

  def test_agreement_is_one_where_all_layers_agree(self):
    by_layer = np.tile(np.random.default_rng(0).uniform(size=(2, 1, 7)), (1, 4, 1))
    np.testing.assert_allclose(calibration.proxy_agreement(by_layer), 1)
    by_layer[:, 3] *= -1
    self.assertEqual(calibration.proxy_agreement(by_layer).argmin(), 3)

  @parameterized.parameters((0, 2, (0, 2)), (1, 2, (2, 3)), (1, 3, (1, 2, 3)))
  def test_ties_by_number(self, first, count, layers):
    self.assertEqual(calibration.pivotal_layers([9., 1, 3, 3, 1], count, first), layers)

  @parameterized.parameters(
      ({}, (2, 3, 5)), ({'num_pivotal': 1}, (3,)), ({'pivotal_from': 0}, (0, 3, 5)),
      ({'first_layer': 4}, (4, 5)), ({'pivotal': (1,)}, (1,)))
  def test_pivotal_layers_of_a_mapping(self, change, layers):
    model = dit_golden.flux_model(num_double=2, num_single=4)
    made = calibration.pruning_of({'tau': .5, 'first_layer': 1, 'interval': None, **change}, model,
                                  12, lambda: [9., 1, 2, 5, 1, 3])
    self.assertEqual((made.pivotal, made.interval), (layers, 4))

  def test_no_pivotal_layers(self):
    with self.assertRaisesRegex(ConfigError, 'prune.pivotal: expected some layers'):
      calibration.pruning_of({'tau': .5}, MODEL, 12)


if __name__ == '__main__':
  absltest.main()
