"""Distillation as a Task: objectives, devices, microbatches, second gradients, errors."""
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import optim, parallel, train
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.models.decoder_lm import DecoderConfig, DecoderLM
from jaxlab.systems.effopd import data
from jaxlab.systems.effopd import task as task_lib
from jaxlab.systems.effopd.rollout import OBJECTIVES, DistillConfig, Models
from jaxlab.train import TrainState, train_step
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
CONFIG = DecoderConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=12, init='scaled')
MODEL = DecoderLM(CONFIG)
WIDE = DecoderLM(dataclasses.replace(CONFIG, hidden_size=12))
EOS = (3, 12, 13)
SGD = optax.sgd(0.5)


@functools.cache
def drawn(seed, model=MODEL):
  return jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))['params']


@functools.cache
def problems():
  """Four digits to sort; some tokens end an answer, so that lengths differ."""
  return data.sorting(train=32, test=8)._replace(eos_ids=EOS, pad_id=11)


def make(teachers=((1, MODEL),), reference=None, **settings):
  models = Models(MODEL, MODEL_INIT, [m for _, m in teachers],
                  [give(drawn(seed, m)) for seed, m in teachers],
                  MODEL if reference is not None else None,
                  give(drawn(reference)) if reference is not None else None)
  several = problems()._replace(teachers=len(teachers) if len(teachers) > 1 else 0)
  return task_lib.from_models(models, several, DistillConfig(**{'max_new': 4, **settings}))


def MODEL_INIT(key):
  return MODEL.init(key, jnp.zeros((1, 1), jnp.int32))['params']


def give(params):
  """The function that gives these parameters."""
  return lambda: params


def batch_of(rows=8, **more):
  columns = pipeline.columns(problems().datasets['train'])
  return {**{name: x[:rows] for name, x in columns.items()},
          'weight': np.array([1, 0, 2, 1, .5, 3, 1, 1], np.float32)[:rows], **more}


def start(task, optimizer=SGD):
  variables = jax.jit(task.init)(jax.random.key(0))
  params, zero = variables['params'], jnp.zeros((), jnp.int32)
  state = TrainState(
      zero, params, {}, optimizer.init(params), jax.random.key(1), zero, zero, {})
  return state, variables.get('constants', {})


def steps(task, batch=None, optimizer=SGD, count=1, number=1, **options):
  """(parameters, metrics) after some steps on so many devices."""
  state, constants = start(task, optimizer)
  devices = jax.devices()[:count]
  step = functools.partial(train_step, task=task, optimizer=optimizer,
                           trainable=jax.tree.map(lambda _: True, state.params), **options)
  program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0), out_axes=(None, None),
                     devices=devices)
  for _ in range(number):
    state, metrics = program(state, constants, parallel.split(batch or batch_of(), devices))
    parallel.assert_replicated((state, metrics))
  return parallel.to_host((state.params, metrics))


