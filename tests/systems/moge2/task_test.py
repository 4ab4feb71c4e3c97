"""MoGe's Task: gradients, padding, devices, routing, configs."""
import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs.moge2 import scenes as scenes_config
from configs.moge2 import vitl
from jaxlab import parallel, systems
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.optim import factory
from jaxlab.systems.moge2 import data, geometry, network, recovery, resize, scenes, task, weights
from jaxlab.train import task_gradient
from tests import conftest

assert conftest.FLAGS
CONFIG = {
    'task': 'moge2', 'data': {'name': 'scenes', 'builder_config': 'tiny'},
    'model': {
        'encoder': {'width': 12, 'depth': 1, 'num_heads': 2, 'patch': 4, 'grid': 4},
        'layers': (0,), 'dims': (8, 6), 'neck_blocks': (0, 1), 'head_blocks': (1, 0),
        'resamplers': ('conv_transpose',), 'scale_widths': (8,), 'plane': True},
    'loss': {'resolution': 4, 'anchor_step': 1,
             'local': ({'level': 4, 'resolution': 3, 'num_patches': 2},)},
    'predict': {'num_tokens': 16, 'align_size': 8}}


@functools.cache
def columns():
  return data.columns_of(scenes.make(4, 2, 16, 16))


@functools.cache
def make(entangled=False):
  config = {**CONFIG, 'loss': {**CONFIG['loss'], 'entangled': entangled}}
  model, spec, predict = task.check(config)
  return task.from_model(model, spec, lambda: {'test': pipeline.from_arrays(columns())},
                         num_tokens=predict.tokens, align_size=8)


@functools.cache
def params():
  return jax.jit(make().init)(jax.random.key(0))['params']


def batch(rows=4, weight=1.0):
  return {**{name: column[:rows] for name, column in columns().items()},
          'weight': np.full(rows, weight, np.float32)}


def gradient(params, rows, key):
  """The gradient on acted rows; one compilation serves all tests."""
  return given()(params, jax.jit(make().act)({}, rows, key), key)


@functools.cache
def given():
  return jax.jit(task_gradient(make()).given)


def assert_near(a, b):
  np.testing.assert_allclose(a, b, atol=1e-6 + 1e-4 * np.abs(a).max())


