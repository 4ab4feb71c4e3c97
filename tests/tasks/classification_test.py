"""The classification Task: invariances, evaluation, augmentation, noise, units, errors."""
import functools
import pkgutil
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.metrics
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab import models, parallel
from jaxlab.config import ConfigError
from jaxlab.data import builders, pipeline
from jaxlab.tasks import classification
from jaxlab.train import TrainState, evaluation, train_step
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
SPEC = classification.DataSpec(num_classes=3, shape=(4, 4), scale=0.25)
SGD = optax.sgd(1.0)  # moves the parameters by the gradient
DATA = {'name': 'digits', 'train': 'train[:300]', 'test': 'train[300:340]'}
MLP = {'name': 'mlp', 'features': (8,)}


def images(rows, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 5, (rows, 4, 4)).astype(np.uint8)
  return {'image': image, 'label': rng.integers(0, 3, rows)}


@functools.cache
def make_task(rows=21, model='mlp'):
  """A Task of small random images."""
  module = {'mlp': models.MLP(3, (5,)), 'linear': models.MLP(3, ()),
            'cnn': models.CNN(3, (2,), kernel_size=2, hidden=4)}[model]
  return classification.from_model(
      module, SPEC, {'train': pipeline.from_arrays(images(24)),
                     'test': pipeline.from_arrays(images(rows, seed=1))})


def start(task):
  """A TrainState before the first step."""
  params, zero = jax.jit(task.init)(jax.random.key(0))['params'], jnp.zeros((), jnp.int32)
  return TrainState(zero, params, {}, SGD.init(params), jax.random.key(1), zero, zero, {})


def one_step(task, batch, count, accumulate=1):
  """(parameters after a step of plain gradient descent, metrics) on `count` devices."""
  state = start(task)
  step = functools.partial(train_step, task=task, optimizer=SGD, accumulate=accumulate,
                           trainable=jax.tree.map(lambda _: True, state.params))
  devices = jax.devices()[:count]
  program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None),
                     devices=devices)
  state, metrics = program(state, {}, parallel.split(batch, devices))
  parallel.assert_replicated((state, metrics))
  return parallel.to_host((state.params, metrics))


def weighted():
  """16 rows of unlike weights: on several devices each has another sum of them."""
  return {**images(16), 'weight': np.arange(16, dtype=np.float32) / 8}


@functools.cache
def reference_step():
  """`one_step` on a single device."""
  return one_step(make_task(), weighted(), 1)


def padded(batch, rows):
  """More rows of nonsense that weigh nothing."""
  pad = lambda x: np.concatenate([x, np.full((rows, *x.shape[1:]), 2, x.dtype)])
  return {**{name: pad(x) for name, x in batch.items()},
          'weight': np.concatenate([batch['weight'], np.zeros(rows, np.float32)])}


class LossTest(parameterized.TestCase):

  def test_closed_form(self):
    task, batch = make_task(model='linear'), {**images(8), 'weight': np.ones(8, np.float32)}
    variables = jax.jit(task.init)(jax.random.key(0))
    loss = jax.jit(task.loss)(variables, batch, jax.random.key(1))
    layer = variables['params']['Dense_0']
    logits = 0.25 * batch['image'].reshape(8, 16) @ layer['kernel'] + layer['bias']
    log_probabilities = special.log_softmax(np.asarray(logits, np.float64), -1)
    expected = -log_probabilities[np.arange(8), batch['label']]
    np.testing.assert_allclose(loss.values, expected, rtol=1e-5)
    np.testing.assert_array_equal(loss.weights, 1)
    np.testing.assert_array_equal(loss.metrics['accuracy'][0], logits.argmax(-1) == batch['label'])
    np.testing.assert_allclose(task.predict(variables, batch, None), logits, rtol=1e-5)

  def test_first_of_equal_logits(self):
    logits = np.random.default_rng(0).integers(0, 3, (200, 5)).astype(np.float32)
    logits[0], logits[1, :3] = -np.inf, np.inf
    for label in range(5):
      found = jax.jit(classification.are_first)(logits, np.full(200, label))
      np.testing.assert_array_equal(found, logits.argmax(-1) == label)
    nan = np.array([[0, np.nan, 1], [np.nan, 1, 0]], np.float32)
    self.assertFalse(classification.are_first(nan, np.array([2, 0])).any())

  @parameterized.parameters((2, 0, 1), (4, 8, 1), (1, 8, 2), (2, 8, 2), (4, 0, 2))
  def test_devices_padding_and_microbatches_change_nothing(self, count, padding, accumulate):
    batch = padded(weighted(), padding)
    chex.assert_trees_all_close(
        reference_step(), one_step(make_task(), batch, count, accumulate), atol=1e-6, rtol=1e-5)

  def test_a_step_moves_every_parameter(self):
    before = parallel.to_host(start(make_task()).params)
    moved = jax.tree.map(np.subtract, reference_step()[0], before)
    self.assertTrue(all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(moved)))

  def test_dropout_looks_at_the_key_in_training_only(self):
    task, batch = make_task(model='cnn'), {**images(8), 'weight': np.ones(8, np.float32)}
    variables = jax.jit(task.init)(jax.random.key(0))
    loss, predict = jax.jit(task.loss), jax.jit(task.predict)
    values = [loss(variables, batch, jax.random.key(k)).values for k in (1, 1, 2)]
    np.testing.assert_array_equal(values[0], values[1])
    self.assertGreater(np.abs(values[0] - values[2]).max(), 1e-3)
    np.testing.assert_array_equal(predict(variables, batch, jax.random.key(1)),
                                  predict(variables, batch, jax.random.key(2)))

  @parameterized.parameters('mlp', 'cnn')
  def test_every_gradient_is_finite_and_not_zero(self, model):
    task, batch = make_task(model=model), {**images(16), 'weight': np.ones(16, np.float32)}
    params = jax.jit(task.init)(jax.random.key(0))['params']
    gradient = jax.jit(jax.grad(
        lambda p: task.loss({'params': p}, batch, jax.random.key(1)).values.mean()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))


class EvaluateTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 4)
  def test_equals_scikit_learn(self, count):
    task, state = make_task(), start(make_task())
    devices = jax.devices()[:count]
    evaluator = evaluation.Evaluator(task, batch_size=4, devices=devices)
    out = evaluator(parallel.place(state, devices=devices), {}, 'test')
    self.assertEqual(set(out), {'test/accuracy', 'test/loss'})
    data = images(21, seed=1)
    logits = np.asarray(task.predict({'params': state.params}, data, None), np.float64)
    self.assertAlmostEqual(out['test/accuracy'],
                           sklearn.metrics.accuracy_score(data['label'], logits.argmax(-1)))
    self.assertAlmostEqual(
        out['test/loss'],
        sklearn.metrics.log_loss(data['label'], special.softmax(logits, -1), labels=range(3)),
        places=5)

  def test_unknown_split(self):
    with self.assertRaisesRegex(ConfigError, "split: unknown name 'tset'; did you mean 'test'"):
      make_task().dataset('tset')


class AugmentTest(parameterized.TestCase):

  @parameterized.parameters(((6, 5), 2), ((4, 4, 3), 1))
  def test_shifts_and_mirror_images(self, shape, padding):
    image = np.arange(1, 1 + np.prod(shape), dtype=np.uint8).reshape(shape)
    padded = np.pad(image, ((padding,) * 2,) * 2 + ((0, 0),) * (len(shape) - 2))
    options = {}
    for row in range(2 * padding + 1):
      for column in range(2 * padding + 1):
        crop = padded[row:row + shape[0], column:column + shape[1]]
        options[crop.tobytes()] = options[crop[:, ::-1].tobytes()] = 0
    out = classification.crop_and_flip(
        jnp.stack([jnp.array(image)] * 1000), jax.random.key(0), padding=padding)
    self.assertEqual((out.dtype, out.shape), (jnp.uint8, (1000, *shape)))
    for one in np.asarray(out):
      self.assertIn(one.tobytes(), options)
      options[one.tobytes()] += 1
    share = 1000 / len(options)
    self.assertGreater(min(options.values()), share - 5 * share ** 0.5)  # all of them, evenly

  def test_nothing_to_do(self):
    image = images(3)['image']
    augment = functools.partial(classification.crop_and_flip, image, jax.random.key(0))
    np.testing.assert_array_equal(augment(padding=0, flip=False), image)
    np.testing.assert_array_equal(
        np.sort(augment(padding=0).reshape(3, -1)), np.sort(image.reshape(3, -1)))

  def test_acts_on_the_raw_training_images_only(self):
    seen = []

    def augment(image, key):
      seen.append(key)
      return image + 4

    model, spec = models.MLP(3, ()), SPEC._replace(mean=(0.5,), std=(2.0,))
    task = classification.from_model(model, spec, {}, augment=augment)
    batch = {**images(8), 'weight': np.ones(8, np.float32)}
    variables = jax.jit(task.init)(jax.random.key(0))
    layer = variables['params']['Dense_0']
    logits = lambda raw: (raw * 0.25 - 0.5).reshape(8, 16) / 2 @ layer['kernel'] + layer['bias']
    np.testing.assert_allclose(task.predict(variables, batch, None), logits(batch['image']),
                               rtol=1e-5, atol=1e-6)
    self.assertEmpty(seen)
    loss = task.loss(variables, batch, jax.random.key(1))
    expected = optax.softmax_cross_entropy_with_integer_labels(
        logits(batch['image'] + 4), batch['label'])
    np.testing.assert_allclose(loss.values, expected, rtol=1e-5)
    self.assertLen(seen, 1)
    self.assertNotEqual(seen[0], jax.random.key(1))

  def test_the_key_decides(self):
    task = classification.from_model(models.MLP(3, ()), SPEC, {},
                                     augment=classification.crop_and_flip)
    batch = {**images(8), 'weight': np.ones(8, np.float32)}
    variables, loss = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.loss)
    values = [loss(variables, batch, jax.random.key(k)).values for k in (1, 1, 2)]
    np.testing.assert_array_equal(values[0], values[1])
    self.assertGreater(np.abs(values[0] - values[2]).max(), 1e-3)