class StepTest(parameterized.TestCase):

  def test_every_objective_has_a_gradient_in_every_parameter(self):
    # One acted batch serves all: the loss of an objective looks at what it wants.
    task = make(monitor=2, score_rows=3)
    state, constants = start(task)
    variables = {'params': state.params, 'constants': constants}
    batch = jax.jit(task.act)(variables, batch_of(), jax.random.key(5))
    batch['advantage'] = jnp.linspace(-1, 1, 8)
    tasks = {name: make(objective=name, support=4, monitor=2, chunk=3) for name in OBJECTIVES}

    def gradient(name):
      def loss(params):
        out = tasks[name].loss({**variables, 'params': params}, batch, None)
        return jnp.sum(out.values * out.weights), out.metrics
      return jax.grad(loss, has_aux=True)

    found = jax.jit(lambda params: {name: gradient(name)(params) for name in OBJECTIVES})(
        state.params)
    for name, (grads, metrics) in found.items():
      for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        largest = np.abs(leaf).max()
        self.assertTrue(np.isfinite(largest) and largest > 0,
                        f'{name} {jax.tree_util.keystr(path)}')
      self.assertEqual('kl' in metrics, OBJECTIVES[name] == 'sampled')
      self.assertIn('overlap', metrics)

  @parameterized.parameters(('opd', 'token-mean', 2), ('rkl_full', 'seq-mean-token-mean', 4),
                            ('reinforce', 'seq-mean-token-sum', 2))
  def test_devices_and_microbatches_change_nothing(self, objective, aggregation, count):
    # A reward that some answers get: those of even sums.
    counted = problems()._replace(
        correct=lambda tokens, mask, batch: (tokens * mask).sum(1) % 2 * 1.0)
    models = Models(MODEL, MODEL_INIT, [MODEL], [give(drawn(1))])
    task = task_lib.from_models(models, counted, DistillConfig(
        max_new=4, objective=objective, aggregation=aggregation))
    chex.assert_trees_all_close(
        steps(task, number=2), steps(task, number=2, count=count, accumulate=2), atol=1e-5,
        rtol=1e-4)

  def test_pieces_change_nothing(self):
    whole = steps(make(objective='rkl_full', monitor=3))
    pieces = steps(make(objective='rkl_full', monitor=3, chunk=3, score_rows=3))
    chex.assert_trees_all_close(whole, pieces, atol=1e-5, rtol=1e-4)

  def test_padding_rows_change_nothing(self):
    batch = batch_of()
    padded = {name: np.concatenate([x, x[:4]]) for name, x in batch.items()}
    padded['weight'][8:] = 0
    chex.assert_trees_all_close(
        steps(make())[0], steps(make(), padded)[0], atol=1e-6, rtol=1e-5)

  def test_a_second_gradient_reuses_the_rollouts(self):
    task, batch = make(), batch_of()
    state, constants = start(task)
    variables = {'params': state.params, 'constants': constants}
    acted = jax.jit(task.act)(variables, batch, jax.random.key(5))
    again = jax.jit(task.act)({**variables, 'params': drawn(7)}, batch, jax.random.key(5))
    self.assertTrue(np.any(acted['tokens'] != again['tokens']))  # other parameters, other answers
    draws = []

    def watched(variables, batch, key):
      jax.debug.callback(lambda: draws.append(1))
      return task.act(variables, batch, key)

    steps(dataclasses.replace(task, act=watched), optimizer=optim.adasam(0.01, rho=0.1))
    jax.effects_barrier()
    self.assertLen(draws, 1)

  def test_the_advantage_is_the_teachers_word_on_the_sampled_ids(self):
    task, batch = make(score_rows=3), batch_of()
    state, constants = start(task)
    acted = jax.jit(task.act)({'params': state.params, 'constants': constants}, batch,
                              jax.random.key(5))
    tokens, mask = np.asarray(acted['tokens']), np.asarray(acted['mask'])
    self.assertTrue(np.any(~mask))  # some answers end early
    for row, kept in zip(tokens, mask):
      ends = np.flatnonzero(np.isin(row, EOS))
      length = ends[0] + 1 if len(ends) else 4
      np.testing.assert_array_equal(kept, np.arange(4) < length)
    for name, params in (('old', state.params), ('teacher_logprobs', drawn(1))):
      ids = np.concatenate([batch['prompt'], tokens], 1)
      logits = np.asarray(jax.jit(MODEL.apply)({'params': params}, ids)[0], np.float64)[:, 4:-1]
      logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
      expected = np.take_along_axis(logp, tokens[..., None], -1)[..., 0]
      np.testing.assert_allclose(np.where(mask, acted[name], 0), np.where(mask, expected, 0),
                                 atol=1e-5)
    np.testing.assert_allclose(np.asarray(acted['trust']), mask, atol=1e-4)
    loss = jax.jit(task.loss)({'params': state.params, 'constants': constants}, acted, None)
    advantage = np.asarray(acted['teacher_logprobs'] - acted['old'])
    np.testing.assert_allclose(
        np.where(mask, loss.values, 0), np.where(mask, -advantage, 0), atol=1e-4)
    np.testing.assert_allclose(loss.weights, mask * batch['weight'][:, None])

  def test_the_mean_gradient_is_that_of_the_exact_divergence(self):
    # One token an answer: the sampled loss estimates the full-vocabulary one.
    exact = make(objective='rkl_full', max_new=1)
    sampled = make(objective='opd', max_new=1)
    row = {name: np.repeat(x[:1], 16384, 0) for name, x in batch_of().items()}
    gradients = []
    for task in (exact, sampled):
      state, constants = start(task)
      gradient, _ = jax.jit(train.task_gradient(task, constants))(
          state.params, row, jax.random.key(0))
      gradients.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)]))
    error = np.linalg.norm(gradients[0] - gradients[1]) / np.linalg.norm(gradients[0])
    self.assertLess(error, 0.15)


