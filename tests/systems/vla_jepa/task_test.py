"""VLA-JEPA's Task: losses, who gets a gradient, devices, padding, two stages, errors."""
import functools
import tempfile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl.testing import absltest, parameterized

from configs.vla_jepa import libero
from configs.vla_jepa import tabletop as tabletop_config
from jaxlab import parallel, systems
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.systems.vla_jepa import data, evaluate, model, rollout, sets
from jaxlab.systems.vla_jepa import experiment as experiment_lib
from jaxlab.systems.vla_jepa import task as task_lib
from tests import conftest

assert conftest.FLAGS


def small(**change):
  config = ml_collections.ConfigDict(tabletop_config.get_config())
  config.trunk.update(keypoints=3, pixel_width=4, hidden_size=8, num_hidden_layers=1,
                      num_attention_heads=2)
  config.encoder.update(hidden_size=12, num_attention_heads=2, num_hidden_layers=1)
  config.predictor.update(width=12, num_heads=2)
  config.head.update(width=8, num_heads=2, num_layers=2, hidden=8, out_width=8, future_tokens=1)
  config.world_model.update(repeats=2, cache=False)
  config.batch_size = 4
  config.phases = ({'steps': 2, 'arms': ('robot', 'video')}, {'steps': 2, 'arms': ('robot',)})
  config = config.to_dict()
  for key, value in change.items():
    config[key] = {**config[key], **value}
  return config


@functools.cache
def columns():
  episodes = data.tabletop_episodes(0, 3)
  return data.demo_windows(episodes, starts=(0, 17)), data.clip_windows(episodes, 0)


def make(**change):
  config = small(**change)
  windows, clips = columns()
  source = pipeline.from_arrays(windows)
  return config, task_lib.from_data(task_lib.check(config), data.Data(
      source, pipeline.from_arrays(clips), source, data.INSTRUCTIONS, (data.unit_scales(2),), 1,
      (16, 16)))


def batch_of(dataset, rows=4):
  batch = pipeline.take(dataset, [row % len(dataset) for row in range(rows)])
  return {**batch, 'weight': np.ones(rows, np.float32)}


@functools.cache
def differentiated(name):
  """(params, encoder, batch, loss, jitted function) of an arm; the loss gives (sum, Loss), and the
  function (that, gradients of params and encoder)."""
  _, task = make()
  arm, variables = task.arms[name], jax.jit(task.init)(jax.random.key(0))
  batch = batch_of(arm.dataset(), 6 if name == 'robot' else 4)
  if arm.act is not None:
    batch = jax.jit(arm.act)(variables, batch, jax.random.key(1))
  constants = variables['constants']

  def total(params, encoder, batch):
    fixed = {**constants, 'encoder': encoder}
    out = arm.loss({'params': params, 'constants': fixed}, batch, jax.random.key(2))
    return out.values.sum(), out._asdict()

  function = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  # What starts at zero hides what lies before it.
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32),
                        variables['params'])
  return params, constants['encoder'], batch, total, function


