"""InfoNCE: closed form, invariances, devices, padding, groups, hard negatives; uniformity."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab import parallel
from jaxlab.losses import contrastive
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
RNG = np.random.default_rng(0)
B, D, TAU = 8, 5, 0.1
GROUPS = np.array([0, 1, 0, 2, 3, 3, 3, 4])


def pairs(rows=B):
  return {name: RNG.normal(size=(rows, D)).astype(np.float32)
          for name in ('anchors', 'positives', 'hard')}


loss = jax.jit(functools.partial(contrastive.info_nce, temperature=TAU))
whole = jax.jit(functools.partial(contrastive.info_nce, temperature=TAU, symmetric=True,
                                  hard_weight=0.5))


class InfoNceTest(absltest.TestCase):

  def test_closed_form(self):
    identical = np.eye(B, dtype=np.float32)
    np.testing.assert_allclose(loss(identical, identical), np.log(1 + (B - 1) * np.exp(-1 / TAU)),
                               atol=1e-6)

  def test_order_and_lengths_change_nothing(self):
    rows, order = pairs(), RNG.permutation(B)
    values = whole(**rows, groups=GROUPS)
    shuffled = whole(**{name: x[order] for name, x in rows.items()}, groups=GROUPS[order])
    np.testing.assert_allclose(shuffled, values[order], atol=1e-5)
    longer = {name: x * RNG.uniform(0.1, 10, (B, 1)).astype(np.float32) for name, x in rows.items()}
    np.testing.assert_allclose(whole(**longer, groups=GROUPS), values, atol=1e-5)

  def test_padding_is_no_negative(self):
    rows, weight = pairs(), np.ones(B, np.float32)
    more = {name: np.concatenate([x, x[:4]]) for name, x in rows.items()}
    values = whole(**rows, real=weight, has_hard=weight > 0)
    padded = whole(**more, real=np.append(weight, np.zeros(4)), has_hard=np.ones(B + 4, bool))
    np.testing.assert_allclose(padded[:B], values, atol=1e-6)
    self.assertGreater(float(jnp.abs(whole(**more)[:B] - values).min()), 1e-4)

  def test_a_group_is_no_negative(self):
    rows = pairs()
    a, p = (np.asarray(contrastive.normalise(rows[name])) for name in ('anchors', 'positives'))
    logits = a @ p.T / TAU
    for i, value in enumerate(loss(rows['anchors'], rows['positives'], groups=GROUPS)):
      others = [j for j in range(B) if j == i or GROUPS[j] != GROUPS[i]]
      self.assertAlmostEqual(float(value), float(np.log(np.exp(logits[i, others]).sum()) -
                                                 logits[i, i]), places=4)

  def test_hard_negatives_that_are_not_there(self):
    rows = pairs()
    there = np.array([True, False] * 4)
    values = loss(**rows, has_hard=there)
    other = {**rows, 'hard': np.where(there[:, None], rows['hard'], 7)}
    np.testing.assert_array_equal(loss(**other, has_hard=there), values)
    np.testing.assert_allclose(loss(**rows, has_hard=~(there | True)),
                               loss(rows['anchors'], rows['positives']), atol=1e-6)

  def test_devices_change_nothing(self):
    rows = {**pairs(), 'groups': GROUPS, 'real': np.arange(B, dtype=np.float32)}

    def gradient(rows):
      vectors = [rows.pop(name) for name in ('anchors', 'positives', 'hard')]
      total = lambda vectors: jnp.sum(rows['real'] * contrastive.info_nce(
          vectors[0], vectors[1], hard=vectors[2], temperature=TAU, symmetric=True, **rows))
      # Summed over the devices, as a step does: a row's own vectors are on one of them.
      return jax.value_and_grad(total)(vectors)

    value, expected = jax.jit(gradient)(dict(rows))
    parts, found = jax.pmap(gradient, axis_name=parallel.BATCH, devices=jax.devices()[:2])(
        parallel.split(rows, jax.devices()[:2]))
    np.testing.assert_allclose(parts.sum(), value, rtol=1e-5)
    # Each device differentiates its own sum; gathered columns send their share back.
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, D), found)
    chex.assert_trees_all_close(flat, jax.tree.map(np.asarray, expected), atol=1e-4, rtol=1e-4)

  def test_half_precision_and_zeros(self):
    rows = pairs()
    half = {name: jnp.asarray(x, jnp.bfloat16) for name, x in rows.items()}
    values = loss(**half)
    self.assertEqual(values.dtype, jnp.float32)
    np.testing.assert_allclose(values, loss(**rows), atol=0.2)
    zero = jnp.zeros((B, D))
    gradient = jax.jit(jax.grad(lambda a: loss(a, rows['positives']).sum()))(zero)
    np.testing.assert_array_equal(gradient, 0)


class GeometryTest(absltest.TestCase):

  def test_uniformity(self):
    x = np.asarray(contrastive.normalise(RNG.normal(size=(6, 3))))
    distances = [((x[i] - x[j])**2).sum() for i in range(6) for j in range(i)]
    self.assertAlmostEqual(float(contrastive.uniformity(3 * x)),
                           float(np.log(np.mean(np.exp(-2 * np.array(distances))))), places=5)
    self.assertAlmostEqual(float(contrastive.uniformity(np.ones((4, 3)))), 0.0, places=5)

  def test_alignment(self):
    x = np.eye(3)
    np.testing.assert_allclose(contrastive.alignment(x, 2 * x), 0, atol=1e-6)
    np.testing.assert_allclose(contrastive.alignment(x, np.roll(x, 1, 0)), 2, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