class VariantsTest(parameterized.TestCase):

  def test_exopd_with_lambda_one_is_opd_and_another_reference_matters_otherwise(self):
    plain = steps(make())
    chex.assert_trees_all_equal(plain, steps(make(reference=5)))
    first, second = (steps(make(reference=seed, lam=1.25))[0] for seed in (5, 6))
    self.assertTrue(any(np.any(a != b) for a, b in
                        zip(jax.tree.leaves(first), jax.tree.leaves(second))))
    constants = start(make(reference=5, lam=1.25))[1]
    self.assertEqual(set(constants), {'teacher_0', 'reference'})

  def test_two_equal_teachers_are_one(self):
    one = steps(make())
    same = steps(make(((1, MODEL), (1, MODEL))), batch_of(teacher=np.arange(8) % 2))
    chex.assert_trees_all_close(one, same, atol=1e-6, rtol=1e-5)

  def test_each_row_has_its_own_teacher(self):
    first, second = (steps(make(((seed, MODEL),), objective='rkl_full'))[1] for seed in (1, 2))
    both = make(((1, MODEL), (2, MODEL)), objective='rkl_full')
    chosen = [steps(both, batch_of(teacher=np.full(8, i)))[1] for i in (0, 1)]
    for alone, of_two in zip((first, second), chosen):
      chex.assert_trees_all_close(alone, of_two, atol=1e-6, rtol=1e-5)
    self.assertGreater(abs(float(first['loss'] - second['loss'])), 1e-3)

  def test_a_wider_teacher(self):
    params, metrics = steps(make(((1, WIDE),), objective='rkl_full'))
    self.assertTrue(np.isfinite(metrics['loss']))

  def test_data_answers_take_the_place_of_rollouts(self):
    batch = batch_of()
    state, constants = start(make())
    act = lambda **settings: jax.jit(make(**settings).act)(
        {'params': state.params, 'constants': constants}, batch, jax.random.key(2))
    given, own, mixed = (act(on_policy=share) for share in (0.0, 1.0, 0.5))
    np.testing.assert_array_equal(given['tokens'], batch['answer'])
    from_data = np.all(mixed['tokens'] == batch['answer'], 1)
    from_student = np.all(mixed['tokens'] == own['tokens'], 1)
    self.assertTrue(np.all(from_data | from_student) and 0 < from_data.sum() < 8)

  def test_supervised_is_the_likelihood_of_the_answer(self):
    task, batch = make(objective='supervised'), batch_of()
    state, _ = start(task)
    acted = task.act({'params': state.params}, batch, jax.random.key(2))
    loss = jax.jit(task.loss)({'params': state.params}, acted, None)
    ids = np.concatenate([batch['prompt'], batch['answer']], 1)
    logp = jax.nn.log_softmax(MODEL.apply({'params': state.params}, ids)[0][:, 4:-1])
    expected = -np.take_along_axis(np.asarray(logp), batch['answer'][..., None], -1)[..., 0]
    np.testing.assert_allclose(loss.values, expected, rtol=1e-4)

  def test_clips_decide_only_off_policy(self):
    task = make(clip_low=0.01, clip_high=0.01)
    _, metrics = steps(task)
    self.assertEqual(float(metrics['clipped']), 0)
    state, constants = start(task)
    variables = {'params': state.params, 'constants': constants}
    acted = jax.jit(task.act)(variables, batch_of(), jax.random.key(5))
    loss = jax.jit(task.loss)({**variables, 'params': drawn(9)}, acted, None)
    self.assertGreater(float((loss.metrics['clipped'][0] * loss.weights).sum()), 0)


