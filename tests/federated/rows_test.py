"""Row-wise rounds: the dense round on few rows, what rests, bytes, attacks, what is refused."""
import dataclasses
import json
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel, train
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.federated import aggregators
from jaxlab.federated import rows as rows_lib
from jaxlab.federated.algorithms import ALGORITHMS, CLIENT_OPTIMIZERS
from jaxlab.task import Loss, Task
from tests import conftest, toy, toy_news

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
V, EXAMPLES = 3000, 48
TABLE, BIAS = 'embed/table', 'embed/bias'
SGD = {'client_optimizer': {'name': 'sgd', 'learning_rate': 0.5}}
SERVER_RATE, LOCAL_RATE = {'server_learning_rate': 0.1}, {'learning_rate': 0.5}
ARGUMENTS = {
    **{name: SERVER_RATE for name in ('fedadam', 'fedadagrad', 'fedams', 'fedsgd', 'fedyogi')},
    **{name: LOCAL_RATE for name in ('fedlada', 'scaffold', 'feddyn', 'mime', 'mimelite')}}
CLIENT = {'fedlalr': {'name': 'fedlalr', 'learning_rate': 0.1},
          'scale_by_adasam': {'name': 'scale_by_adasam'}}
STATEFUL = ('scaffold', 'feddyn')


def make_task(drawn=False):
  """Three ids an example into two tables; with `drawn` the loss sees what `act` drew of them."""
  rng = np.random.default_rng(0)
  data = {'ids': rng.choice(V, 40, replace=False)[rng.integers(0, 40, (EXAMPLES, 3))],
          'label': rng.integers(0, 2, EXAMPLES).astype(np.float32), 'id': np.arange(EXAMPLES)}
  data['ids'] = data['ids'].astype(np.int32)

  def init(key):
    return {'params': {'embed': {'table': jax.random.normal(key, (V, 3)), 'bias': jnp.zeros(V)},
                       'w': jnp.ones(3)}}

  def act(variables, batch, key):
    del variables
    return {**batch, 'ids': jax.random.permutation(key, batch['ids'], axis=1)[:, :2]}

  def loss(variables, batch, key):
    del key
    params, ids = variables['params'], batch['ids']
    logit = params['embed']['table'][ids].sum(1) @ params['w'] + params['embed']['bias'][ids].sum(1)
    values = optax.sigmoid_binary_cross_entropy(logit, batch['label'])
    return Loss(values, batch['weight'])

  return Task(init, loss, None, lambda pairs: {}, lambda split: pipeline.from_arrays(data),
              act if drawn else None, lambda batch: {TABLE: batch['ids'], BIAS: batch['ids']})


def dense(task):
  return dataclasses.replace(task, rows=None)


def run(task, devices=1, workdir=None, hooks=(), state=None, **changes):
  settings = {'num_clients': 8, 'cohort_size': 6, 'rounds': 1, 'batch_size': 4, 'eval_splits': (),
              'partition': {'name': 'iid'}, 'algorithm': {'name': 'fedavg'}, **SGD, **changes}
  return federated.simulate(task, {'seed': 0, 'federated': settings}, workdir=workdir, hooks=hooks,
                            devices=jax.devices()[:devices])


def algorithm_of(name):
  needed = CLIENT_OPTIMIZERS.get(name)
  own = name in ('mime', 'mimelite', 'fedsgd', *STATEFUL)
  return {'algorithm': {'name': name, **ARGUMENTS.get(name, {})},
          'client_optimizer': {} if own else CLIENT.get(needed, SGD['client_optimizer'])}