class LossTest(parameterized.TestCase):

  def test_every_parameter_has_a_gradient(self):
    grads, sums = gradient(params(), batch(), jax.random.key(1))
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      if 'mask_token' not in name:  # no patch is masked here
        self.assertGreater(np.abs(leaf).max(), 0, name)
    self.assertEqual(sums['valid_scale'][0], 4)

  def test_padding_changes_nothing(self):
    rows = batch()
    rows['weight'][3] = 0
    other = {**rows, 'depth': rows['depth'].copy(), 'image': rows['image'].copy()}
    other['depth'][3], other['image'][3] = np.nan, 7
    (one, sums), (two, padded) = (gradient(params(), x, jax.random.key(1)) for x in (rows, other))
    for name in ('loss', 'global', 'edge', 'mask'):
      np.testing.assert_allclose(*((x[name][0] / x[name][1]) for x in (sums, padded)), rtol=1e-5)
    jax.tree.map(assert_near, one, two)

  def test_two_devices_do_what_one_does(self):
    devices, key = jax.devices()[:2], jax.random.key(5)
    halves = parallel.shard(parallel.split(batch(), devices), devices=devices)
    over = functools.partial(jax.pmap, axis_name=parallel.BATCH, devices=devices)
    act = lambda rows: make().act({}, rows, key)
    acted, whole = over(act)(halves), jax.jit(act)(batch())
    jax.tree.map(np.testing.assert_array_equal, parallel.gather_rows(acted), dict(whole))

    def local(params, rows):
      def total(params):
        out = make().loss({'params': params}, rows, key)
        return jnp.sum(out.values * out.weights)
      return parallel.psum(jax.grad(total)(params))

    both = over(local, in_axes=(None, 0), out_axes=None)(params(), acted)
    parallel.assert_replicated(both)
    single, sums = given()(params(), whole, key)
    scaled = jax.tree.map(lambda x: np.asarray(x) * np.asarray(sums['loss'][1]), single)
    jax.tree.map(assert_near, scaled, parallel.to_host(both))

  def test_labels_route_the_losses(self):
    loss = jax.jit(lambda batch: make().loss({'params': params()}, batch, jax.random.key(0)))
    values = {}
    for number, label in enumerate(data.LABELS):
      out = loss({**batch(), 'label': np.full(4, number, np.int32)})
      values[label] = np.asarray(out.values)
      self.assertEqual(bool(out.metrics['edge'][1].any()), label in 'AB')
    self.assertTrue((values['A'] > values['C']).all())
    np.testing.assert_allclose(values['A'], values['B'], rtol=1e-5)  # there is no level 64 here
    np.testing.assert_array_equal(values['invalid'], 0)

  def test_a_loss_without_weight_is_still_measured(self):
    # A run without a loss is compared with others by it.
    config = {**CONFIG, 'loss': {**CONFIG['loss'], 'weights': {'global': 0.0}}}
    model, spec, _ = task.check(config)
    without = task.from_model(model, spec, dict, num_tokens=16)
    out = jax.jit(without.loss)({'params': params()}, batch(), jax.random.key(0))
    whole = jax.jit(make().loss)({'params': params()}, batch(), jax.random.key(0))
    np.testing.assert_array_equal(out.metrics['global'][1], 1)
    np.testing.assert_allclose(out.values, whole.values - whole.metrics['global'][0], rtol=1e-4)

  def test_entangled_has_no_scale_head(self):
    shapes = jax.eval_shape(make(True).init, jax.random.key(0))['params']
    self.assertFalse([name for name in shapes if name.startswith('scale_head')])
    self.assertTrue([name for name in params() if name.startswith('scale_head')])

  def test_mirroring_keeps_the_geometry(self):
    depth = np.concatenate([batch()['depth']] * 4)
    rows = {'depth': depth, 'image': depth[..., None]}
    acted = jax.jit(lambda: make().act({}, rows, jax.random.key(3)))()
    flipped = np.asarray((acted['depth'] != depth).any((1, 2)))
    self.assertTrue(flipped.any() and not flipped.all())
    wanted = np.where(flipped[:, None, None], depth[:, :, ::-1], depth)
    np.testing.assert_array_equal(acted['depth'], wanted)
    np.testing.assert_array_equal(acted['image'][..., 0], wanted)

  def test_prediction_and_evaluation(self):
    out = jax.jit(make().predict)({'params': params()}, batch(), jax.random.key(0))
    metrics = make().evaluate([(jax.tree.map(np.asarray, out), batch())])
    self.assertEqual(metrics['images'], 4)
    for name in ('points_affine_invariant.rel', 'depth_metric.delta1', 'fov_x.mae',
                 'boundary.radius1_f1', 'mask.iou'):
      self.assertTrue(np.isfinite(metrics[name]), name)
    # A depth map without a valid pixel has no metrics, and harms nobody else's.
    empty = {**batch(), 'depth': np.full((4, 16, 16), np.nan, np.float32)}
    self.assertEqual(make().evaluate([(out, empty)]), {'images': 0.0})
    grads, _ = gradient(params(), empty, jax.random.key(1))
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)))


  def test_local_points_are_of_large_segments(self):
    depth = np.random.default_rng(0).uniform(1, 2, (40, 52)).astype(np.float32)
    segments = np.full(depth.shape, 7)
    segments[:, :20], segments[0] = 3, 0
    intrinsics = np.asarray(geometry.camera_matrix(.8, 1.0))
    example = {'depth': depth, 'segments': segments, 'intrinsics': intrinsics, 'metric': True}
    kept = task.large_segments(segments, depth > 0)
    np.testing.assert_array_equal(kept, np.where(segments == 7, 7, 0))  # 1248 pixels, not 780
    points = np.asarray(geometry.unproject(depth, intrinsics))
    # The small segment is somewhere else; the large one is right up to scale and shift.
    out = {'depth': depth, 'points': np.where(kept[..., None] > 0, 2 * points + 1, 0),
           'intrinsics': intrinsics, 'mask': np.ones_like(depth)}
    metrics = task.image_metrics(out, example, 8)
    np.testing.assert_allclose(metrics['local_points.rel'], 0, atol=1e-4)
    self.assertGreater(metrics['points_affine_invariant.rel'], .01)
    self.assertNotIn('local_points.rel', task.image_metrics(
        out, {**example, 'segments': 0 * segments}, 8))


