"""What an experiment's models, judge and labels are by default, and what its check refuses."""
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems import bipia
from jaxlab.systems.bipia import benchmark, defences, evaluation, experiment
from tests.systems.bipia.benchmark_test import official, write
from tests.systems.bipia.stub import Stub


class ExperimentTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    official(self.folder)
    self.config = {
        'system': 'bipia', 'clean': False,
        'data': {'name': 'official', 'folder': str(self.folder), 'tasks': ('email',),
                 'max_contexts': 1},
        'models': ({'name': 'replay', 'path': str(self.folder / 'answers.jsonl')},),
        'defences': ({'name': 'none'},)}
    whole = benchmark.load(self.folder, tasks=('email',))
    write(self.folder, 'answers.jsonl', [
        {'message': defences.none(whole[i]), 'response': 'fine'} for i in range(len(whole))])

  @parameterized.parameters(({}, 32), ({'max_tokens': 7}, 7))
  def test_a_judge_says_little_and_is_asked_so_that_a_kill_loses_little(self, own, wanted):
    with Stub() as stub, mock.patch.object(evaluation, 'append', wraps=evaluation.append) as append:
      judge = {'name': 'endpoint', 'url': stub.url, 'model': 'm', 'concurrency': 2, **own}
      bipia.inject({**self.config, 'judge': judge}, self.folder / 'run')
    self.assertEqual([(body['max_tokens'], body['temperature']) for body in stub.bodies],
                     6 * [(wanted, 0)])  # two attacks of a judged type, three positions
    written = {name: [len(call.args[1]) for call in append.mock_calls if call.args[0].name == name]
               for name in (evaluation.RESPONSES, evaluation.SCORES)}
    # One answer at a time from the replay. Scores two and two, first the three that nobody makes.
    self.assertEqual(written[evaluation.RESPONSES], 9 * [1])
    self.assertEqual(written[evaluation.SCORES], [0, 1, 2, 2, 1])

  def test_a_local_judge_says_little_too(self):
    same = lambda chats: ['fine' for _ in chats]
    with mock.patch.object(experiment, 'make_responder', return_value=(same, 64)) as make:
      bipia.inject({**self.config, 'judge': {'name': 'local', 'checkpoint': 'x'}},
                   self.folder / 'run')
    self.assertEqual(make.mock_calls[0].args[0]['max_new'], 32)

  @parameterized.parameters('../../x', 'a/b', '/x', '..', '.', '')
  def test_a_label_is_one_folder(self, label):
    for part in ('models', 'defences'):
      config = {**self.config, part: ({**self.config[part][0], 'label': label},)}
      with self.assertRaisesRegex(ConfigError,
                                  rf'^{part}\[0\].label: expected the name of a folder, got'):
        bipia.check_verb(config)
    with self.assertRaisesRegex(ConfigError, r'^models\[0\].label: expected str, got \[\]'):
      bipia.check_verb({**self.config, 'models': ({**self.config['models'][0], 'label': []},)})

  @parameterized.parameters(
      ({'tasks': ()}, 'tasks: expected some of'), ({'max_attacks': -3}, 'max_attacks: expected at'))
  def test_an_empty_benchmark(self, change, message):
    with self.assertRaisesRegex(ConfigError, f'^{message}'):
      bipia.inject({**self.config, 'data': {**self.config['data'], **change}}, self.folder / 'run')


if __name__ == '__main__':
  absltest.main()