class EqualTest(parameterized.TestCase):

  def assert_equal(self, task, atol=1e-5, **changes):
    """A row-wise run ends where the dense one does, and has moved."""
    row_wise, whole = run(task, **changes), run(dense(task), **changes)
    chex.assert_trees_all_close(parallel.to_host(row_wise.params), parallel.to_host(whole.params),
                                atol=atol, rtol=1e-4)
    start = task.init(jax.random.split(jax.random.key(0))[0])['params']
    for old, new in zip(jax.tree.leaves(start), jax.tree.leaves(row_wise.params)):
      self.assertGreater(np.abs(old - parallel.to_host(new)).max(), 1e-3)

  @parameterized.parameters(*(name for name in ALGORITHMS if name not in STATEFUL))
  def test_a_round_of_every_algorithm(self, name):
    self.assert_equal(make_task(), **algorithm_of(name))

  @parameterized.parameters('fedavg', 'fedprox', 'fedsgd')
  def test_rounds_whose_server_remembers_nothing_of_a_row(self, name):
    self.assert_equal(make_task(drawn=True), rounds=4, rounds_per_call=2, log_every=2, eval_every=2,
                      devices=2, accumulate=2, **algorithm_of(name))

  @parameterized.parameters(
      ({'name': 'multi_krum', 'num_malicious': 1}, {'name': 'lie', 'fraction': 0.2, 'z': 1.0}),
      ({'name': 'fedra'}, {'name': 'dyn_opt', 'fraction': 0.2}),
      ({'name': 'median'}, {'name': 'sign_flip', 'fraction': 0.2}),
      ({'name': 'norm_bound', 'bound': 0.1}, {'name': 'label_flip', 'fraction': 0.2,
                                              'num_classes': 2}))
  def test_robust_rules_under_attack(self, aggregator, attack):
    self.assert_equal(make_task(), rounds=2, aggregator=aggregator, attack=attack)

  @parameterized.parameters(False, True)
  def test_padding_looks_at_nothing_of_its_own(self, stage):
    # Where a batch is padded stands the first example, whose rows are nobody's here.
    task = make_task()
    data = {**task.dataset('train').arrays, 'user': np.arange(EXAMPLES) // 5}
    data['ids'] = data['ids'].copy()
    data['ids'][:5] = V - 1 - np.arange(15).reshape(5, 3)
    task = dataclasses.replace(task, dataset=lambda split: pipeline.from_arrays(data))
    options = {'num_clients': 10, 'cohort_size': 3, 'partition': {'name': 'by_user'},
               'partition_by': 'user', 'rounds': 4, 'devices': 2}
    for algorithm in ('fedavg', 'fedsgd'):
      options.update(algorithm_of(algorithm))
      row_wise, whole = (run(one, stage=stage, **options) for one in (task, dense(task)))
      chex.assert_trees_all_close(row_wise.params, whole.params, atol=1e-5, rtol=1e-4)

  def test_secure_sums(self):
    plain, secure = run(make_task()), run(make_task(), secure={
        'clip': 4.0, 'bits': 22, 'max_weight': 48})
    chex.assert_trees_all_close(plain.params, secure.params, atol=1e-3)

  @parameterized.parameters(1, 8)
  def test_words_of_news(self, batch_size):
    # Fewer occurrences than news in a batch of 1, more in one of 8, which encodes each news once.
    task = toy_news.make_task(rows=True)
    row_wise, expected = (run(one, rounds=2, batch_size=batch_size, num_clients=4, cohort_size=3)
                          for one in (task, dense(task)))
    chex.assert_trees_all_close(row_wise.params, expected.params, atol=1e-5, rtol=1e-4)


class RestTest(absltest.TestCase):

  def test_rows_that_nobody_looks_at_rest(self):
    # Two of eight clients a round: some rows of the first round are nobody's in the second.
    options = {**algorithm_of('fedadam'), 'cohort_size': 2, 'num_clients': 8}
    first, second = (run(make_task(), rounds=count, **options) for count in (1, 2))
    whole = run(dense(make_task()), rounds=2, **options)
    start = make_task().init(jax.random.split(jax.random.key(0))[0])['params']
    of = lambda state: np.asarray(parallel.to_host(state.params)['embed']['table'])
    touched = (of(first) != np.asarray(start['embed']['table'])).any(1)
    rested = touched & (of(second) == of(first)).all(1)
    self.assertGreater(rested.sum(), 2)  # Adam's momentum moves all that were touched
    self.assertTrue((of(whole)[rested] != of(first)[rested]).all())
    moments = [np.asarray(parallel.to_host(state.server.opt_state[0].mu)['embed']['table'])
               for state in (first, second)]
    np.testing.assert_array_equal(moments[0][rested], moments[1][rested])

  def test_resumes_to_the_bit_identical_end(self):
    options = {**algorithm_of('fedadam'), 'rounds': 4, 'cohort_size': 3, 'save_every': 2}
    whole = run(make_task(), **options)

    def stop(state, number):
      if number == 3:
        raise KeyboardInterrupt
      return state

    hook = lambda apply: [train.Hook('stop', lambda params: (), apply)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
      with self.assertRaises(KeyboardInterrupt):
        run(make_task(), workdir=folder, hooks=hook(stop), **options)
      again = run(make_task(), workdir=folder, hooks=hook(lambda state, _: state), **options)
      toy.assert_trees_equal(again._replace(hooks={}), whole)
      run(make_task(), workdir=other, **options)
      lines = [(pathlib.Path(one) / 'metrics.jsonl').read_text().splitlines()[-1]
               for one in (folder, other)]
      self.assertEqual(*(json.loads(line)['mb_up'] for line in lines))


class SizeTest(absltest.TestCase):

  def test_bytes_are_those_of_the_rows(self):
    with tempfile.TemporaryDirectory() as folder:
      run(make_task(), rounds=2, workdir=folder)
      last = json.loads((pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()[-1])
    model = 4 * (rows_lib.BLOCK * 4 + 3)  # 40 rows in use fill one block
    self.assertAlmostEqual(last['mb_up'], 2 * 6 * (model + 8) / 1e6)
    self.assertAlmostEqual(last['mb_down'], 2 * 6 * (model + 2 * 4 * rows_lib.BLOCK) / 1e6)

  def test_rows_of_rounds(self):
    task = make_task()
    params = jax.eval_shape(task.init, jax.random.key(0))['params']
    dataset = task.dataset('train')
    ids = dataset.arrays['ids']
    rounds = [np.arange(5), np.zeros(0, int), np.arange(EXAMPLES)]
    found = rows_lib.RoundRows(task, dataset, params)(rounds)
    self.assertEqual(set(found), {TABLE, BIAS})
    for rows, examples in zip(found[BIAS], rounds):
      self.assertEqual(rows.shape, (rows_lib.BLOCK,))
      wanted = np.unique(ids[np.append(examples, 0)])
      np.testing.assert_array_equal(rows[:len(wanted)], wanted)
      self.assertTrue((rows[len(wanted):] == V).all())

  def test_no_more_than_the_table(self):
    task = dataclasses.replace(make_task(), rows=lambda batch: {
        BIAS: jnp.where(batch['id'][:, None] < 47, batch['id'][:, None] * 60 + jnp.arange(60), V)})
    params = jax.eval_shape(task.init, jax.random.key(0))['params']
    found = rows_lib.RoundRows(task, task.dataset('train'), params)([np.arange(EXAMPLES)])[BIAS]
    self.assertEqual(found.shape, (1, V))
    self.assertEqual((found < V).sum(), 47 * 60)


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(*STATEFUL)
  def test_clients_that_remember(self, name):
    with self.assertRaisesRegex(ConfigError, r'federated\.algorithm\.name: expected one whose cli'):
      run(make_task(), **algorithm_of(name))

  @parameterized.parameters(
      {'name': 'centered_clip', 'tau': 1.0}, {'name': 'foolsgold'},
      {'name': 'fltrust', 'root_examples': 4},
      {'name': 'clipped_gaussian', 'clip_norm': 1.0, 'noise_multiplier': 1.0},
      {'name': 'truncated', 'alpha': 0.2, 'alpha_star': 0.5, 'rule': {'name': 'foolsgold'}})
  def test_rules_of_the_whole_model(self, **aggregator):
    with self.assertRaisesRegex(ConfigError, r'federated\.aggregator\.name: expected none of '):
      run(make_task(), aggregator=aggregator)
    self.assertIn('foolsgold', aggregators.WHOLE_MODEL)

  def test_decay_of_whole_tables(self):
    with self.assertRaisesRegex(ConfigError, 'optimizer: expected no weight decay'):
      run(make_task(), client_optimizer={'name': 'adamw', 'learning_rate': 0.1})

  def test_a_name_that_is_no_parameter(self):
    task = dataclasses.replace(make_task(), rows=lambda batch: {'embed/tabel': batch['ids']})
    with self.assertRaisesRegex(ConfigError, "Task.rows: expected one of .*, got 'embed/tabel'"):
      run(task)


if __name__ == '__main__':
  absltest.main()