class RecoveryTest(parameterized.TestCase):

  @parameterized.parameters(0, 1)
  def test_too_few_points(self, count):
    points = np.ones((2, 8, 8, 3), np.float32)
    mask = np.zeros((8, 8), bool)
    mask.reshape(-1)[:count] = True
    focal, shift = jax.jit(recovery.recover_focal_shift)(points[0], mask)
    self.assertEqual((focal, shift), (1, 0))
    found = recovery.infer(points, np.broadcast_to(mask, (2, 8, 8)).astype(np.float32))
    self.assertTrue(np.isfinite(found.intrinsics).all())
    self.assertTrue(np.isfinite(np.asarray(found.depth)[np.asarray(found.mask)]).all())

  def test_the_batch_axis_is_optional(self):
    rng = np.random.default_rng(0)
    points = rng.random((1, 8, 8, 3)).astype(np.float32) + [0, 0, 1]
    given = (points, rng.random((1, 8, 8)), points, np.float32([2]), np.float32([60]))
    many, one = recovery.infer(*given), recovery.infer(*(x[0] for x in given))
    for ours, theirs in zip(one, many):
      np.testing.assert_allclose(ours, theirs[0], rtol=1e-6)

  def test_points_behind_the_camera_are_no_trap(self):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(16, 16, 3)).astype(np.float32)
    focal, shift = jax.jit(recovery.recover_focal_shift)(points, np.ones((16, 16), bool))
    self.assertTrue(np.isfinite(focal) and np.isfinite(shift))
    self.assertGreater(points[..., 2].min() + shift, 0)


