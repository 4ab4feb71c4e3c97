"""Properties of the alignment solver."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize

from jaxlab.systems.moge2 import alignment, anchor_bounds, local_loss, losses
from tests import conftest

assert conftest.FLAGS


def problems(count, n, seed=0):
  rng = np.random.default_rng(seed)
  x, y = rng.normal(size=(2, count, n)).astype(np.float32)
  w = (rng.random((count, n)) * (rng.random((count, n)) < .9)).astype(np.float32)
  return x, y, w


class OneDimensionTest(parameterized.TestCase):

  @parameterized.product(trunc=(None, .5), dense=(alignment.DENSE, 0))
  def test_no_point_of_a_scan_is_better(self, trunc, dense):
    x, y, w = problems(200, 20)
    with absltest.mock.patch.object(alignment, 'DENSE', dense):
      out = jax.jit(jax.vmap(functools.partial(alignment.align_1d, trunc=trunc)))(x, y, w)
    grid = np.linspace(-8, 8, 4001)
    errors = w[:, None] * np.abs(grid[:, None] * x[:, None] - y[:, None])
    errors = errors if trunc is None else np.minimum(errors, trunc)
    self.assertLess((np.asarray(out.loss) - errors.sum(-1).min(1)).max(), 1e-5)

  def test_agrees_with_a_linear_program(self):
    x, y, w = (column[0] for column in problems(1, 12, seed=3))
    n = len(x)
    # Variables: a and the errors e >= |a x - y|.
    matrix = np.concatenate([np.c_[x, -np.eye(n)], np.c_[-x, -np.eye(n)]])
    found = optimize.linprog(np.r_[0, w], matrix, np.r_[y, -y],
                             bounds=[(None, None)] + [(0, None)] * n)
    np.testing.assert_allclose(jax.jit(alignment.align_1d)(x, y, w).loss, found.fun, rtol=1e-5)

  @parameterized.parameters(alignment.DENSE, 0)
  def test_the_size_of_the_weights_is_no_matter(self, dense):
    x, y, w = (column[0] for column in problems(1, 30, seed=5))
    with absltest.mock.patch.object(alignment, 'DENSE', dense):
      solve = jax.jit(functools.partial(alignment.align_1d))
      small, plain = (solve(x, y, size * w) for size in (np.float32(1e-7), np.float32(1)))
    self.assertEqual(small.scale, plain.scale)

  def test_nothing_to_align(self):
    zero = jnp.zeros(6)
    for trunc in (None, 1.0):
      out = alignment.align_1d(jnp.ones(6), jnp.ones(6), zero, trunc)
      self.assertTrue(np.isfinite(out.scale))


class PointsTest(parameterized.TestCase):

  @parameterized.parameters('z', 'xyz')
  def test_exact_under_outliers(self, shift):
    rng = np.random.default_rng(1)
    source = rng.normal(size=(30, 3)).astype(np.float32)
    move = np.float32([.3, -.2, 1.]) * (np.float32([0, 0, 1]) if shift == 'z' else 1)
    target = 1.7 * source + move
    target[:12] += rng.normal(size=(12, 3)) * 5
    solve = functools.partial(alignment.align_points_affine, trunc=.05, shift=shift)
    out = jax.jit(solve)(source, target, np.ones(30, np.float32))
    np.testing.assert_allclose(out.scale, 1.7, rtol=1e-4)
    np.testing.assert_allclose(out.shift, move, atol=1e-3)
    scaled = jax.jit(solve)(2 * source, target, np.ones(30, np.float32))
    np.testing.assert_allclose(scaled.scale, 1.7 / 2, rtol=1e-4)

  def test_chunks_and_padding_change_nothing(self):
    rng = np.random.default_rng(2)
    source, target = rng.normal(size=(2, 20, 3)).astype(np.float32)
    w = rng.random(20).astype(np.float32)
    solve = jax.jit(functools.partial(alignment.align_points_affine, trunc=1.0),
                    static_argnames='chunk')
    whole = solve(source, target, w)
    chunked = solve(source, target, w, chunk=3)
    pad = lambda x: np.concatenate([x, np.full((5, *x.shape[1:]), 7, np.float32)])
    padded = solve(pad(source), pad(target), np.r_[w, np.zeros(5)].astype(np.float32))
    for other in (chunked, padded):
      np.testing.assert_allclose(other.scale, whole.scale, rtol=1e-5)
      np.testing.assert_allclose(other.shift, whole.shift, atol=1e-5)
    none = solve(source, target, 0 * w)
    self.assertEqual(none.loss, np.inf)

  def test_weighted_least_squares(self):
    rng = np.random.default_rng(3)
    x, y, w = rng.random((3, 30))
    a, b = alignment.align_affine_lstsq(x, y, w)
    root = np.sqrt(w)
    ours = np.linalg.lstsq(np.stack([root * x, root], 1), root * y, rcond=None)[0]
    np.testing.assert_allclose([a, b], ours, rtol=1e-3)


def shifted_problems(n=90):
  """Problems (source, target [n, 3], w [n]): noise, outliers, signs and sizes, nothing to go by."""
  problems = {}
  for number, (name, scale, noise) in enumerate([
      ('noisy', 1.7, .05), ('negative', -.8, .3), ('tiny', 1e-3, 1e-4), ('large', 50, 3),
      ('exact', 1, 0), ('no x and y', 1.7, .05), ('no weights', 1.7, .05)]):
    rng = np.random.default_rng(number)
    source = rng.normal(size=(n, 3)) + [0, 0, 3]
    target = scale * source + [0, 0, .4] + noise * rng.normal(size=(n, 3))
    target[::7] *= 1 if name == 'exact' else 3
    if name == 'no x and y':
      source[:, :2] = 0
    w = rng.random(n) * (rng.random(n) < .7) * (name != 'no weights')
    problems[name] = tuple(x.astype(np.float32) for x in (source, target, w))
  return problems


class BoundedAnchorTest(parameterized.TestCase):

  @parameterized.parameters(None, .05, 1.0)
  def test_finds_what_trying_every_anchor_finds(self, trunc):
    moved = jnp.float32([0, 0, 1])
    bounded = jax.jit(lambda *x: alignment.align_points_affine(*x, trunc, shift='z').loss)
    every = jax.jit(lambda *x: alignment._best_anchor(*x, trunc, moved, None, 32)[2])
    for name, problem in shifted_problems().items():
      _, target, w = problem
      np.testing.assert_allclose(
          bounded(*problem), every(*problem), rtol=1e-5, err_msg=name,
          atol=2 * float(anchor_bounds.noise_of(target, w[:, None])))

  def test_bounds_are_below_and_leave_few_anchors(self):
    bounds = jax.jit(functools.partial(anchor_bounds.lower_bounds, trunc=1.0))
    objectives = jax.jit(lambda s, t, w: jax.lax.map(
        lambda k: alignment._best_anchor(s, t, w, 1.0, jnp.float32([0, 0, 1]), k[None], 1)[2],
        jnp.arange(len(s))))
    for name, (source, target, w) in shifted_problems().items():
      if name == 'no weights':
        continue
      each = np.asarray(objectives(source, target, w))
      best = int(each.argmin())
      other = int(np.argsort(each)[5])
      moves = alignment.align_points_affine(source, target, w, 1.0, shift='z',
                                            anchors=np.array([other]))
      lower = np.asarray(bounds(source, target, w, scale=moves.scale, objective=moves.loss))
      noise = 2 * float(anchor_bounds.noise_of(target, w[:, None])) + 1e-5 * each[best]
      self.assertTrue((np.minimum(lower, each[other]) <= each + noise).all(), name)
      self.assertLessEqual(lower[best], each[best] + noise, name)
      if name in ('noisy', 'negative', 'large'):
        self.assertLess((lower < each[best]).sum(), 20, name)


class AnchorTest(absltest.TestCase):

  def test_anchors_are_drawn_by_their_weight(self):
    weights = np.float32([[0, 1, 0], [3, 0, 0]])
    drawn = np.asarray(local_loss.sample_anchors(jax.random.key(0), weights, 4000))
    shares = np.bincount(drawn, minlength=6) / 4000
    np.testing.assert_allclose(shares, [0, .25, 0, .75, 0, 0], atol=.03)
    none = local_loss.sample_anchors(jax.random.key(0), 0 * weights, 5)
    self.assertTrue((np.asarray(none) < 6).all())


class InvarianceTest(absltest.TestCase):

  def test_the_global_loss_ignores_scale_and_shift(self):
    rng = np.random.default_rng(4)
    gt = (rng.random((12, 10, 3)) + np.float32([0, 0, 1])).astype(np.float32)
    gt[0, :3] = np.inf
    pred = (.5 * gt + .05 * rng.normal(size=gt.shape)).astype(np.float32)
    pred[0, :3] = 1
    loss = jax.jit(functools.partial(losses.global_loss, resolution=6))
    first = loss(pred, gt)
    moved = loss(3 * pred + np.float32([0, 0, .7]), gt)
    self.assertAlmostEqual(first.value, moved.value, places=5)
    self.assertAlmostEqual(first.scale, 3 * moved.scale, places=3)
    slope = jax.jit(jax.grad(lambda p: losses.metric_scale_loss(2.0, loss(p, gt).scale)))(pred)
    np.testing.assert_array_equal(slope, 0)

  def test_an_image_without_truth_costs_nothing(self):
    gt = np.full((8, 8, 3), np.nan, np.float32)
    pred = np.ones((8, 8, 3), np.float32)
    total = lambda p: losses.global_loss(p, gt, resolution=4).value + losses.edge_loss(p, gt)
    value, gradient = jax.jit(jax.value_and_grad(total))(pred)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, 0)


if __name__ == '__main__':
  absltest.main()
