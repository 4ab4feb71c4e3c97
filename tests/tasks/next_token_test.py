"""The next-token Task: what counts, invariances, evaluation, speaker-wise clients, errors."""
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab import federated, models, parallel
from jaxlab.config import ConfigError
from jaxlab.data import builders, characters, pipeline
from jaxlab.tasks import next_token
from jaxlab.train import TrainState, evaluation, train_step
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
SPEC = next_token.TextSpec(vocab_size=9, length=6, builder='', builder_config='')
SGD = optax.sgd(1.0)  # moves the parameters by the gradient
DATA = {'name': 'shakespeare_demo', 'train': 'train[:200]', 'test': 'test[:50]'}
LSTM = {'name': 'lstm', 'hidden': 8, 'layers': 1}


def sequences(rows, seed=0):
  """Random tokens, all ids among them, which end in EOS and PAD now and then."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, 9, (rows, 7)).astype(np.uint8)
  tokens[::3, 4], tokens[::3, 5:] = characters.EOS, characters.PAD
  return {'input': tokens[:, :-1], 'target': tokens[:, 1:],
          'user': np.arange(rows, dtype=np.int32) % 3}


@functools.cache
def make_task(positions='all'):
  return next_token.from_model(
      models.LSTMLM(9, embed=3, hidden=4, layers=1), SPEC._replace(positions=positions),
      {'train': pipeline.from_arrays(sequences(24)),
       'test': pipeline.from_arrays(sequences(21, seed=1))})


@functools.cache
def start():
  """A TrainState before the first step."""
  params, zero = jax.jit(make_task().init)(jax.random.key(0))['params'], jnp.zeros((), jnp.int32)
  return TrainState(zero, params, {}, SGD.init(params), jax.random.key(1), zero, zero, {})


@functools.cache
def compiled(name, positions='all'):
  return jax.jit(getattr(make_task(positions), name))


def logits_of(batch):
  """float64 logits [B, T, V] of the model before the first step."""
  model = models.LSTMLM(9, embed=3, hidden=4, layers=1)
  return np.asarray(jax.jit(model.apply)({'params': start().params}, batch['input']), np.float64)


def expected_losses(batch):
  """Cross-entropy [B, T] in float64."""
  log_probabilities = special.log_softmax(logits_of(batch), -1)
  return -np.take_along_axis(log_probabilities, batch['target'][..., None].astype(int), -1)[..., 0]


def expected_correct(batch):
  """Whether the likeliest of the symbols 3..7 is the target, [B, T]."""
  return 3 + logits_of(batch)[..., 3:8].argmax(-1) == batch['target']


def one_step(batch, count, accumulate=1):
  """(parameters after a step of plain gradient descent, metrics) on `count` devices."""
  step = functools.partial(train_step, task=make_task(), optimizer=SGD, accumulate=accumulate,
                           trainable=jax.tree.map(lambda _: True, start().params))
  devices = jax.devices()[:count]
  program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None),
                     devices=devices)
  state, metrics = program(start(), {}, parallel.split(batch, devices))
  parallel.assert_replicated((state, metrics))
  return parallel.to_host((state.params, metrics))


def weighted(rows=16):
  """Rows of unlike weights: on several devices each has another sum of them."""
  return {**sequences(rows), 'weight': np.arange(rows, dtype=np.float32) / 8}


@functools.cache
def reference_step():
  """`one_step` on a single device."""
  return one_step(weighted(), 1)


def padded(batch, rows):
  """More rows of nonsense that weigh nothing."""
  pad = lambda x: np.concatenate([x, np.full((rows, *x.shape[1:]), 4, x.dtype)])
  return {**{name: pad(x) for name, x in batch.items()},
          'weight': np.concatenate([batch['weight'], np.zeros(rows, np.float32)])}


class LossTest(parameterized.TestCase):

  def test_closed_form(self):
    batch = weighted()
    loss = compiled('loss')({'params': start().params}, batch, jax.random.key(1))
    target, weight = batch['target'], batch['weight'][:, None]
    chex.assert_shape([loss.values, loss.weights, *loss.metrics['accuracy']], (16, 6))
    self.assertEqual(loss.values.dtype, jnp.float32)
    np.testing.assert_allclose(loss.values, expected_losses(batch), rtol=1e-5)
    np.testing.assert_array_equal(loss.weights, weight * (target != 0))
    correct, scored = loss.metrics['accuracy']
    np.testing.assert_array_equal(correct, expected_correct(batch))
    np.testing.assert_array_equal(scored, weight * (target != 0) * (target != 2))
    self.assertBetween((target == 0).sum(), 5, 40)

  def test_only_the_last_position(self):
    batch = weighted()
    loss = compiled('loss', 'last')({'params': start().params}, batch, jax.random.key(1))
    last = np.arange(6) == 5
    weights = batch['weight'][:, None] * (batch['target'] != 0) * last
    np.testing.assert_array_equal(loss.weights, weights)
    np.testing.assert_array_equal(loss.metrics['accuracy'][1], weights * (batch['target'] != 2))
    self.assertGreater(weights.sum(), 0)

  def test_special_symbols_are_never_predicted(self):
    params = jax.tree.map(jnp.zeros_like, start().params)
    params['Dense_0']['bias'] = jnp.array([9., 9, 9, 0, 0, 1, 0, 0, 9])  # the likeliest symbol is 5
    tokens = np.tile(np.arange(3, 9, dtype=np.uint8), (2, 1))
    batch = {'input': tokens, 'target': tokens, 'weight': np.ones(2, np.float32)}
    correct, _ = compiled('loss')({'params': params}, batch,
                                  jax.random.key(1)).metrics['accuracy']
    np.testing.assert_array_equal(correct, [[0, 0, 1, 0, 0, 0]] * 2)

  @parameterized.parameters((4, 8, 1), (2, 8, 2))
  def test_devices_padding_and_microbatches_change_nothing(self, count, padding, accumulate):
    batch = padded(weighted(), padding)
    chex.assert_trees_all_close(
        reference_step(), one_step(batch, count, accumulate), atol=1e-6, rtol=1e-5)

  def test_the_step_is_the_gradient_of_the_mean_over_tokens(self):
    params, metrics = reference_step()
    batch = weighted()
    weights = batch['weight'][:, None] * (batch['target'] != 0)
    self.assertAlmostEqual(
        float(metrics['loss']), np.average(expected_losses(batch), weights=weights), places=5)
    moved = jax.tree.map(np.subtract, params, parallel.to_host(start().params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))


class EvaluateTest(parameterized.TestCase):

  @parameterized.parameters((1, 'all'), (4, 'all'), (2, 'last'))
  def test_equals_numpy(self, count, positions):
    devices = jax.devices()[:count]
    evaluator = evaluation.Evaluator(make_task(positions), batch_size=4, devices=devices)
    out = evaluator(parallel.place(start(), devices=devices), {}, 'test')
    self.assertEqual(set(out), {'test/accuracy', 'test/loss'})
    batch = sequences(21, seed=1)
    real = (batch['target'] != 0) & (np.arange(6) >= (5 if positions == 'last' else 0))
    self.assertAlmostEqual(out['test/loss'], expected_losses(batch)[real].mean(), places=5)
    scored = real & (batch['target'] != 2)
    self.assertAlmostEqual(out['test/accuracy'], expected_correct(batch)[scored].mean())

  def test_unknown_split(self):
    with self.assertRaisesRegex(ConfigError, "split: unknown name 'tset'; did you mean 'test'"):
      make_task().dataset('tset')


class LearningTest(absltest.TestCase):

  def test_speakers_are_clients_and_the_model_beats_the_unigrams(self):
    # A rule that unigrams cannot know: the next token is the one after, of 3..7 in a circle.
    tokens = 3 + (np.arange(7) + np.arange(40)[:, None]) % 5
    columns = {'input': tokens[:, :-1], 'target': tokens[:, 1:], 'user': np.arange(40) % 4}
    task = next_token.from_model(models.LSTMLM(9, hidden=8, layers=1), SPEC, {
        name: pipeline.from_arrays(columns) for name in ('train', 'test')})
    state = federated.simulate(task, {'seed': 0, 'federated': {
        'num_clients': 4, 'cohort_size': 4, 'rounds': 30, 'rounds_per_call': 10, 'eval_every': 0,
        'log_every': 10, 'batch_size': 5, 'partition': {'name': 'by_user'}, 'partition_by': 'user',
        'algorithm': {'name': 'fedavg'}, 'client_optimizer': {'name': 'adam', 'learning_rate': .03}
    }}, devices=jax.devices()[:2])
    parallel.assert_replicated(state.params)
    params = parallel.to_host(state.params)
    outputs = jax.jit(task.predict)({'params': params}, columns, None)
    metrics = task.evaluate([(parallel.to_host(outputs), columns)])
    self.assertLess(metrics['loss'], 0.5 * np.log(5))  # the entropy of the unigrams is log(5)
    self.assertGreater(metrics['accuracy'], 0.9)


class LoadTest(absltest.TestCase):

  def test_the_task_of_a_config(self):
    task = next_token.make_task({'data': {**DATA, 'positions': 'last'}, 'model': LSTM})
    self.assertLen(task.dataset('train'), 200)
    columns = pipeline.columns(task.dataset('test'))
    self.assertEqual({name: x.shape for name, x in columns.items()},
                     {'input': (50, 80), 'target': (50, 80), 'user': (50,)})
    shapes = jax.eval_shape(task.init, jax.random.key(0))['params']
    self.assertEqual(shapes['Embed_0']['embedding'].shape, (84, 8))
    self.assertEqual(shapes['Dense_0']['kernel'].shape, (8, 84))
    batch = {name: x[:2] for name, x in columns.items()}
    batch['weight'] = np.ones(2, np.float32)
    loss = jax.eval_shape(task.loss, task.init(jax.random.key(0)), batch, jax.random.key(0))
    self.assertEqual(loss.values.shape, (2, 80))

  def test_every_data_set_has_a_builder(self):
    for spec in next_token.DATASETS.values():
      self.assertIn(spec.builder, builders.BUILDERS)


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'data': None}, 'config.data: missing'),
      ({'model': None}, 'config.model: missing'),
      ({'model': {'hidden': 8}}, 'model.name: missing'),
      ({'model': {'name': 'lsmt'}}, "model.name: unknown name 'lsmt'; did you mean 'lstm'"),
      ({'model': {'name': 'lstm', 'hiden': 8}}, "model: unknown key .*; did you mean 'hidden'"),
      ({'model': {'name': 'lstm', 'hidden': 8.5}}, 'model.hidden: expected int, got 8.5'),
      ({'model': {'name': 'lstm', 'vocab_size': 8}}, "model: unknown key 'vocab_size'"),
      ({'data': {'train': 'train'}}, 'data.name: missing'),
      ({'data': {'name': 'shakespear'}}, "data.name: unknown name 'shakespear'; did you mean"),
      ({'data': {**DATA, 'tset': 'test'}}, "data: unknown key 'tset'; did you mean 'test'"),
      ({'data': {**DATA, 'positions': 'first'}}, "data.positions: expected Literal.*'first'"),
  )
  def test_mistakes_are_found_before_any_data(self, change, message):
    config = {k: v for k, v in {'data': DATA, 'model': LSTM, **change}.items() if v is not None}
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      for function in (next_token.check, next_token.make_task):
        with self.assertRaisesRegex(ConfigError, message):
          function(config)

  def test_a_good_config(self):
    self.assertEqual(next_token.check({'data': DATA, 'model': LSTM}),
                     models.LSTMLM(84, hidden=8, layers=1))


if __name__ == '__main__':
  absltest.main()
