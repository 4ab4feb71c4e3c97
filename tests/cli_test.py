"""What the launch scripts share: flags, configs, errors of one line."""
import contextlib
import io
import json
import os
import pathlib
import tempfile

from absl import flags
from absl.testing import absltest, parameterized

from jaxlab import cli
from jaxlab.config import ConfigError
from tests.launch import launch_test

SCRIPT = '''"""Says what it was told.

The second paragraph.
"""
import json
import logging
import os

import jax
from absl import logging as absl_logging

from jaxlab import cli
from jaxlab.config import ConfigError

_CONFIG, _WORKDIR = cli.define_config(), cli.define_workdir()


def main():
  config = cli.experiment(_CONFIG)
  if config['number'] < 0:
    raise ConfigError('config.number: expected >= 0')
  if config['number'] == 13:
    raise ValueError('a bug')
  if config['number'] == 17:
    logging.getLogger('jaxlab.train.run').info('resumed from step %d', 7)
    logging.getLogger('jaxlab.train.run').debug('nobody wants to know')
    absl_logging.info('a library')
    logging.getLogger('another.library').info('says hello')
    absl_logging.warning('but this matters')
  print(json.dumps({'config': config, 'workdir': _WORKDIR.value, 'devices': jax.device_count(),
                    'data_dir': os.environ.get('TFDS_DATA_DIR')}))


if __name__ == '__main__':
  cli.run(main, __doc__, all_cores=lambda: _CONFIG.value and _CONFIG.value.all_cores)
'''
CONFIG = '''
import ml_collections

def get_config(variant='plain'):
  values = {'plain': 1, 'large': 100}
  config = ml_collections.ConfigDict()
  config.number, config.rate, config.all_cores = values[variant], 0.5, False
  config.inner = {'name': 'x', 'sizes': (1, 2), 'arms': ((('a.b', {'c': 1}),),)}
  return config
'''
INNER = {'name': 'x', 'sizes': [1, 2], 'arms': [[['a.b', {'c': 1}]]]}


class ScriptTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    (self.folder / 'script.py').write_text(SCRIPT)
    (self.folder / 'config.py').write_text(CONFIG)
    (self.folder / 'bad.py').write_text('def get_config(:\n  pass\n')

  def launch(self, *arguments):
    return launch_test.launcher()(
        self.folder / 'script.py', *(a.format(folder=self.folder) for a in arguments))

  def told(self, *arguments):
    result = self.launch('--config={folder}/config.py', *arguments)
    self.assertEqual((result.status, result.err), (0, ''))
    return json.loads(result.out)

  def test_defaults(self):
    self.assertEqual(self.told(), {
        'config': {'number': 1, 'rate': 0.5, 'all_cores': False, 'inner': INNER}, 'workdir': None,
        'devices': 1, 'data_dir': os.environ['TFDS_DATA_DIR']})

  def test_overrides(self):
    told = self.told('--config.number=7', '--config.inner.name=y', '--workdir=w', '--data_dir=d')
    self.assertEqual((told['config']['number'], told['config']['inner']['name']), (7, 'y'))
    self.assertEqual((told['workdir'], told['data_dir']), ('w', 'd'))

  def test_variants(self):
    result = self.launch('--config={folder}/config.py:large')
    self.assertEqual(json.loads(result.out)['config']['number'], 100)

  def test_devices(self):
    self.assertEqual(self.told('--cpu_devices=3')['devices'], 3)
    self.assertEqual(self.told('--config.all_cores')['devices'], os.cpu_count())
    self.assertEqual(self.told('--config.all_cores', '--cpu_devices=3')['devices'], 3)

  def test_help(self):
    result = self.launch('--help')
    self.assertStartsWith(result.out.strip(), 'Says what it was told.\n\nThe second paragraph.')
    for flag in ('config', 'workdir', 'cpu_devices', 'data_dir'):
      self.assertIn(f'--{flag}:', result.out)

  @parameterized.parameters(
      (['--config.number=-1'], 'config.number: expected >= 0'),
      (['--config.number=x'], 'flag --config.number=x: invalid literal for int.*'),
      (['--config.nmber=2'], "--config: unknown key 'nmber'; did you mean 'number'. .known: .*"),
      (['--config.inner.nme=2'],
       r"--config.inner: unknown key 'nme'; did you mean 'name'\? \(known: arms, name, sizes\)"),
      (['--config.zzz=2'], r"--config: unknown key 'zzz' \(known: .*\)"),
      (['--config.number.x=2'], '--config.number: expected a mapping, got 1'),
      (['--config.inner.sizes[9]=2'], '.*out of range'),
      (['--config.inner=2'], '.*is not a dict.*'),
      (['--config={folder}/config.py:lareg'], "--config: 'lareg' is unknown to the config file"),
      (['--config={folder}/cnfig.py'], r"--config: .*No such file or directory: '.*/cnfig.py'"),
      (['--config={folder}'], r'--config: .*Is a directory.*'),
      (['--config={folder}/bad.py'], r'--config: invalid syntax \(bad.py, line 1\)'),
      (['--workdr=x'], "Unknown command line flag 'workdr'. Did you mean: workdir .*"),
      (['spare'], "unexpected argument 'spare'; flags are written --name=value"),
      (['--cpu_devices=0'], '.*cpu_devices=0.*'), (['--cpu_devices=x'], '.*cpu_devices=x.*'),
      (['--coordinator=x:1'], '--coordinator, --num_processes and --process_id go together'),
      (['--coordinator=localhost:1', '--num_processes=2', '--process_id=2'],
       '--process_id: expected 0 <= id < 2, got 2'),
  )
  def test_bad_input_is_one_line_and_status_2(self, arguments, message):
    config = [] if arguments[0].startswith('--config=') else ['--config={folder}/config.py']
    result = self.launch(*config, *arguments)
    self.assertRegex(result.err, f'^error: {message}\n$')
    self.assertEqual((result.status, result.out, result.err.count('\n')), (2, '', 1))

  def test_a_missing_config(self):
    result = self.launch()
    self.assertEqual(result, (2, '', 'error: --config: missing (see --help)\n'))

  def test_our_own_lines_are_shown_once_and_others_if_something_is_wrong(self):
    result = self.launch('--config={folder}/config.py', '--config.number=17')
    self.assertRegex(
        result.err, r'^\d\d:\d\d:\d\d resumed from step 7\nW.*\] but this matters\n$')

  def test_a_bug_keeps_its_traceback(self):
    result = self.launch('--config={folder}/config.py', '--config.number=13')
    self.assertEqual(result.status, 1)
    self.assertIn('Traceback', result.err)
    self.assertEndsWith(result.err, 'ValueError: a bug\n')


class HolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def holder(self, value):
    values = flags.FlagValues()
    made = flags.DEFINE_string('workdir', None, 'Folder.', flag_values=values)
    values(['script', *([f'--workdir={value}'] if value is not None else [])])
    return made

  def test_require_flag(self):
    self.assertEqual(cli.require_flag(self.holder('x')), 'x')
    with self.assertRaisesRegex(ConfigError, r'^--workdir: missing \(see --help\)$'):
      cli.require_flag(self.holder(None))

  def test_the_config_of_a_workdir(self):
    (self.folder / 'config.json').write_text('{"seed": 3}')
    self.assertEqual(cli.workdir_config(self.holder(self.folder)), {'seed': 3})
    (self.folder / 'config.json').write_text('{"seed": ')
    with self.assertRaisesRegex(ConfigError, '^--workdir=.*: config.json: expected json .*line 1'):
      cli.workdir_config(self.holder(self.folder))

  def test_a_workdir_without_a_run(self):
    with self.assertRaisesRegex(ConfigError, r'^--workdir=.*: no run there \(config.json is'):
      cli.workdir_config(self.holder(self.folder))
    with self.assertRaisesRegex(ConfigError, '^--workdir: missing'):
      cli.workdir_config(self.holder(None))


class OutputTest(parameterized.TestCase):

  def test_one_line_errors(self):
    with contextlib.redirect_stderr(io.StringIO()) as err:
      with self.assertRaises(SystemExit) as raised, cli.one_line_errors():
        raise ConfigError('a.b: missing')
    self.assertEqual((err.getvalue(), raised.exception.code), ('error: a.b: missing\n', 2))
    with self.assertRaisesRegex(ValueError, 'a bug'):
      with cli.one_line_errors():
        raise ValueError('a bug')


if __name__ == '__main__':
  absltest.main()