class NoiseTest(parameterized.TestCase):

  @parameterized.parameters(0.0, 0.3, 1.0)
  def test_label_noise_rate(self, rate):
    columns = {'image': np.arange(20000), 'label': np.arange(20000, dtype=np.int16) % 10}
    noisy = classification.corrupt(columns, num_classes=10, label_noise=rate, seed=3)
    changed = noisy['label'] != columns['label']
    self.assertAlmostEqual(changed.mean(), 0.9 * rate, delta=0.015)  # a tenth is drawn right
    redrawn = np.bincount(noisy['label'][changed], minlength=10)
    deviations = np.abs(redrawn - changed.sum() / 10)
    self.assertLess(deviations.max(), 5 * np.sqrt(20000 * rate / 10 + 1))
    self.assertEqual(noisy['label'].dtype, np.int16)
    self.assertIs(noisy['image'], columns['image'])

  def test_deterministic_in_the_seed(self):
    columns = {'image': np.ones((50, 4)), 'label': np.arange(50) % 10}
    noise = lambda seed: classification.corrupt(
        columns, num_classes=10, label_noise=0.5, seed=seed)['label'].tolist()
    units = lambda seed: classification.unlike_units(
        columns, decades=1.0, seed=seed)['image'].tolist()
    for draw in (noise, units):
      self.assertEqual(draw(1), draw(1))
      self.assertNotEqual(draw(1), draw(2))

  @parameterized.parameters(-0.1, 1.1)
  def test_no_probability(self, rate):
    with self.assertRaisesRegex(ConfigError, f'label_noise: expected a probability, got {rate}'):
      classification.corrupt(images(3), num_classes=3, label_noise=rate)

  def test_units(self):
    columns = {'image': np.ones((3, 40, 50), np.uint8), 'label': np.arange(3)}
    out = classification.unlike_units(columns, decades=0.7, seed=0)
    self.assertEqual(out['image'].dtype, np.float32)
    exponents = np.log10(out['image'])
    np.testing.assert_array_equal(exponents, np.broadcast_to(exponents[:1], (3, 40, 50)))
    self.assertAlmostEqual(np.abs(exponents).max(), 0.7, delta=0.01)
    self.assertAlmostEqual(exponents[0].std(), 1.4 / np.sqrt(12), delta=0.02)  # uniform


