"""Robust aggregators, attacks and FedRA against the golden vectors."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.federated import aggregators, attacks
from jaxlab.federated.aggregators import quantities, quantity_aware, similarity, spectral
from jaxlab.federated.attacks import optimized, simple
from tests.golden_reader import Golden

ROBUST, FEDRA = Golden('robust_aggregation'), Golden('fedra')
KEY = jax.random.key(0)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
looser = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def apply(aggregator, golden=ROBUST, state=()):
  """(aggregate, info) on the golden stack in float32."""
  updates, sizes = (jnp.asarray(golden[k], jnp.float32) for k in ('updates', 'quantities'))
  aggregate, _, info = aggregator.apply(state, updates, sizes, KEY)
  return aggregate, info


class AggregatorsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('fedavg', aggregators.weighted_mean), ('mean', aggregators.uniform_mean),
      ('median', aggregators.median), ('median_lower', lambda: aggregators.median(lower=True)),
      ('trimmed_mean', lambda: aggregators.trimmed_mean(beta=int(ROBUST['trim_beta']))),
      ('norm_bound', lambda: aggregators.norm_bound(bound=float(ROBUST['norm_bound_c']))))
  def test_means_and_order(self, name, make):
    close(apply(make())[0], ROBUST[name])

  @parameterized.parameters(('sq', True), ('l2', False))
  def test_krum(self, suffix, squared):
    f = int(ROBUST['num_malicious'])
    ours, info = apply(aggregators.krum(num_malicious=f, squared=squared))
    close(info['scores'], ROBUST[f'krum_scores_{suffix}'])
    self.assertEqual(int(np.argmax(info['keep'])), ROBUST[f'krum_index_{suffix}'])
    close(ours, ROBUST[f'krum_{suffix}'])
    for weighted, name in ((False, 'multikrum'), (True, 'multikrum_weighted')):
      for keep in (None, int(ROBUST['multikrum_m'])):
        ours, info = apply(aggregators.multi_krum(num_malicious=f, keep=keep, weighted=weighted,
                                                  squared=squared))
        np.testing.assert_array_equal(info['keep'], ROBUST[f'multikrum_mask_{suffix}'])
        close(ours, ROBUST[f'{name}_{suffix}'])

  def test_bulyan(self):
    ours, info = apply(aggregators.bulyan(num_malicious=int(ROBUST['num_malicious'])))
    picks = ROBUST['bulyan_selected_in_order']
    np.testing.assert_array_equal(np.argsort(info['order'], stable=True)[:len(picks)], picks)
    close(ours, ROBUST['bulyan'])

  def test_centers(self):
    nu = float(ROBUST['rfa_nu'])
    looser(apply(aggregators.rfa(iters=int(ROBUST['rfa_iters']), nu=nu))[0], ROBUST['rfa'])
    looser(apply(aggregators.rfa(iters=100, nu=nu, weighted=False))[0], ROBUST['rfa_uniform_100'])
    clip = aggregators.centered_clip(tau=float(ROBUST['centered_clip_tau']), iters=3)
    start = clip.init(jnp.zeros(ROBUST['updates'].shape[1]))
    close(apply(clip, state=start)[0], ROBUST['centered_clip_3_from_zero'])

  def test_dnc(self):
    updates = jnp.asarray(ROBUST['updates'], jnp.float32)
    remove = int(ROBUST['dnc_c'] * ROBUST['num_malicious'])
    keep, _ = spectral.dnc_keep(updates, jnp.ones(len(updates), bool), ROBUST['dnc_coords'], remove)
    np.testing.assert_array_equal(keep, ROBUST['dnc_keep'])
    looser(aggregators.uniform_mean().apply((), updates, keep * 1.0, KEY)[0], ROBUST['dnc'])

  def test_residual(self):
    ours, info = apply(aggregators.residual())
    looser(info['scores'], ROBUST['residual_irls_weights'])
    looser(ours, ROBUST['residual_irls'])

  def test_foolsgold(self):
    history, updates = (jnp.asarray(ROBUST[k], jnp.float32)
                        for k in ('foolsgold_history', 'updates'))
    weights = similarity.foolsgold_weights(history, jnp.ones(len(history), bool))
    close(weights, ROBUST['foolsgold_weights'])
    aggregator = aggregators.foolsgold(len(history))
    state = aggregator.init(updates[0])
    past = jnp.concatenate([history - updates, jnp.zeros_like(history[:1])])
    state = aggregator.begin({**state, 'history': past}, jnp.arange(len(history)), None)
    close(apply(aggregator, state=state)[0], ROBUST['foolsgold'], rtol=1e-4)

  def test_fltrust(self):
    aggregator = aggregators.fltrust()
    root = jnp.asarray(ROBUST['fltrust_root'], jnp.float32)
    state = aggregator.begin(aggregator.init(root), None, root)
    ours, info = apply(aggregator, state=state)
    close(info['scores'], ROBUST['fltrust_scores'])
    close(ours, ROBUST['fltrust'])

  def test_truncation(self):
    alpha, star = float(ROBUST['truncate_alpha']), float(ROBUST['truncate_alpha_star'])
    sizes = jnp.asarray(ROBUST['quantities'], jnp.float32)
    cap = quantities.quantity_cap(sizes, alpha, star)
    close(cap, ROBUST['truncate_cap'])
    close(jnp.minimum(sizes, cap), ROBUST['truncated_quantities'])
    rule = aggregators.truncated(aggregators.weighted_mean(), alpha=alpha, alpha_star=star)
    expected = np.average(ROBUST['updates'], axis=0, weights=ROBUST['truncated_quantities'])
    close(apply(rule)[0], expected)


class AttacksTest(parameterized.TestCase):

  def stack(self):
    """(updates [n, d] with the benign first, weights, malicious)."""
    benign, f = ROBUST['benign'], int(ROBUST['num_malicious'])
    own = np.full((f, benign.shape[1]), 7.0)  # an omniscient attacker looks at the others alone
    updates = jnp.asarray(np.concatenate([benign, own]), jnp.float32)
    return updates, jnp.ones(len(updates)), jnp.arange(len(updates)) >= len(benign)

  def crafted(self, attack):
    updates, weights, malicious = self.stack()
    sent, claimed, _ = attack.apply((), None, updates, weights, malicious, KEY)
    np.testing.assert_array_equal(sent[~malicious], updates[~malicious])
    np.testing.assert_array_equal(claimed, weights)
    np.testing.assert_array_equal(sent[-1], sent[-2])
    return sent[-1]

  def test_moments(self):
    updates, _, malicious = self.stack()
    close(simple.lie_z(len(updates), int(malicious.sum())), ROBUST['lie_z_formula'])
    close(self.crafted(attacks.lie(z=float(ROBUST['lie_z']))), ROBUST['attack_lie'])
    close(self.crafted(attacks.sign_std(scale=float(ROBUST['attack_sign_std_lambda']))),
          ROBUST['attack_sign_std'])

  @parameterized.product(direction=['unit', 'sign', 'std'], objective=[
      ('minmax', 'min_max', 'max'), ('minsum', 'min_sum', 'max'),
      ('minsum_minbound', 'min_sum', 'min')])
  def test_dyn_opt(self, direction, objective):
    name, rule, bound = objective
    updates, _, malicious = self.stack()
    mean, deviation = (ROBUST['benign'].mean(0), ROBUST['benign'].std(0, ddof=1))
    p = jnp.asarray(optimized.direction_of(mean, deviation, direction), jnp.float32)
    gamma = optimized.dyn_gamma(updates, ~malicious, malicious, p, rule, bound)
    np.testing.assert_allclose(gamma, ROBUST[f'gamma_{name}_{direction}'], rtol=0, atol=2e-5)
    ours = self.crafted(attacks.dyn_opt(objective=rule, direction=direction, bound=bound))
    np.testing.assert_allclose(ours, ROBUST[f'attack_{name}_{direction}'], rtol=1e-5, atol=5e-5)

  @parameterized.parameters(('all', 'full'), ('own', 'partial'))
  def test_fang_against_trimmed_mean(self, knowledge, name):
    benign = jnp.asarray(ROBUST['benign'], jnp.float32)
    low, high = optimized.opposite_range(benign, jnp.ones(len(benign), bool), knowledge)
    ours = low + jnp.asarray(ROBUST['fang_uniforms'], jnp.float32) * (high - low)
    close(ours, ROBUST[f'attack_fang_trmean_{name}'])

  def test_fang_against_krum(self):
    updates, _, malicious = self.stack()
    rate, start, _ = optimized.krum_rate(updates, ~malicious, malicious)
    close(start, ROBUST['fang_krum_lambda_init'])
    close(rate, ROBUST['fang_krum_lambda'], atol=0)
    close(self.crafted(attacks.stat_opt(target='krum')), ROBUST['attack_fang_krum'], atol=0)

  def test_quantity(self):
    sizes = jnp.asarray(ROBUST['quantities'], jnp.float32)
    malicious = jnp.asarray(ROBUST['is_malicious'])
    claim = attacks.QUANTITIES['moments'](scale=float(ROBUST['quantity_perturb_factor']))
    attack = attacks.enhanced(attacks.honest(), claim)
    claimed = attack.apply((), None, sizes[:, None], sizes, malicious, KEY)[1]
    np.testing.assert_array_equal(
        claimed, np.where(malicious, ROBUST['quantity_perturbed'], sizes))


class FedRATest(parameterized.TestCase):

  @parameterized.product(factor=list(quantity_aware.FACTORS), dtype=['float32', 'float64'])
  def test_scores_estimate_and_aggregate(self, factor, dtype):
    exact = dtype == 'float64'
    with jax.enable_x64(exact):
      tight = functools.partial(
          np.testing.assert_allclose, rtol=1e-10 if exact else 1e-5, atol=1e-6)
      updates, sizes = (jnp.asarray(FEDRA[k], dtype) for k in ('updates', 'quantities'))
      floor = float(FEDRA['floor'])
      for mixing, name in ((True, 'mix'), (False, 'plain')):
        ours, _, info = aggregators.fedra(factor=factor, mixing=mixing, floor=floor).apply(
            (), updates, sizes, None)
        tight(info['scores'], FEDRA[f'scores_{factor}'])
        np.testing.assert_allclose(info['log_likelihoods'], FEDRA[f'loglik_{factor}_{name}'],
                                   rtol=0, atol=1e-9 if exact else 2e-3)
        self.assertEqual(int((~info['keep']).sum()), FEDRA[f'm_hat_{factor}_{name}'])
        if mixing:
          np.testing.assert_array_equal(info['keep'], FEDRA[f'keep_{factor}'])
          tight(ours, FEDRA[f'aggregate_{factor}'])

  def test_known_number_and_baselines(self):
    malicious = FEDRA['is_malicious']
    known = aggregators.fedra(m=int(malicious.sum()))
    close(apply(known, FEDRA)[0], FEDRA['aggregate_product_known_m'])
    mean = aggregators.weighted_mean()
    close(apply(mean, FEDRA)[0], FEDRA['fedavg'])
    updates, sizes = (jnp.asarray(FEDRA[k], jnp.float32) for k in ('updates', 'quantities_true'))
    close(mean.apply((), updates, jnp.where(malicious, 0, sizes), KEY)[0],
          FEDRA['oracle_benign_fedavg'])

  def test_zz_every_array_was_compared(self):
    self.assertEmpty(FEDRA.unread())
    self.assertEmpty(ROBUST.unread())


if __name__ == '__main__':
  absltest.main()