class EvaluateTest(absltest.TestCase):

  def test_accuracy_by_hand(self):
    task, batch = make(), batch_of()
    right = np.sort(batch['prompt'][:, :4], axis=1)
    wrong = right.copy()
    wrong[::2, 0] += 1
    mask = np.ones((8, 4), bool)
    self.assertEqual(task.evaluate([({'tokens': right, 'mask': mask}, batch),
                                    ({'tokens': wrong, 'mask': mask}, batch)]),
                     {'accuracy': 0.75, 'length': 4.0})
    state, constants = start(task)
    out = jax.jit(task.predict)({'params': state.params, 'constants': constants}, batch,
                                jax.random.key(0))
    self.assertEqual({name: x.shape for name, x in out.items()},
                     {'tokens': (8, 4), 'mask': (8, 4)})

  def test_validation(self):
    models = Models(MODEL, MODEL_INIT, [MODEL], [give(drawn(1))])
    settings, examples, key = DistillConfig(max_new=4), batch_of(), jax.random.key(0)
    easy = problems()._replace(correct=lambda tokens, mask, batch: tokens[:, 0] % 2 * 1.0)
    validate = task_lib.make_validate(models, easy, settings)
    scores = [validate(drawn(0), examples, k) for k in (key, key, jax.random.key(1))]
    self.assertEqual(scores[0], scores[1])
    self.assertNotEqual(scores[0], scores[2])
    on_host = task_lib.make_validate(models, easy._replace(traceable=False), settings)
    self.assertEqual(on_host(drawn(0), examples, key), scores[0])
    # Student and teacher are scored at the same temperature.
    by_teacher = task_lib.make_validate(
        models, easy, DistillConfig(max_new=4, temperature=0.5), {'teacher_0': drawn(1)})
    self.assertAlmostEqual(by_teacher(drawn(1), examples, key), 0, places=5)
    self.assertLess(by_teacher(drawn(0), examples, key), -0.01)


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'objective': 'odp'}, "distill.objective: unknown name 'odp'; did you mean 'opd'"),
      ({'objective': 'k1'}, 'distill.objective: unknown name'),  # its gradient is zero in the mean
      ({'temperature': 0.0}, 'distill.temperature: expected above 0'),
      ({'on_policy': 1.5}, r'distill.on_policy: expected in \[0, 1\]'),
      ({'max_new': 0}, 'distill.max_new: expected at least 1'),
      ({'lam': 1.25, 'objective': 'rkl_full'}, 'distill.lam: expected 1 for other objectives'),
      ({'lam': 1.25}, 'config.reference: expected a model for distill.lam=1.25'),
      ({'teachers': ()}, "config.teachers: expected a teacher for the objective 'opd'"),
      ({'teachers': ((1, DecoderLM(dataclasses.replace(CONFIG, vocab_size=17))),)},
       r"config.teachers\[0\]: expected the student's vocabulary of 16 tokens, got 17"),
      ({'on_policy': 0.5, 'max_new': 3}, 'distill.max_new: expected the 4 tokens of the answers'),
      ({'support': 0}, 'distill.support: expected at least 1, got 0'),
      ({'support': 17, 'objective': 'rkl_topk'}, 'distill.support: expected at most .* 16 tokens'),
      ({'monitor': 17}, "distill.monitor: expected at most the student's vocabulary of 16 tokens"),
      ({'dual_clip': -1.0}, 'distill.dual_clip: expected at least 1, got -1'),
      ({'rollout_threshold': -1.0}, 'distill.rollout_threshold: expected at least 0, got -1'))
  def test_impossible_settings(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      make(**change)

  @parameterized.parameters((2, 0, "config.data: expected a column 'teacher' that says which"),
                            (2, 3, 'config.teachers: expected the 3 teachers that the data name'),
                            (1, 2, 'config.teachers: expected the 2 teachers that the data name'))
  def test_rows_name_their_teachers(self, teachers, named, message):
    models = Models(MODEL, MODEL_INIT, [MODEL] * teachers, [give(drawn(1))] * teachers)
    with self.assertRaisesRegex(ConfigError, message):
      task_lib.from_models(models, problems()._replace(teachers=named), DistillConfig(max_new=4))

  def test_a_reward_on_the_host_cannot_reinforce(self):
    with self.assertRaisesRegex(ConfigError, 'distill.objective: expected a reward that runs'):
      task_lib.from_models(Models(MODEL, MODEL_INIT), problems()._replace(traceable=False),
                           DistillConfig(max_new=4, objective='reinforce'))


class FitTest(absltest.TestCase):

  def test_it_learns_what_the_teacher_says(self):
    task = make(objective='rkl_full')
    config = {'seed': 0, 'batch_size': 16, 'steps': 30, 'log_every': 30, 'eval_splits': (),
              'optimizer': {'name': 'adam', 'learning_rate': 0.01}}
    state, constants = start(task)
    loss = lambda params: float(jax.jit(task.loss)(
        {'params': params, 'constants': constants}, acted, None).values.mean())
    acted = jax.jit(task.act)({'params': state.params, 'constants': constants}, batch_of(),
                              jax.random.key(5))
    end = train.fit(task, config, devices=jax.devices()[:2])
    parallel.assert_replicated(end.params)
    self.assertLess(loss(parallel.to_host(end.params)), 0.7 * loss(parallel.to_host(
        jax.jit(task.init)(jax.random.split(jax.random.key(0))[0])['params'])))


if __name__ == '__main__':
  absltest.main()
