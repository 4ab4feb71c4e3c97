"""Spectra, directions and interventions: the reference's numbers and their invariances."""
import functools

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.effopd import update_geometry as geometry
from tests.golden_reader import Golden

GOLDEN = Golden('effopd')


@functools.cache
def names():
  return [str(name) for name in GOLDEN['geom/names']]


@functools.cache
def trees():
  """(base, [checkpoints]) as {name: matrix}."""
  count = len(GOLDEN['geom/m/fro'])
  read = lambda folder: {name: GOLDEN[f'geom/{folder}/{name}'] for name in names()}
  return read('base'), [read(f'ckpt{c}') for c in range(count)]


def updates():
  base, checkpoints = trees()
  return [geometry.update(checkpoint, base) for checkpoint in checkpoints]


def examples(folder):
  """(name, array) of an intervention's arrays."""
  keys = [key for key in GOLDEN._arrays if key.startswith(f'geom/{folder}/')]
  assert keys
  return [(key[len(f'geom/{folder}/'):], GOLDEN[key]) for key in keys]


class GoldenTest(absltest.TestCase):

  def test_all(self):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-9)
    for c, delta in enumerate(updates()):
      for n, name in enumerate(names()):
        for metric, value in geometry.spectrum(delta[name])._asdict().items():
          close(value, GOLDEN[f'geom/m/{metric}'][c, n], err_msg=f'{metric} {name}')
        expected = GOLDEN['geom/m/paired_abs_cos'][c, n]
        aligned = geometry.alignment(delta[name], updates()[-1][name], len(expected))
        np.testing.assert_allclose(aligned.paired_abs_cos, expected, atol=1e-4)
        np.testing.assert_allclose(
            aligned.paired_abs_cos.mean(), GOLDEN['geom/m/paired_abs_cos_mean'][c, n], atol=1e-4)
        for metric in ('subspace_proj', 'min_principal_cos', 'flat_cos'):
          np.testing.assert_allclose(getattr(aligned, metric), GOLDEN[f'geom/m/{metric}'][c, n],
                                     atol=1e-4, err_msg=f'{metric} {name}')
    base, checkpoints = trees()
    for k in (1, 2):
      for name, value in examples(f'rank{k}'):
        close(geometry.top_rank(base[name], checkpoints[1][name], k), value)
    for name, value in examples('bottom50'):
      close(geometry.bottom_rank(base[name], checkpoints[-1][name], 0.5), value)
    for beta in (0.0, 0.5, 1.0, 1.3):
      for name, value in examples(f'beta{beta}'):
        close(geometry.scale_to_norm(
            base[name], checkpoints[0][name], checkpoints[-1][name], beta), value)
    for name, value in examples('evr2'):
      np.testing.assert_allclose(
          geometry.compactness([delta[name] for delta in updates()]), value, atol=1e-4)
    for kind in geometry.KINDS:
      for c, delta in enumerate(updates()):
        close(geometry.allocation(delta).layers[kind], GOLDEN[f'geom/layer_norm/{kind}'][c])
    membership, half = GOLDEN['geom/window_membership'], int(GOLDEN['geom/window_half'])
    for centre, row in enumerate(membership, 1):
      np.testing.assert_array_equal(
          np.flatnonzero(row), list(geometry.window_layers(centre, len(row), half)))
    self.assertEmpty([name for name in GOLDEN.unread() if name.startswith('geom/')])


class PropertiesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.rng = np.random.default_rng(0)
    self.matrix = self.rng.normal(size=(7, 5)) @ np.diag([9, 4, 2, 1, .1])

  def rotation(self, size):
    return np.linalg.qr(self.rng.normal(size=(size, size)))[0]

  def test_scale_and_rotation(self):
    plain = geometry.spectrum(self.matrix)
    scaled = geometry.spectrum(-3 * self.matrix)
    turned = geometry.spectrum(self.rotation(7) @ self.matrix @ self.rotation(5))
    np.testing.assert_allclose(turned, plain, rtol=1e-9)
    for name in ('ratio', 'effrank', 'top1pct'):
      self.assertAlmostEqual(getattr(plain, name), getattr(scaled, name))
    self.assertAlmostEqual(scaled.fro, 3 * plain.fro)
    self.assertAlmostEqual(scaled.spectral, 3 * plain.spectral)

  def test_effective_rank_of_equal_values(self):
    self.assertAlmostEqual(geometry.spectrum(self.rotation(6)[:, :4]).effrank, 4)
    self.assertEqual(geometry.spectrum(np.zeros((3, 2))), (0, 0, 0, 0, 0))

  def test_alignment_with_itself_and_signs(self):
    aligned = geometry.alignment(-self.matrix, self.matrix, 3)
    for value in aligned[:3]:
      np.testing.assert_allclose(value, 1, atol=1e-9)
    self.assertAlmostEqual(aligned.flat_cos, -1)

  def test_the_subspace_does_not_see_rotations_inside_it(self):
    u, w = self.rotation(6), self.rotation(6)
    first = u[:, :2] @ np.diag([2, 1]) @ w[:2]
    angle = np.array([[.6, -.8], [.8, .6]])
    second = u[:, :2] @ angle @ np.diag([2, 1]) @ w[:2]
    aligned = geometry.alignment(first, second, 2)
    np.testing.assert_allclose(aligned.paired_abs_cos, .6, atol=1e-9)
    np.testing.assert_allclose(aligned.subspace_proj, [.36, 1], atol=1e-9)
    self.assertAlmostEqual(aligned.min_principal_cos[1], 1)

  @parameterized.parameters((7, 5), (5, 7))
  def test_gram_route(self, rows, columns):
    matrix = self.rng.normal(size=(rows, columns))
    (u, s, vt), exact = geometry.svd(matrix, gram=True), geometry.svd(matrix)[1]
    np.testing.assert_allclose(s, exact, rtol=1e-9)
    np.testing.assert_allclose((u * s) @ vt, matrix, atol=1e-9)
    np.testing.assert_allclose(geometry.spectrum(matrix, gram=True), geometry.spectrum(matrix))

  def test_norm_scaling_reaches_the_final_norm(self):
    base, early, final = self.rng.normal(size=(3, 4, 4))
    scaled = geometry.scale_to_norm(base, early, final, 1.0)
    self.assertAlmostEqual(np.linalg.norm(scaled - base), np.linalg.norm(final - base))
    np.testing.assert_allclose(geometry.scale_to_norm(base, early, final, 0.0), early)
    np.testing.assert_array_equal(geometry.scale_to_norm(base, base, final, 1.0), base)


class TreeTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    kinds = ['self_attn.q_proj', 'self_attn.o_proj', 'mlp.up_proj', 'mlp.down_proj']
    names = [f'model.layers.{i}.{kind}.weight' for i in range(3) for kind in kinds]
    names += ['model.embed_tokens.weight', 'model.norm.weight', 'model.layers.1.mlp.up_proj.bias',
              'model.layers.0.post_attention_layernorm.weight']
    self.base, self.trained = ({name: rng.normal(size=(4, 4)) for name in names} for _ in range(2))

  def test_windows(self):
    empty = geometry.in_window(self.base, self.trained, [], geometry.KINDS)
    whole = geometry.in_window(
        self.base, self.trained, geometry.window_layers(2, 3, half=8), geometry.KINDS)
    for name in self.base:
      self.assertIs(empty[name], self.base[name])
      source = self.trained if geometry.place_of(name) else self.base
      self.assertIs(whole[name], source[name])
    self.assertLen(geometry.matrices(self.base), 12)
    mixed = geometry.in_window(self.base, self.trained, [1], ['mlp'])
    moved = [name for name in self.base if mixed[name] is self.trained[name]]
    self.assertEqual(moved, [f'model.layers.1.mlp.{kind}_proj.weight' for kind in ('up', 'down')])

  def test_allocation(self):
    delta = geometry.update(self.trained, self.base)
    found = geometry.allocation(delta)
    self.assertAlmostEqual(found.thirds.sum(), 1)
    self.assertAlmostEqual(
        found.layers['mlp'][2], np.sqrt(sum(np.sum(delta[f'model.layers.2.mlp.{k}_proj.weight']**2)
                                            for k in ('up', 'down'))))
    self.assertAlmostEqual(found.embedding, np.linalg.norm(delta['model.embed_tokens.weight']))
    norms = [np.linalg.norm(x) for x in geometry.matrices(delta).values()]
    self.assertAlmostEqual(geometry.mean_spectrum(delta).fro, np.mean(norms))

  def test_embedding_and_scaling(self):
    swapped = geometry.swap_embedding(self.trained, self.base)
    for name in self.base:
      source = self.base if 'embed' in name else self.trained
      self.assertIs(swapped[name], source[name])
    a, b = np.eye(3), np.array([[1., 0, 0], [0, -1, 0], [1, 0, 0]])
    self.assertAlmostEqual(geometry.embedding_cosine(a, b, [0, 0, 1, 1]), 0)
    self.assertAlmostEqual(geometry.embedding_cosine(a, b, [0]), 1)
    half = geometry.along(self.base, self.trained, 0.5)
    np.testing.assert_allclose(half['model.norm.weight'], (
        self.base['model.norm.weight'] + self.trained['model.norm.weight']) / 2)


if __name__ == '__main__':
  absltest.main()
