"""launch.inject as users call it: replays under every black-box defence, one line for bad input."""
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from jaxlab.systems.bipia import benchmark, defences, responders
from tests.launch import launch_test
from tests.systems.bipia.benchmark_test import official

CONFIG = '''
import ml_collections

def get_config():
  config = ml_collections.ConfigDict()
  config.system = 'bipia'
  config.data = {{'name': 'official', 'folder': {folder!r}, 'tasks': ('email', 'code')}}
  config.models = ({{'name': 'replay', 'label': 'good', 'path': {folder!r} + '/good.jsonl'}},
                   {{'name': 'replay', 'label': 'bad', 'path': {folder!r} + '/bad.jsonl'}})
  config.defences = tuple({{'name': name}} for name in {names!r})
  return config
'''
BLACK_BOX = ('none', 'border', 'in_context', 'multi_turn', 'datamark', 'delimit', 'encode')


class InjectTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    official(self.folder)
    (self.folder / 'config.py').write_text(
        CONFIG.format(folder=str(self.folder), names=BLACK_BOX))
    whole = benchmark.load(self.folder, tasks=('email', 'code'))
    train = benchmark.load(self.folder, 'train', tasks=('email', 'code'))
    with open(self.folder / 'good.jsonl', 'w') as good, open(self.folder / 'bad.jsonl', 'w') as bad:
      for name in BLACK_BOX:
        defend = defences.make_defence({'name': name}, 'd', train)
        for sample in [*map(whole.__getitem__, range(len(whole))), *whole.clean()]:
          row = {'message': responders.plain(defend(sample))}
          good.write(json.dumps({**row, 'response': 'fine'}) + '\n')
          bad.write(json.dumps({**row, 'response': 'here: x'}) + '\n')

  def inject(self, *arguments):
    return launch_test.launcher()('launch.inject', f'--config={self.folder}/config.py',
                                  f'--workdir={self.folder}/run', *arguments)

  def test_two_models_under_every_black_box_defence(self):
    result = self.inject()
    self.assertEqual(result.status, 0, result.err)
    found = json.loads((self.folder / 'run/report.json').read_text())
    self.assertLen(found, 2 * len(BLACK_BOX))
    for name in BLACK_BOX:
      self.assertEqual(found[f'good, {name}']['task']['code']['value'], 0.0)
      self.assertEqual(found[f'bad, {name}']['task']['code']['value'], 1.0)
      self.assertEqual(found[f'bad, {name}']['missing_responses'], 0)
      self.assertIn(f'bad, {name}', result.out)
    self.assertIn('Base Encoding-0', found['bad, none']['skipped_attacks'])
    self.assertLen(list((self.folder / 'run/figures').glob('*.png')), 3)
    again = self.inject()
    self.assertEqual((again.status, again.out), (0, result.out), again.err)

  @parameterized.parameters(
      (['--config.data.nmae=x'], "unknown key 'nmae'; did you mean 'name'"),
      (['--config.models[0].path=nowhere'], 'replay: expected a file of JSON lines'),
      (['--config.data.folder=nowhere'], 'folder: expected a folder with'))
  def test_one_line_and_status_2(self, arguments, message):
    result = self.inject(*arguments)
    self.assertEqual(result.status, 2, result.err)
    self.assertIn(message, result.err)
    self.assertLen(result.err.strip().splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