class TaskTest(parameterized.TestCase):

  @parameterized.parameters('robot', 'video')
  def test_who_gets_a_gradient_and_how_the_losses_add_up(self, name):
    params, encoder, batch, _, function = differentiated(name)
    (_, loss), (gradient, frozen) = function(params, encoder, batch)
    self.assertEqual(max(np.abs(x).max() for x in jax.tree.leaves(frozen)), 0)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
      where = jax.tree_util.keystr(path, simple=True, separator='/')
      self.assertTrue(np.isfinite(leaf).all(), where)
      if name == 'video' and where.startswith('head/'):
        self.assertEqual(np.abs(leaf).max(), 0, where)
      elif 'final_norm' not in where:  # the readout is before it
        self.assertGreater(np.abs(leaf).max(), 0, where)
    error = loss['metrics']['l1'][0]
    if name == 'robot':  # the weight of the world model is the robot's alone
      np.testing.assert_allclose(loss['values'], loss['metrics']['action_loss'][0] + 0.1 * error,
                                 rtol=1e-5)
    else:
      np.testing.assert_array_equal(loss['values'], error)

  def test_padded_actions_change_nothing(self):
    params, encoder, batch, _, function = differentiated('robot')
    hidden = batch['action_mask'] == 0
    self.assertTrue(hidden.any())
    # At time 0 the noisy input is noise alone, and padded actions can only tell through the loss.
    batch = {**batch, 't': jnp.zeros_like(batch['t'])}
    other = {**batch, 'actions': np.where(hidden[..., None], 9.0, batch['actions'])}
    values = [function(params, encoder, given)[0][1]['values'] for given in (batch, other)]
    np.testing.assert_allclose(*values, atol=1e-5)

  def test_cached_encodings_are_those_of_the_loss(self):
    experiment = task_lib.check(small())
    parts = experiment_lib.make_parts(experiment, None, None)
    frozen = experiment_lib.encoder_params(experiment)
    clips = pipeline.from_arrays(columns()[1])
    cached = task_lib.cached(parts, frozen, clips)
    context, target = jax.jit(functools.partial(model.encode, parts))(
        frozen, columns()[1]['video'])
    np.testing.assert_allclose(cached.arrays['context'], context, atol=3e-3)  # float16
    np.testing.assert_allclose(cached.arrays['target'], target, atol=3e-3)
    np.testing.assert_array_equal(cached.arrays['image'], columns()[1]['video'][:, :, 0])

  @parameterized.parameters('robot', 'video')
  def test_two_devices_do_what_one_does(self, name):
    params, encoder, batch, total, function = differentiated(name)
    devices = jax.devices()[:2]
    halves = parallel.shard(parallel.split(batch, devices), devices=devices)

    def local(params, encoder, rows):
      return parallel.psum(jax.grad(total, has_aux=True)(params, encoder, rows)[0])

    both = jax.pmap(local, axis_name=parallel.BATCH, devices=devices, in_axes=(None, None, 0),
                    out_axes=None)(params, encoder, halves)
    parallel.assert_replicated(both)
    single = function(params, encoder, batch)[1][0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, atol=1e-6 + 1e-4 * np.abs(a).max()), single, parallel.to_host(both))

  def test_predicts_evaluates_and_rolls_out(self):
    config, task = make()
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = batch_of(task.dataset('test'))
    predict = jax.jit(task.predict)
    outputs = jax.device_get(predict(variables, batch, jax.random.key(0)))
    self.assertEqual(outputs['actions'].shape, (4, 4, 2))
    # The trunk sees the first frame alone, and the world model is asked about the others.
    later, first = batch['video'].copy(), batch['video'].copy()
    later[:, :, 1:], first[:, :, :1] = 255 - later[:, :, 1:], 255 - first[:, :, :1]
    for video, acts in ((later, True), (first, False)):
      other = predict(variables, {**batch, 'video': video}, jax.random.key(0))
      self.assertEqual(np.array_equal(other['actions'], outputs['actions']), acts)
      self.assertFalse(np.array_equal(other['l1'], outputs['l1']))
    metrics = task.evaluate([(outputs, batch)])
    self.assertAlmostEqual(metrics['l1'], metrics['copy_l1'], places=5)  # the residual start
    with tempfile.TemporaryDirectory() as folder:
      counts = evaluate.run(config, variables['params'], conditions=('plain', 'light'), episodes=2,
                            seed=0, output=folder, movies=1)
    self.assertEqual([row[1] for row in counts.values()], [2, 2])
    self.assertIn('plain', evaluate.table(counts))
    with self.assertRaisesRegex(ConfigError, "--conditions: .* did you mean 'light'"):
      evaluate.run(config, None, conditions=('ligth',), episodes=1, seed=0)

  def test_the_regression_head_learns_without_noise(self):
    config = small()
    config['head'] = {'name': 'regression', 'hidden': 8}
    source = pipeline.from_arrays(columns()[0])
    task = task_lib.from_data(task_lib.check(config), data.Data(
        source, None, None, data.INSTRUCTIONS, (data.unit_scales(2),), 1, (16, 16)))
    self.assertEqual(set(task.arms), {'robot'})
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = task.act(variables, batch_of(source), jax.random.key(0))
    self.assertNotIn('noise', batch)
    loss = jax.jit(task.loss)(variables, batch, jax.random.key(0))
    self.assertTrue(np.isfinite(loss.values).all())

  @parameterized.parameters({'head_sees': 'all'}, {'beta': 0.0}, {'repeats': 3},
                            {'weighted': True, 'targets': 'context'}, {'times': 'uniform'},
                            {'context_encoding': 'repeat_frame'})
  def test_options_fit_together(self, **change):
    _, task = make(world_model=change)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    batch = batch_of(task.dataset('train'))
    acted = jax.eval_shape(task.act, variables, batch, jax.random.key(0))
    loss = jax.eval_shape(task.loss, variables, acted, jax.random.key(0))
    self.assertEqual(loss.values.shape, (4,))
    self.assertEqual('l1' in loss.metrics, change != {'beta': 0.0})
    self.assertEqual(acted['t'].shape, (4, change.get('repeats', 2)))


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(*tabletop_config.VARIANTS)
  def test_the_small_configs_are_good(self, variant):
    systems.check(tabletop_config.get_config(variant).to_dict())

  @parameterized.parameters('finetune', 'pretrain')
  def test_the_full_configs_are_good(self, variant):
    config = libero.get_config(variant).to_dict()
    systems.check(config)
    frames = sets.check(config['data'])
    made = experiment_lib.build(config, frames)
    self.assertEqual((made.predictor.state_dim, made.predictor.dtype), (2048, 'bfloat16'))
    # The embodied token stands behind all 28 action tokens, of which 3 are used.
    first = config['trunk']['first_query_id']
    self.assertEqual((made.queries.latent, made.queries.embodied),
                     ((first, first + 1, first + 2), first + 28))
    three = experiment_lib.build(config, frames._replace(views=3))
    self.assertEqual(three.predictor.state_dim, 2048)
    self.assertLen(three.queries.images, 3 * len(made.queries.images) // 2)
    config['trunk']['num_action_tokens'] = 2
    with self.assertRaisesRegex(ConfigError, 'trunk.num_action_tokens: expected at least the 3'):
      experiment_lib.build(config, frames)
    config['trunk']['num_action_tokens'] = None
    self.assertEqual(experiment_lib.build(config, frames).queries.embodied, first + 3)
    # All of its episodes train, so that there is no split to evaluate.
    self.assertEmpty(config['eval_splits'])

  @parameterized.parameters(
      ({'encoder': {'tubelet_size': 3}}, 'data.frames: expected a multiple of tubelet_size=3'),
      ({'encoder': {'hiden_size': 3}}, "encoder: unknown key 'hiden_size'"),
      ({'trunk': {'name': 'keypoint'}}, "trunk.name: .* did you mean 'keypoints'"),
      ({'world_model': {'context_encoding': 'causal'}}, 'world_model.context_encoding: expected'),
      ({'world_model': {'beta': -1.0}}, 'world_model.beta: expected at least 0'),
      ({'prompt': {'words': ()}}, 'prompt: expected either words or tokenizer'),
      ({'prompt': {'num_embodied': 0}}, 'prompt.num_embodied: expected at least 1, got 0'),
      ({'prompt': {'robot': '{instruction}{actions}'}}, 'prompt.robot: expected {e_actions} for'),
      ({'predictor': {'num_heads': 5}}, 'predictor.num_heads: expected a divisor of width=12'),
      ({'head': {'num_heads': 0}}, 'head.num_heads: expected at least 1, got 0'),
      ({'head': {'num_heads': 3}}, 'head.num_heads: expected a divisor of width=8, got 3'),
      ({'head': {'width': 9, 'num_heads': 3}}, 'head.width: expected an even number, got 9'),
      ({'data': {'horizon': 8}}, 'head.max_positions: expected at least data.horizon=8, got 4'),
      ({'rollout': {'executes': 2}}, "rollout: unknown key 'executes'"),
      ({'head': {'name': 'flaw'}}, "head.name: .* did you mean 'flow'"))
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      task_lib.check(small(**change))

  def test_a_chunk_shorter_than_what_is_executed(self):
    with self.assertRaisesRegex(ConfigError, 'rollout.executed: expected at most data.horizon=4'):
      evaluate.run(small(rollout={'executed': 5}), None, conditions=('plain',), episodes=1, seed=0)


class RolloutTest(absltest.TestCase):

  def test_the_policy_sees_the_picture_of_each_plan(self):
    keys = rollout.stack_keys(jax.random.key(0), ('plain',), 3)

    def still(images, target, places, key):
      del target, places, key
      return jnp.zeros((len(images), 4, 2))

    result = rollout.rollout(still, rollout.looks_for(('plain',), 3), keys, executed=4)
    self.assertEqual(result.frames.shape, (3, 5, 16, 16, 3))
    first, last = (result.frames[:, i].astype(int) for i in (0, 4))
    self.assertLessEqual(int(np.abs(first - last).max()), 1)  # rounding
    self.assertFalse(np.any(result.success))


if __name__ == '__main__':
  absltest.main()