class ModelTest(parameterized.TestCase):

  def test_released_size(self):
    config = vitl.get_config()
    model, spec, predict = task.check(config)
    count = lambda model: sum(np.prod(x.shape) for x in
                              jax.tree.leaves(weights.param_shapes(model)))
    self.assertEqual(count(model), 330_901_544)
    self.assertEqual([one.level for one in spec.locals()], [4, 16, 64])
    self.assertEqual((spec.num_tokens, predict.tokens), (1200, 3600))
    official = {
        'encoder': {'backbone': 'dinov2_vitl14', 'intermediate_layers': [5, 11, 17, 23],
                    'dim_out': 1024},
        'neck': {'dim_res_blocks': [1024, 256, 128, 64, 32], 'num_res_blocks': [0, 2, 2, 2, 0],
                 'resamplers': ['conv_transpose'] * 3 + ['bilinear'], 'res_block_in_norm': 'none'},
        'points_head': {'num_res_blocks': [0, 1, 1, 1, 0]}, 'normal_head': {},
        'scale_head': {'dims': [1024, 1024, 1024, 1]}, 'remap_output': 'exp'}
    released = weights.model_from_config({**official, 'normal_head': {'dims': 1}})
    self.assertEqual(count(released), 330_901_544)
    self.assertLess(count(weights.model_from_config(official)) / 1e6, 326.3)

  def test_the_rates_of_heads_and_backbone_halve_together(self):
    optimizer = vitl.get_config().to_dict()['optimizer']
    heads, backbone = (factory._schedule(group['learning_rate'], '')
                       for group in (optimizer, optimizer['groups'][0]))
    self.assertEqual([float(backbone(step)) for step in (0, 999)], [0, 0])
    np.testing.assert_allclose(backbone(1500), 5e-6)
    for step in (2000, 24_999, 25_000, 26_999, 49_999, 50_000, 76_000, 119_999):
      np.testing.assert_allclose(heads(step), 10 * backbone(step), rtol=1e-5, err_msg=str(step))

  @parameterized.parameters(('vitb', 104), ('vits', 35))
  def test_smaller_sizes(self, variant, millions):
    shapes = weights.param_shapes(task.check(vitl.get_config(variant))[0])
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes)) / 1e6
    self.assertLess(abs(count / millions - 1), .06)  # their inner widths are not published

  @parameterized.parameters((1, 1), (2, 1), (3, 4))
  def test_the_gradient_of_a_replicated_border(self, h, w):
    x, g = (jax.random.normal(jax.random.key(i), (2, h + 2 * i, w + 2 * i, 3)) for i in (0, 1))
    plain = lambda x: jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
    for ours, theirs in zip(jax.tree.leaves(jax.vjp(resize.pad_edge, x)[1](g)),
                            jax.tree.leaves(jax.vjp(plain, x)[1](g))):
      np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

  @parameterized.parameters('conv_transpose', 'bilinear', 'nearest', 'pixel_shuffle')
  def test_resamplers_double(self, kind):
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 5))
    module = network.Resampler(6, kind, 1.0, 'float32')
    variables = module.init(jax.random.key(1), x)
    self.assertEqual(module.apply(variables, x).shape, (1, 6, 8, 6))
    if 'up' in variables['params']:  # what is learned starts without a checkerboard
      up = variables['params']['up']
      taps = np.reshape(up['taps'] if kind == 'conv_transpose' else up['kernel'], (-1, 6, 4))
      np.testing.assert_array_equal(taps, np.broadcast_to(taps[..., :1], taps.shape))
      self.assertGreater(taps[..., 0].std(), 0)

  @parameterized.parameters('exp', 'linear', 'sinh', 'sinh_exp')
  def test_remaps(self, kind):
    raw = np.array([.5, -.2, .3])
    x, y, z = raw
    expected = {'exp': [x * np.exp(z), y * np.exp(z), np.exp(z)], 'linear': raw,
                'sinh': np.sinh(raw), 'sinh_exp': [np.sinh(x), np.sinh(y), np.exp(z)]}[kind]
    np.testing.assert_allclose(network.remap_points(raw, kind), expected, rtol=1e-5)


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(scenes_config.get_config, vitl.get_config)
  def test_configs_check(self, get_config):
    systems.check(get_config())
    with self.assertRaisesRegex(ValueError, 'variant: expected'):
      get_config('small')

  @parameterized.parameters(
      (('model', 'layers', (0, 2)), 'model: layers: expected numbers of 1 blocks'),
      (('model', 'dims', (8,)), 'model.neck_blocks: expected 1 values'),
      (('model', 'resamplers', ('bilinar',)), "model.resamplers: unknown name .*'bilinear'"),
      (('model', 'remap', 'log'), 'model.remap: expected'),
      (('model', 'encoder', {'name': 'vitx14'}), "model.encoder.name: unknown name 'vitx14'"),
      (('model', 'encoder', {'width': 4}), 'model.encoder.depth: missing'),
      (('model', 'encoder', {'width': 12, 'depth': 1, 'num_heads': 5, 'patch': 4}),
       'model.encoder.num_heads: expected a divisor of width=12, got 5'),
      (('model', 'encoder', {'width': 12, 'depth': 1, 'num_heads': 0}),
       'model.encoder.num_heads: expected at least 1'),
      (('loss', 'num_tokens', -1), 'loss.num_tokens: expected at least 0'),
      (('loss', 'local', ({'level': 4, 'resolution': 0, 'num_patches': 2},)),
       r'loss.local\[0\].resolution: expected at least 1, got 0'),
      (('loss', 'local', ({'level': 4, 'resolution': 3, 'num_patches': 0},)),
       r'loss.local\[0\].num_patches: expected at least 1, got 0'),
      (('predict', 'max_side', -5), 'predict.max_side: expected 0 or at least 2, got -5'),
      (('predict', 'max_side', 1), 'predict.max_side: expected 0 or at least 2, got 1'),
      (('loss', 'weights', {'gobal': 1.0}), "loss.weights: unknown key 'gobal'; did you mean"),
      (('loss', 'resolution', 0), 'loss.resolution: expected at least 1, got 0'),
      (('loss', 'local', ({'level': 5, 'resolution': 3, 'num_patches': 2},)), 'level: expected'),
      (('predict', 'fov_x', 200.0), 'predict.fov_x: expected degrees below 180'),
      (('predict', 'resolution_level', 10), 'predict.resolution_level: expected 0 to 9'),
      (('data', 'name', 'folders'), 'data.folder: expected'))
  def test_mistakes(self, change, message):
    config = copy.deepcopy(CONFIG)
    part, key, value = change
    config[part][key] = value
    with self.assertRaisesRegex(ConfigError, message):
      task.check(config)


if __name__ == '__main__':
  absltest.main()
