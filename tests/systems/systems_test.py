"""The folders of the systems: found by name, light to import, and enough by themselves."""
import inspect
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from jaxlab import systems
from jaxlab.config import ConfigError
from jaxlab.data import builders

ROOT = pathlib.Path(__file__).parents[2]
HEAVY = ['flax', 'tensorflow_datasets', 'grain', 'matplotlib', 'tokenizers', 'orbax', 'sklearn',
         'tensorboard', 'ml_collections']
NEW_SYSTEM = '''
from jaxlab import config as config_lib
from jaxlab_test_system import reproduce
from tests import toy

CONFIG_KEYS = ('toy',)


def check(config):
  config_lib.check_arguments(toy.softmax_task, config_lib.section(config, 'toy'), 'toy')


def make_task(config):
  return config_lib.call(toy.softmax_task, config['toy'], 'toy')
'''
CONFIG = {
    'task': 'classification', 'seed': 0, 'batch_size': 8, 'steps': 10,
    'data': {'name': 'digits', 'train': 'train[:100]', 'test': 'train[100:]'},
    'model': {'name': 'mlp', 'features': (8,)},
    'optimizer': {'name': 'sgd', 'learning_rate': 0.1},
}
FEDERATED = {
    'num_clients': 4, 'cohort_size': 2, 'rounds': 3, 'partition': {'name': 'iid'},
    'algorithm': {'name': 'fedavg'}, 'client_optimizer': {'name': 'sgd', 'learning_rate': 0.1},
}
SWEEP = {'arms': {'SGD': {'grid': (('optimizer.learning_rate', (0.1, 0.2)),)}}, 'metric': 'loss'}


class NamesTest(parameterized.TestCase):

  def test_every_folder_is_a_system(self):
    folders = sorted(path.parent.name for path in (ROOT / 'jaxlab/systems').glob('*/__init__.py'))
    self.assertEqual(systems.names(), folders)
    self.assertContainsSubset(['adasam', 'fedlalr'], folders)

  @parameterized.parameters(*systems.names())
  def test_every_system_can_be_reproduced(self, name):
    main = systems.load(name).reproduce.main
    names = list(inspect.signature(main).parameters)
    self.assertEqual(names[:3], ['seed', 'workdir', 'ablate'])
    self.assertContainsSubset(names[3:], ['data_dir'])

  @parameterized.parameters(('adasma', 'adasam'), ('fedlar', 'fedlalr'))
  def test_a_typo_names_the_nearest(self, typo, name):
    with self.assertRaisesRegex(ConfigError, f"^unknown system '{typo}'; did you mean '{name}'"):
      systems.load(typo)

  def test_modules_beside_the_folders_are_no_systems(self):
    with self.assertRaisesRegex(ConfigError, "unknown system '__init__'"):
      systems.load('__init__')


class ImportTest(absltest.TestCase):

  def test_the_optimizers_are_light(self):
    program = f'''
import sys
from jaxlab import optim
assert optim.adasam
print(sorted(name for name in {HEAVY} if name in sys.modules))
import flax  # the other half of the test: here these are no names of nothing
print('flax' in sys.modules)
'''
    output = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True,
                            text=True, check=True).stdout
    self.assertEqual(output, '[]\nTrue\n')


class FolderTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    package = folder / 'jaxlab_test_system'
    package.mkdir()
    (package / '__init__.py').write_text(
        NEW_SYSTEM.replace('jaxlab_test_system', 'jaxlab.systems.jaxlab_test_system'))
    (package / 'reproduce.py').write_text('def main(seed, workdir, ablate):\n  return seed == 7\n')
    (folder / 'jaxlab_test_module.py').write_text('')
    self.enter_context(mock.patch.object(systems, '__path__', [*systems.__path__, str(folder)]))

  def tearDown(self):
    for name in [name for name in sys.modules if name.endswith('jaxlab_test_system')
                 or 'jaxlab_test_system.' in name]:
      del sys.modules[name]
    del systems.jaxlab_test_system
    super().tearDown()

  def test_adding_a_folder_is_enough(self):
    self.assertIn('jaxlab_test_system', systems.names())
    self.assertNotIn('jaxlab_test_module', systems.names())  # a file is not a folder
    self.assertTrue(systems.load('jaxlab_test_system').reproduce.main(7, 'nowhere', False))
    config = {'task': 'jaxlab_test_system', 'toy': {'rows': 8}, 'batch_size': 4, 'steps': 1,
              'optimizer': {'name': 'sgd', 'learning_rate': 0.1}}
    self.assertLen(systems.make_task(config).dataset('train'), 8)
    for change, message in (({'toy': {'rwos': 8}}, "toy: unknown key 'rwos'; did you mean 'rows'"),
                            ({'tyo': {}}, "config: unknown key 'tyo'; did you mean 'toy'"),
                            ({'data': {}}, "config: unknown key 'data'")):
      with self.assertRaisesRegex(ConfigError, message):
        systems.check({**config, **change})


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      {}, {'federated': FEDERATED}, {'sweep': SWEEP}, {'federated': FEDERATED, 'sweep': SWEEP})
  def test_a_good_config_needs_no_data(self, **more):
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      systems.check({**CONFIG, **more})

  def test_makes_the_task(self):
    self.assertLen(systems.make_task(CONFIG).dataset('train'), 100)

  @parameterized.parameters(
      ({'task': None}, '^config.task: missing, and config.system: missing$'),
      ({'task': 'classificaton'}, "^config.task: unknown name .*; did you mean 'classification'"),
      ({'task': 'adasma'}, "^config.task: unknown name 'adasma'; did you mean 'adasam'"),
      ({'task': 'adasam'}, "^config.task: expected a task, or a system with .*, got 'adasam'$"),
      ({'optimiser': {}}, "^config: unknown key 'optimiser'; did you mean 'optimizer'"),
      ({'model': {'name': 'mlp', 'fetures': ()}}, "^model: .*; did you mean 'features'"),
      ({'optimizer': {'name': 'sgd', 'learning_rate': -1}}, '^optimizer.learning_rate: '),
      ({'steps': '3'}, r"^config.steps: expected int, got '3' \(str\)$"),
      ({'federated': {**FEDERATED, 'cohort_size': 5}}, '^federated.cohort_size: expected'),
      ({'federated': {**FEDERATED, 'partition': {'name': 'idd'}}},
       "^federated.partition.name: unknown name 'idd'; did you mean 'iid'"),
      ({'federated': {**FEDERATED, 'partition': {'name': 'shards', 'per_clent': 2}}},
       "^federated.partition: unknown key 'per_clent'; did you mean 'per_client'"),
      ({'federated': {**FEDERATED, 'partition': {'name': 'shards'}}},
       '^federated.partition.per_client: missing$'),
      ({'sweep': {**SWEEP, 'metrik': 'x'}}, "^sweep: unknown key 'metrik'; did you mean 'metric'"),
      ({'sweep': {**SWEEP, 'arms': {'A': {'grd': ()}}}}, "^sweep.arms.A: .* mean 'grid'"),
      ({'sweep': {**SWEEP, 'arms': {'A': {'set': (('optimizer.learning_rte', 1.0),)}}}},
       "^sweep.arms.A: optimizer: unknown key 'learning_rte'; did you mean 'learning_rate'"),
      ({'sweep': {**SWEEP, 'arms': {'A': {'grid': (('optimizer.learning_rate', (1.0, -1.0)),)}}}},
       '^sweep.arms.A: optimizer.learning_rate: expected a finite number >= 0, got -1.0$'),
  )
  def test_mistakes_are_found_before_any_data(self, change, message):
    config = {k: v for k, v in {**CONFIG, **change}.items() if v is not None}
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      for function in (systems.check, systems.make_task):
        with self.assertRaisesRegex(ConfigError, message):
          function(config)


if __name__ == '__main__':
  absltest.main()
