"""The token losses against the reference's numbers and against what they estimate."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab.systems.effopd import losses
from tests.golden_reader import Golden

GOLDEN = Golden('effopd')
AGGREGATIONS = ('token-mean', 'seq-mean-token-sum', 'seq-mean-token-mean')


def given(name):
  return GOLDEN[f'loss/{name}']


def compare(ours, name, rtol):
  np.testing.assert_allclose(ours, given(name), rtol=rtol, atol=rtol, err_msg=name)


@functools.cache
def inputs(dtype):
  tau = given('temperature')
  logp = [jax.nn.log_softmax(jnp.asarray(given(f'{who}_logits'), dtype) / tau)
          for who in ('student', 'teacher', 'base')]
  return (*logp, jnp.asarray(given('tokens')), jnp.asarray(given('mask'), dtype))


def sampled(logp, tokens):
  return jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0]


class GoldenTest(absltest.TestCase):

  def check(self, dtype, rtol):
    p, q, b, tokens, mask = inputs(dtype)
    k, lam, tau = int(given('K')), float(given('lam')), float(given('temperature'))
    vocabulary = {'rkl': losses.reverse_kl, 'fkl': losses.forward_kl, **{
        f'gjsd_token_b{beta}': functools.partial(losses.generalized_jsd, beta=beta)
        for beta in (0.1, 0.5, 0.9)}}
    for name, loss in vocabulary.items():
      compare(loss(p, q), name if 'gjsd' in name else f'{name}_token', rtol)
    vocabulary['gjsd0.5'] = vocabulary['gjsd_token_b0.5']
    for how in AGGREGATIONS:
      for name in ('rkl', 'fkl', 'gjsd0.5'):
        compare(losses.aggregate(vocabulary[name](p, q), mask, how), f'{name}_agg_{how}', rtol)
    logits = jnp.asarray(given('student_logits'), dtype)
    for name in ('rkl', 'fkl'):
      gradient = jax.grad(lambda x: losses.aggregate(
          vocabulary[name](jax.nn.log_softmax(x / tau), q), mask))(logits)
      compare(gradient, f'{name}_grad_student_logits', rtol)

    at = [sampled(x, tokens) for x in (p, q, b)]
    for who, value in zip(('student', 'teacher', 'base'), at):
      compare(value, f'{who}_logp', rtol)
    for name in ('k1', 'k2', 'k3'):
      compare(getattr(losses, name)(at[0], at[1]), name, rtol)
    compare(losses.opd_advantage(*at), 'opd_advantage', rtol)
    compare(losses.opd_advantage(*at, lam=lam), 'exopd_advantage', rtol)

    def on_policy(logits):
      logp = sampled(jax.nn.log_softmax(logits / tau), tokens)
      old = jax.lax.stop_gradient(logp)
      values, _ = losses.policy_gradient(logp, old, losses.opd_advantage(old, at[1]))
      return losses.aggregate(values, mask)

    value, gradient = jax.value_and_grad(on_policy)(logits)
    compare(value, 'pg_onpolicy_loss', rtol)
    compare(gradient, 'pg_onpolicy_grad_student_logits', rtol)
    old, rollout = (jnp.asarray(given(f'{who}_logp'), dtype) for who in ('old', 'rollout'))
    weights = losses.importance_weights(old, rollout, mask)
    compare(weights, 'tis_weights', rtol)
    values, clipped = losses.policy_gradient(at[0], old, losses.opd_advantage(old, at[1]))
    compare(values * weights, 'pg_clipped_token', rtol)
    compare(losses.aggregate(values * weights, mask), 'pg_clipped_loss', rtol)
    self.assertTrue(np.any(clipped) and not np.all(clipped))
    compare(losses.reward_to_go(at[0], at[1], mask), 'rtg_coeff', rtol)

    np.testing.assert_array_equal(jax.lax.top_k(p, k)[1], given('student_topk_ids'))
    np.testing.assert_array_equal(jax.lax.top_k(q, k)[1], given('teacher_topk_ids'))
    for form in ('raw', 'renorm', 'tail'):
      compare(losses.reverse_kl_topk(p, q, k, form), f'rkl_topk_{form}', rtol)
    for form in ('raw', 'renorm'):
      compare(losses.forward_kl_topk(p, q, k, form), f'fkl_topk_{form}', rtol)
    compare(losses.overlap_ratio(p, q, k), 'overlap_ratio', rtol)
    compare(losses.entropy_gap(p, q), 'entropy_gap', rtol)

  def test_float32(self):
    self.check(jnp.float32, 1e-5)

  def test_float64_and_every_array_was_compared(self):
    with jax.enable_x64(True):
      self.check(jnp.float64, 1e-10)
    self.assertEmpty([name for name in GOLDEN.unread() if name.startswith('loss/')])


class PropertiesTest(parameterized.TestCase):

  def random_logprobs(self, *shape, seed=0):
    logits = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32) * 2
    return jax.nn.log_softmax(logits)

  def test_directions_of_the_divergences(self):
    p, q = jnp.log(jnp.array([.9, .1])), jnp.log(jnp.array([.5, .5]))
    reverse = .9 * np.log(.9 / .5) + .1 * np.log(.1 / .5)
    forward = .5 * np.log(.5 / .9) + .5 * np.log(.5 / .1)
    np.testing.assert_allclose(losses.reverse_kl(p, q), reverse, rtol=1e-5)
    np.testing.assert_allclose(losses.forward_kl(p, q), forward, rtol=1e-5)
    self.assertGreater(abs(reverse - forward), 0.1)
    for beta, name in ((0.0, forward), (1.0, reverse)):
      np.testing.assert_allclose(losses.generalized_jsd(p, q, beta), name, rtol=1e-5)

  def test_the_sampled_gradient_is_that_of_the_reverse_kl(self):
    logits = jnp.array([.3, -1., .8, .1])
    q = jax.nn.log_softmax(jnp.array([1.5, .2, -.3, -1.]))
    exact = jax.grad(lambda x: losses.reverse_kl(jax.nn.log_softmax(x), q))(logits)
    closed = jnp.exp(p := jax.nn.log_softmax(logits)) * (p - q - losses.reverse_kl(p, q))
    np.testing.assert_allclose(exact, closed, rtol=1e-5, atol=1e-6)
    rows = 200000
    tokens = jax.random.categorical(jax.random.key(0), logits, shape=(rows,))

    def loss(x):
      logp = jax.nn.log_softmax(x)[tokens]
      old = jax.lax.stop_gradient(logp)
      return losses.policy_gradient(logp, old, losses.opd_advantage(old, q[tokens]))[0].mean()

    np.testing.assert_allclose(jax.grad(loss)(logits), exact, atol=0.01)
    self.assertGreater(np.abs(exact).min(), 0.05)

  @parameterized.parameters(0.1, 0.5, 0.9)
  def test_divergences_of_equals_are_zero(self, beta):
    p, _ = self.random_logprobs(6, 9)
    for value in (losses.reverse_kl(p, p), losses.generalized_jsd(p, p, beta),
                  losses.reverse_kl_topk(p, p, 3), losses.k2(p, p), losses.k3(p, p)):
      np.testing.assert_allclose(value, 0, atol=1e-6)

  def test_a_tail_bucket_bounds_the_whole_divergence(self):
    p, q = self.random_logprobs(50, 9)
    whole, tail = losses.reverse_kl(p, q), losses.reverse_kl_topk(p, q, 4)
    self.assertTrue(np.all(tail >= -1e-6) and np.all(tail <= whole + 1e-5))
    # The partial sum is no divergence: it falls below zero where the student holds less than the
    # teacher.
    drained, full = jnp.log(jnp.array([.3, .3, .2, .2])), jnp.log(jnp.array([.4, .4, .1, .1]))
    self.assertLess(losses.reverse_kl_topk(drained, full, 2, 'raw'), -0.1)
    np.testing.assert_allclose(losses.reverse_kl_topk(p, q, 9, 'raw'), whole, atol=1e-5)

  @parameterized.parameters('reverse', 'forward')
  def test_the_tail_of_a_confident_model(self, direction):
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 8, 19)).astype(np.float32) * np.array([1, 6], np.float32)[
        :, None, None]
    if direction == 'forward':
      p, q = q, p
    loss = getattr(losses, f'{direction}_kl_topk')
    ours = loss(jax.nn.log_softmax(p), jax.nn.log_softmax(q), 5, 'tail')
    first, second = (p, q) if direction == 'reverse' else (q, p)
    order = np.argsort(-first, -1)
    buckets = []
    for logits in (first, second):
      mass = np.take_along_axis(special.softmax(logits.astype(np.float64), -1), order, -1)
      buckets.append(np.concatenate([mass[:, :5], mass[:, 5:].sum(-1, keepdims=True)], -1))
    expected = (buckets[0] * np.log(buckets[0] / buckets[1])).sum(-1)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)

  def test_a_support_of_the_whole_vocabulary_is_the_whole_divergence(self):
    p, q = self.random_logprobs(4, 9)
    value = lambda loss: jax.value_and_grad(lambda p: loss(jax.nn.log_softmax(p)).sum())(p)
    chex.assert_trees_all_close(
        value(lambda p: losses.reverse_kl_topk(p, q, 9)),
        value(lambda p: losses.reverse_kl(p, q)), atol=1e-5)

  def test_exopd_with_lambda_one_ignores_the_reference(self):
    p, q = self.random_logprobs(5)
    np.testing.assert_array_equal(
        losses.opd_advantage(p, q), losses.opd_advantage(p, q, jnp.full(5, jnp.nan), 1.0))
    np.testing.assert_allclose(losses.opd_advantage(p, q, p * 2, 1.0 + 1e-6), q - p, atol=1e-4)

  def test_the_advantage_is_not_differentiated(self):
    p, q = self.random_logprobs(5)
    gradient = jax.grad(lambda x: losses.policy_gradient(
        x, jax.lax.stop_gradient(x), losses.opd_advantage(x, q))[0].sum())(p)
    np.testing.assert_allclose(gradient, -(q - p), rtol=1e-5)

  @parameterized.parameters(*AGGREGATIONS)
  def test_padding_and_empty_sequences_do_not_count(self, how):
    rng = np.random.default_rng(0)
    values, mask = rng.normal(size=(3, 6)), np.arange(6) < np.array([[2], [5], [0]])
    expected = {'token-mean': values[mask].mean(),
                'seq-mean-token-sum': np.mean([values[0, :2].sum(), values[1, :5].sum()]),
                'seq-mean-token-mean': np.mean([values[0, :2].mean(), values[1, :5].mean()])}[how]
    np.testing.assert_allclose(losses.aggregate(values, mask, how), expected, rtol=1e-5)
    values[~mask] = 1e9
    np.testing.assert_allclose(losses.aggregate(values, mask, how), expected, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