class LoadTest(parameterized.TestCase):

  def test_plain(self):
    spec, splits = classification.load_arrays(**DATA)
    self.assertEqual(spec, classification.DATASETS['digits'])
    self.assertEqual({name: x.shape for name, x in splits['train'].items()},
                     {'image': (300, *spec.shape), 'label': (300,)})
    self.assertLen(splits['test']['label'], 40)
    self.assertLessEqual(splits['train']['image'].max() * spec.scale, 1)
    self.assertLess(splits['train']['label'].max(), spec.num_classes)

  def test_noise_touches_training_labels_only(self):
    (_, plain), (_, noisy), (_, again), (_, other) = (
        classification.load_arrays(**DATA, **options) for options in (
            {}, *({'label_noise': 0.5, 'seed': seed} for seed in (1, 1, 2))))
    toy.assert_trees_equal(plain['test'], noisy['test'])
    toy.assert_trees_equal(plain['train']['image'], noisy['train']['image'])
    toy.assert_trees_equal(noisy, again)
    shares = [(a['train']['label'] != b['train']['label']).mean()
              for a, b in ((plain, noisy), (noisy, other))]
    self.assertGreater(min(shares), 0.3)

  def test_both_splits_have_the_same_units(self):
    plain, units = (
        classification.load_arrays(**DATA, units=decades, seed=4)[1] for decades in (0.0, 0.7))
    factors = []
    for split in ('train', 'test'):
      before, after = plain[split]['image'].astype(np.float64), units[split]['image']
      factors.append(after.max(0) / np.maximum(before.max(0), 1))
      np.testing.assert_allclose(after, before * factors[-1], rtol=1e-5)  # one factor a feature
    both = np.all(factors, 0)  # without the pixels that are always white
    self.assertGreater(both.sum(), 30)
    np.testing.assert_allclose(factors[0][both], factors[1][both], rtol=1e-5)
    self.assertGreater(np.ptp(np.log10(factors[0][both])), 0.7)

  def test_the_task_of_a_config(self):
    task = classification.make_task({'data': DATA, 'model': MLP})
    self.assertLen(task.dataset('train'), 300)
    shapes = jax.eval_shape(task.init, jax.random.key(0))['params']
    self.assertEqual(shapes['Dense_0']['kernel'].shape, (64, 8))
    self.assertEqual(shapes['Dense_1']['kernel'].shape, (8, 10))


  def test_every_data_set_names_a_builder_and_its_config(self):
    for name, spec in classification.DATASETS.items():
      builder = pkgutil.resolve_name(builders.BUILDERS[spec.builder or name])
      if spec.builder_config:
        self.assertIn(spec.builder_config, builder.builder_configs)
      self.assertEqual(len(spec.mean), len(spec.std))
      self.assertIn(len(spec.mean), (0, spec.shape[-1]))

  @parameterized.parameters(('cifar_demo', (2, 2), {'image', 'label'}),
                            ('femnist_demo', (1,), {'image', 'label', 'user'}))
  def test_demos(self, name, stage_sizes, columns):
    task = classification.make_task({
        'data': {'name': name, 'train': 'train[:200]', 'test': 'test[:40]'}, 'augment': {},
        'model': {'name': 'resnet_gn', 'stage_sizes': stage_sizes, 'width': 4}})
    train = pipeline.columns(task.dataset('train'))
    self.assertEqual(set(train), columns)
    self.assertEqual(train['image'].shape[1:], classification.DATASETS[name].shape)
    batch = {**{name: x[:2] for name, x in train.items()}, 'weight': np.ones(2, np.float32)}
    loss = jax.eval_shape(task.loss, jax.eval_shape(task.init, jax.random.key(0)), batch,
                          jax.random.key(0))
    self.assertEqual(loss.values.shape, (2,))


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'data': None}, 'config.data: missing'),
      ({'model': None}, 'config.model: missing'),
      ({'model': 'mlp'}, 'config.model: expected Mapping'),
      ({'model': {'features': (8,)}}, 'model.name: missing'),
      ({'model': {'name': 'mpl'}}, "model.name: unknown name 'mpl'; did you mean 'mlp'"),
      ({'model': {'name': 'mlp', 'featurs': ()}}, "unknown key 'featurs'; did you mean 'features'"),
      ({'model': {'name': 'mlp', 'features': 8}}, 'model.features: expected .*Sequence'),
      ({'model': {'name': 'mlp', 'num_classes': 8}}, "model: unknown key 'num_classes'"),
      ({'model': {'name': 'cnn', 'pool': 'all'}}, "model.pool: expected Literal.*got 'all'"),
      ({'data': {**DATA, 'name': 'digit'}}, "data.name: unknown name .*; did you mean 'digits'"),
      ({'data': {'name': 'digits', 'train': 'train'}}, 'data.test: missing'),
      ({'data': {**DATA, 'label_nose': 0.1}}, "data: unknown key .*; did you mean 'label_noise'"),
      ({'augment': 'crop'}, 'config.augment: expected Mapping'),
      ({'augment': {'paddin': 2}}, "augment: unknown key 'paddin'; did you mean 'padding'"),
      ({'augment': {'key': 2}}, "augment: unknown key 'key'"),
      ({'augment': {'padding': 2.5}}, 'augment.padding: expected int, got 2.5'),
      ({'augment': {'padding': -1}}, 'augment.padding: expected at least 0, got -1'),
      ({'data': {**DATA, 'label_noise': '0.1'}}, "data.label_noise: expected float, got '0.1'"),
  )
  def test_mistakes_are_found_before_any_data(self, change, message):
    config = {k: v for k, v in {'data': DATA, 'model': MLP, **change}.items() if v is not None}
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      for function in (classification.check, classification.make_task):
        with self.assertRaisesRegex(ConfigError, message):
          function(config)

  @parameterized.parameters(
      ({'label_noise': 1.5}, 'data.label_noise: expected a probability, got 1.5'),
      ({'train': 'train[:'}, r"digits: no examples in split 'train\[:'"),
      ({'test': 'test'}, "digits: no examples in split 'test'.*known splits: train"),
      ({'seed': -1, 'units': 1.0}, 'data: '),
  )
  def test_values_that_only_the_data_refute(self, change, message):
    classification.check({'data': {**DATA, **change}, 'model': MLP})
    with self.assertRaisesRegex(ConfigError, message):
      classification.make_task({'data': {**DATA, **change}, 'model': MLP})


if __name__ == '__main__':
  absltest.main()
