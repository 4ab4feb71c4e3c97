"""MoGe-2 against the official code: every array of the golden file."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.models.dinov2 import DINOv2
from jaxlab.systems.moge2 import (
  alignment,
  evaluation,
  geometry,
  local_loss,
  losses,
  network,
  recovery,
  resize,
  weights,
)
from tests import conftest
from tests.golden_reader import Golden

assert conftest.FLAGS
GOLDEN = Golden('moge2')
KEYS = tuple(GOLDEN.unread())
TRUNCATIONS = {'none': None, '1.0': 1.0, '0.2': 0.2}
MODEL = network.MoGe(
    DINOv2(24, 4, 3, grid=5, parent=None), (1, 3), (24, 16, 12, 8, 6), (0, 2, 1, 1, 0),
    (0, 1, 1, 1, 0), ('conv_transpose',) * 3 + ('bilinear',), fused=24, scale_widths=(20, 20),
    parent=None)


def nhwc(x):
  return np.moveaxis(x, 1, -1)


@functools.cache
def state_dict():
  return {key.removeprefix('moge_w/'): GOLDEN[key] for key in KEYS if key.startswith('moge_w/')}


@functools.cache
def params():
  return weights.params_from_torch(state_dict(), MODEL)


def assert_gradient(ours, theirs):
  np.testing.assert_allclose(ours, theirs, atol=1e-3 * max(np.abs(theirs).max(), 1e-30))


class GoldenTest(parameterized.TestCase):

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    assert not GOLDEN.unread(), GOLDEN.unread()

  @parameterized.product(name=tuple(TRUNCATIONS), dense=(alignment.DENSE, 0))
  def test_alignment(self, name, dense):
    trunc, at = TRUNCATIONS[name], lambda key: GOLDEN[f'align/{name}/{key}']
    source, target, w = (GOLDEN[f'align/{key}'] for key in ('src', 'tgt', 'w'))
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)

    @jax.jit
    def solve(source):
      z = source[..., 2], target[..., 2], w
      every = lambda f, **options: jax.vmap(functools.partial(f, trunc=trunc, **options))
      out = {'core': every(alignment.align_1d)(*z),
             'points_scale': every(alignment.align_points_scale)(source, target, w),
             'depth_scale': every(alignment.align_depth_scale)(*z),
             'depth_affine': every(alignment.align_depth_affine)(*z)}
      for shift, key in (('z', 'zshift'), ('xyz', 'xyz')):
        out[key] = every(alignment.align_points_affine, shift=shift)(source, target, w)
        out[f'{shift}_only'] = every(alignment.align_points_shift, shift=shift)(source, target, w)
      return out

    total = {'points_scale': lambda out: out.scale.sum(),
             **{key: lambda out: out.scale.sum() + out.shift.sum() for key in ('zshift', 'xyz')}}
    slopes = jax.jit(jax.jacrev(
        lambda source: {key: f(solve(source)[key]) for key, f in total.items()}))
    with absltest.mock.patch.object(alignment, 'DENSE', dense):
      out, gradient = solve(source), slopes(source)
    close(out['core'].scale, at('core_a'))
    close(out['core'].loss, at('core_loss'))
    np.testing.assert_array_equal(out['core'].index, at('core_index'))
    close(out['points_scale'].scale, at('points_scale'))
    close(out['points_scale'].loss, at('points_scale_obj'))
    close(gradient['points_scale'], at('points_scale_grad'))
    close(out['depth_scale'], at('depth_scale'))
    close(out['depth_affine'].scale, at('depth_affine_scale'))
    close(out['depth_affine'].shift, at('depth_affine_shift'))
    for key in ('zshift', 'xyz'):
      close(out[key].scale, at(f'{key}_scale'))
      close(out[key].shift, at(f'{key}_shift'))
      close(out[key].loss, at(f'{key}_obj'))
      close(gradient[key], at(f'{key}_grad'))
    close(out['z_only'], at('z_only_shift'))
    close(out['xyz_only'], at('xyz_only_shift'))

  def test_disparity(self):
    a, b = jax.vmap(alignment.align_affine_lstsq)(1 / GOLDEN['align/src'][..., 2],
                                                  1 / GOLDEN['align/tgt'][..., 2])
    np.testing.assert_allclose(a, GOLDEN['align/disp_lstsq_a'], atol=1e-5)
    np.testing.assert_allclose(b, GOLDEN['align/disp_lstsq_b'], atol=1e-5)

  def test_masked_nearest(self):
    depth = GOLDEN['scene/depth']
    mask = np.isfinite(depth)
    for size in ('16x16', '24x20', '64x64'):
      index, valid = map(np.asarray, resize.masked_nearest(mask, *map(int, size.split('x'))))
      at = lambda key: GOLDEN[f'mnr/{size}/{key}']
      np.testing.assert_array_equal(valid, at('mask'))
      np.testing.assert_array_equal((index // 56)[valid], at('i')[valid])
      np.testing.assert_array_equal((index % 56)[valid], at('j')[valid])
      np.testing.assert_array_equal(depth.reshape(-1)[index][valid], at('value')[valid])

  def test_geometry(self):
    depth, intrinsics = GOLDEN['scene/depth'], GOLDEN['scene/intrinsics']
    finite = np.isfinite(depth)
    self.assertEqual(GOLDEN['scene/seg'].shape, depth.shape)
    np.testing.assert_allclose(geometry.view_plane(5, 7), GOLDEN['uv/a'], atol=1e-6)
    np.testing.assert_allclose(geometry.view_plane(6, 6, 1.7), GOLDEN['uv/b'], atol=1e-6)
    points = np.asarray(geometry.unproject(depth, intrinsics))
    np.testing.assert_allclose(points[finite], GOLDEN['scene/points'][finite], atol=1e-5)
    self.assertAlmostEqual(geometry.diagonal_focal(intrinsics), GOLDEN['loss/gt_focal'], places=6)
    normal, mask = geometry.normals_from_points(points, finite)
    np.testing.assert_allclose(normal, GOLDEN['normals/point_normal'], atol=1e-5)
    np.testing.assert_array_equal(mask, GOLDEN['normals/point_mask'])
    _, steep = geometry.normals_from_points(points, finite, max_angle=88.0)
    np.testing.assert_array_equal(steep, GOLDEN['normals/mask'])
    target = np.asarray(geometry.target_normals(depth, intrinsics))[steep]
    np.testing.assert_allclose(target, GOLDEN['normals/normal'][steep], atol=1e-5)
    np.testing.assert_array_equal(geometry.depth_edges(depth, rtol=.04), GOLDEN['edges/rtol004'])
    np.testing.assert_array_equal(
        geometry.occlusion_edges(np.where(finite, depth, 1), finite, tolerance=.1, thickness=1),
        GOLDEN['edges/occl'])

  @parameterized.parameters(('global', {'resolution': 24}),
                            ('global_beta', {'resolution': 16, 'beta': .1}),
                            ('global_sparse', {'resolution': 16, 'sparsity_aware': True}))
  def test_global_loss(self, name, options):
    at = lambda key: GOLDEN[f'loss/{name}/{key}']

    def loss(pred):
      out = losses.global_loss(pred, GOLDEN['scene/points'], **options)
      return out.value, out

    (value, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(GOLDEN['loss/pred'])
    np.testing.assert_allclose(value, at('value'), rtol=1e-4)
    assert_gradient(gradient, at('grad'))
    for key in ('scale', 'truncated_error', 'delta'):
      np.testing.assert_allclose(getattr(out, key), at(key), rtol=1e-4)

  @parameterized.parameters(4, 8, 16)
  def test_local_loss(self, level):
    at = lambda key: GOLDEN[f'loss/local{level}/{key}']
    gt, focal = GOLDEN['scene/points'], GOLDEN['loss/gt_focal']
    h, w = gt.shape[:2]
    self.assertEqual(local_loss.pixel_radius(h, w, level), at('radius_2d'))
    anchors = at('anchor_i') * w + at('anchor_j')
    self.assertLen(anchors, at('num_patches'))

    def loss(pred):
      out = local_loss.local_loss_given_anchors(
          pred, gt, focal, GOLDEN['loss/global/scale'], anchors, level=level,
          resolution=int(at('align_resolution')), chunk=4)
      return out.value, out

    (value, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(GOLDEN['loss/pred'])
    np.testing.assert_allclose(value, at('value'), rtol=1e-4)
    assert_gradient(gradient, at('grad'))
    np.testing.assert_allclose(out.truncated_error, at('truncated_error'), rtol=1e-4)
    np.testing.assert_allclose(out.delta, at('delta'), rtol=1e-4)
    offsets = np.stack([at('delta_i'), at('delta_j')], -1).transpose(2, 0, 1, 3).astype(np.int32)
    points, mask = losses.finite_points(gt)
    importance = local_loss.anchor_weights(points, mask, focal, level, offsets)
    np.testing.assert_allclose(importance, at('anchor_weight'), atol=1e-7)
    if level == 16:
      self.assertEqual(value, 0)

  def test_other_losses(self):
    pred, gt = GOLDEN['loss/pred'], GOLDEN['scene/points']
    masks = [GOLDEN[f'loss/mask/{key}'] for key in ('pos', 'neg')]
    logit = lambda p: jnp.log(p) - jnp.log1p(-p)
    cases = {
        'edge': (pred, lambda x: losses.edge_loss(x, gt)),
        'normal': (pred, lambda x: losses.normal_loss(x, gt)),
        'normal_map': (GOLDEN['loss/normal_map/pred'],
                       lambda x: losses.normal_map_loss(x, GOLDEN['loss/normal_map/gt'])),
        'mask_bce': (GOLDEN['loss/mask/pred'], lambda x: losses.mask_bce_loss(logit(x), *masks)),
        'mask_l2': (GOLDEN['loss/mask/pred'], lambda x: losses.mask_l2_loss(x, *masks)),
    }
    for name, (x, loss) in cases.items():
      value, gradient = jax.jit(jax.value_and_grad(loss))(x)
      np.testing.assert_allclose(value, GOLDEN[f'loss/{name}/value'], rtol=1e-4, err_msg=name)
      assert_gradient(gradient, GOLDEN[f'loss/{name}/grad'])

  def test_metric_scale(self):
    at = lambda key: GOLDEN[f'loss/metric_scale/{key}']
    loss = lambda pred: losses.metric_scale_loss(pred, at('gt'))
    np.testing.assert_allclose(loss(at('pred')), at('value'), rtol=1e-4)
    gradient = jax.grad(lambda pred: loss(pred).sum())(at('pred'))
    np.testing.assert_allclose(gradient, at('grad'), rtol=1e-4)

  @parameterized.parameters('a', 'b', 'c')
  def test_network(self, case):
    at = lambda key: GOLDEN[f'moge/{case}/{key}']
    image, tokens = nhwc(at('image')), int(at('num_tokens'))
    grid = network.token_grid(tokens, image.shape[2] / image.shape[1])
    self.assertEqual(grid, tuple(at('base_hw')))
    out = jax.jit(functools.partial(MODEL.apply, num_tokens=tokens))({'params': params()}, image)
    np.testing.assert_allclose(out.points, at('points'), rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(out.normal, at('normal'), atol=5e-4)
    np.testing.assert_allclose(jax.nn.sigmoid(out.mask_logit), at('mask'), atol=5e-4)
    np.testing.assert_allclose(out.metric_scale, at('metric_scale'), rtol=1e-4)
    np.testing.assert_allclose(out.features, nhwc(at('enc_features')), atol=2e-4)
    np.testing.assert_allclose(out.cls, at('cls_token'), atol=2e-4)
    if case == 'a':
      resized = resize.bilinear(image, 42, 56, antialias=True)
      np.testing.assert_allclose(resized, nhwc(at('image_resized')), atol=1e-5)

  def test_network_gradient(self):
    image, tokens = nhwc(GOLDEN['moge/c/image']), int(GOLDEN['moge/c/num_tokens'])

    def loss(params):
      out = MODEL.apply({'params': params}, image, num_tokens=tokens)
      return (jnp.mean(out.points**2) + jnp.mean(out.normal[..., 0]) +
              jnp.mean(jax.nn.sigmoid(out.mask_logit)) + jnp.mean(jnp.log(out.metric_scale)**2))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params())
    np.testing.assert_allclose(value, GOLDEN['moge_grad/loss'], rtol=1e-4)
    ours = weights.params_to_torch(gradient, MODEL)
    for key in KEYS:
      if key.startswith('moge_grad/') and key != 'moge_grad/loss':
        assert_gradient(ours[key.removeprefix('moge_grad/')], GOLDEN[key])

  def test_weights_round_trip(self):
    back = weights.params_to_torch(params(), MODEL)
    self.assertEqual(back.keys(), state_dict().keys())
    for name, value in state_dict().items():
      np.testing.assert_array_equal(back[name], value)

  @parameterized.parameters(0, 1, 2)
  def test_focal_and_shift(self, case):
    at = lambda key: GOLDEN[f'focal/{case}/{key}']
    points, mask = at('points'), at('mask')
    focal, shift = jax.jit(recovery.recover_focal_shift)(points, mask)
    _, shift_given = jax.jit(recovery.recover_focal_shift)(points, mask, at('focal_given'))
    np.testing.assert_allclose(focal, at('focal_exact'), rtol=1e-4)
    np.testing.assert_allclose(shift, at('shift_exact'), atol=1e-5)
    np.testing.assert_allclose(focal, at('focal'), rtol=1e-4)
    np.testing.assert_allclose(shift, at('shift'), atol=1e-4)
    np.testing.assert_allclose(shift_given, at('shift_given_exact'), atol=1e-5)
    np.testing.assert_allclose(shift_given, at('shift_given'), atol=1e-4)
    # Noise moves the optimum away from the true camera, but not far.
    np.testing.assert_allclose(focal, at('true_focal'), rtol=.2)
    np.testing.assert_allclose(shift, at('true_shift'), atol=.2)

    h, w = mask.shape
    rows, columns = resize.nearest_indices(64, h), resize.nearest_indices(64, w)
    pick = lambda x: np.asarray(x)[rows][:, columns].astype(np.float64)
    p, uv, m = pick(points), pick(geometry.view_plane(h, w)), pick(mask)

    def objective(f, s):
      q = p[..., :2] / (p[..., 2:] + float(s))
      return float((m * ((float(f) * q - uv)**2).sum(-1)).sum())

    for found, name in (((focal, shift), 'obj_official'), ((focal, shift), 'obj_exact'),
                        ((at('focal_given'), shift_given), 'obj_given_exact')):
      self.assertLessEqual(objective(*found), at(name) * (1 + 1e-4), name)

  @parameterized.parameters(('default', {}), ('fov', {'fov_x': np.float32([70])}),
                            ('noproj', {'force_projection': False}),
                            ('nomask', {'apply_mask': False}))
  def test_post_processing(self, name, options):
    out = recovery.infer(*(GOLDEN[f'post/{key}'] for key in
                           ('points', 'mask_prob', 'normal', 'metric_scale')), **options)
    for key in KEYS:
      if key.startswith(f'post/{name}/'):
        theirs = GOLDEN[key]
        np.testing.assert_allclose(getattr(out, key.split('/')[-1]), theirs, rtol=1e-3, atol=1e-4)

  def test_metrics(self):
    at = lambda key: GOLDEN[f'metrics/{key}']
    segments = np.where(np.isin(at('gt_seg'), (1, 3, 4, 5, 6)), at('gt_seg'), 0)
    truth = evaluation.Truth(at('gt_depth'), at('gt_points'), at('gt_mask'), at('gt_intrinsics'),
                             segments)
    guesses = {
        'out': evaluation.Guess(at('pred_depth'), at('pred_points'), at('pred_intrinsics')),
        'out_disp': evaluation.Guess(disparity=at('pred_disparity'), metric=False)}
    for folder, guess in guesses.items():
      ours = evaluation.evaluate(guess, truth)
      wanted = {key.removeprefix(f'metrics/{folder}/') for key in KEYS
                if key.startswith(f'metrics/{folder}/')}
      self.assertEqual(ours.keys(), wanted)
      for name, value in ours.items():
        tolerance = 1e-3 if name.startswith('boundary') else 1e-4
        np.testing.assert_allclose(value, at(f'{folder}/{name}'), atol=tolerance, err_msg=name)


if __name__ == '__main__':
  absltest.main()
