"""The attacks that UA-FedRec is compared with: what they see, and poisoned clicks."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.federated import attacks
from jaxlab.systems.ua_fedrec import attack as attack_lib
from jaxlab.systems.ua_fedrec import comparison

OWN = np.array([[1.0, -2.0], [3.0, 4.0], [9.0, 9.0]], np.float32)
SIZES = np.array([2.0, 5.0, 0.0], np.float32)  # the last is nobody
rng = np.random.default_rng


def sent(attack, weights=(4.0, 6.0, 0.0, 1.0), malicious=(True, False, True, True)):
  """(messages, weights) of four clients; the third is malicious and absent."""
  messages = jnp.arange(8.0).reshape(4, 2)
  made = attack_lib.from_own(comparison.uninformed(attack), lambda payload, key: (OWN, SIZES))
  return made.apply((), None, messages, jnp.array(weights), jnp.array(malicious),
                    jax.random.key(0))[:2]


class UninformedTest(parameterized.TestCase):

  @parameterized.parameters(
      (attacks.lie(z=1.5, knowledge='own'), lambda mean, std: mean - 1.5 * std),
      (attacks.sign_std(scale=3.0, knowledge='own'),
       lambda mean, std: mean - 3 * np.sign(mean) * std))
  def test_knows_the_own_clients_alone_and_keeps_sizes(self, attack, expected):
    messages, weights = sent(attack)
    crafted = expected(OWN[:2].mean(0), OWN[:2].std(0, ddof=1))
    for i in (0, 3):
      np.testing.assert_allclose(messages[i], crafted, rtol=1e-6)
    np.testing.assert_array_equal(messages[1:3], [[2, 3], [4, 5]])
    np.testing.assert_array_equal(weights, [4, 6, 0, 1])

  def test_gaussian(self):
    attack = attacks.gaussian_moments(scale=3.0)
    updates = np.random.default_rng(0).normal(2.0, 0.5, (40, 4000)).astype(np.float32)
    everybody = jnp.ones(40, bool)
    made, _, _ = attack.apply((), None, jnp.asarray(updates), jnp.ones(40), everybody,
                              jax.random.key(0))
    noise = made[0] - updates.mean(0)
    self.assertAlmostEqual(float(noise.std()) / 1.5, 1, delta=0.05)
    np.testing.assert_array_equal(made[0], made[1])

  def test_a_round_without_liars_is_untouched(self):
    messages, weights = sent(attacks.lie(z=1.5, knowledge='own'), malicious=(False,) * 4)
    np.testing.assert_array_equal(messages, np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(weights, [4, 6, 0, 1])


TABLE = {'click': np.array([1, 2, 3]), 'pool': np.array([[4, 5, 6], [7, 8, 0], [0, 0, 0]]),
         'pool_size': np.array([3, 2, 0]), 'user': np.array([0, 0, 1])}


class ClickTest(absltest.TestCase):

  def check(self, poisoned, rows):
    """The same news are in each impression, and only `rows` have another click."""
    for i in range(3):
      one = lambda table, i=i: sorted([table['click'][i], *table['pool'][i]])
      self.assertEqual(one(poisoned), one(TABLE))
      self.assertEqual(poisoned['click'][i] != TABLE['click'][i], i in rows)
    np.testing.assert_array_equal(poisoned['user'], TABLE['user'])

  def test_flip(self):
    before = TABLE['pool'].copy()
    self.check(comparison.flip_clicks(TABLE, np.array([1, 2]), rng(0)), [1])
    self.check(comparison.flip_clicks(TABLE, np.array([0, 1, 2]), rng(0)), [0, 1])
    np.testing.assert_array_equal(TABLE['pool'], before)
    drawn = {int(comparison.flip_clicks(TABLE, np.array([0]), rng(seed))['click'][0])
             for seed in range(20)}
    self.assertEqual(drawn, {4, 5, 6})

  def test_least_popular(self):
    rate = np.array([0, .5, .5, .5, .3, .1, .2, .9, .8, 0])
    poisoned = comparison.least_popular_clicks(TABLE, np.arange(3), rate)
    self.check(poisoned, [0, 1])
    np.testing.assert_array_equal(poisoned['click'], [5, 8, 3])

  def test_click_rates_of_samples(self):
    table = {'click': np.array([3, 1, 3]), 'pool': np.array([[1, 2], [3, 9], [1, 9]]),
             'pool_size': np.array([2, 1, 1])}  # the nines are padding
    np.testing.assert_allclose(comparison.click_rates(table),
                               [0, 1 / 3, 0, 2 / 3, 0, 0, 0, 0, 0, 0])


if __name__ == '__main__':
  absltest.main()
