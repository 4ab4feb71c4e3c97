"""The folder of a run: it belongs to one config, and it can be written to."""
import json
import os
import pathlib
import tempfile
from unittest import mock

import jax
import ml_collections
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.train import workdir

CONFIG = {'seed': 1, 'model': {'name': 'mlp', 'features': (8, 4)}, 'note': None}


class PlainTest(parameterized.TestCase):

  @parameterized.parameters(dict, ml_collections.ConfigDict)
  def test_plain(self, kind):
    plain = workdir.plain(kind(CONFIG))
    self.assertEqual(plain, {'seed': 1, 'model': {'name': 'mlp', 'features': [8, 4]}, 'note': None})
    self.assertEqual(json.loads(json.dumps(plain)), plain)
    self.assertIs(type(plain['model']), dict)
    self.assertEqual(list(plain), ['model', 'note', 'seed'])

  def test_mappings_inside_sequences(self):
    inner = ml_collections.ConfigDict({'rho': 0.1})
    self.assertEqual(workdir.plain({'set': (('optimizer', inner),)}),
                     {'set': [['optimizer', {'rho': 0.1}]]})

  @parameterized.parameters(
      ({}, {}, None), ({'a': 1}, {'a': 1.0}, None), ({'a': 1}, {'a': 2}, 'config.a'),
      ({'a': 1, 'b': 1}, {'a': 2, 'b': 2}, 'config.a'), ({'b': 1}, {'a': 1, 'b': 1}, 'config.a'),
      ({'a': 1}, {}, 'config.a'), ({'a': {'b': {'c': 1}}}, {'a': {'b': {'c': 2}}}, 'config.a.b.c'),
      ({'a': {'b': 1}}, {'a': 1}, 'config.a'), ({'a': [1, 2]}, {'a': [1, 3]}, 'config.a'),
      ({'a': {'b': 1}, 'c': 0}, {'a': {'b': 1}, 'c': 1}, 'config.c'),
      ({'a': None}, {}, 'config.a'))
  def test_first_difference(self, a, b, key):
    self.assertEqual(workdir.first_difference(a, b), key)
    self.assertEqual(workdir.first_difference(b, a), key)


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_a_new_folder_gets_the_config(self):
    opened = workdir.open_workdir(self.folder / 'a' / 'b', CONFIG)
    self.assertEqual(opened, self.folder / 'a' / 'b')
    self.assertEqual([path.name for path in opened.iterdir()], ['config.json'])
    self.assertEqual(json.loads((opened / 'config.json').read_text()), workdir.plain(CONFIG))

  def test_the_path_is_absolute(self):
    before = os.getcwd()
    os.chdir(self.folder)
    try:
      opened = workdir.open_workdir('here', CONFIG)
    finally:
      os.chdir(before)
    self.assertEqual(opened.resolve(), (self.folder / 'here').resolve())
    self.assertTrue(opened.is_absolute())

  @parameterized.parameters(lambda config: config, ml_collections.ConfigDict, workdir.plain)
  def test_the_same_config_opens_it_again(self, kind):
    workdir.open_workdir(self.folder, CONFIG)
    written = (self.folder / 'config.json').stat().st_mtime_ns
    workdir.open_workdir(self.folder, kind(CONFIG))
    self.assertEqual((self.folder / 'config.json').stat().st_mtime_ns, written)

  @parameterized.parameters(
      ({**CONFIG, 'seed': 2}, 'config.seed'), ({**CONFIG, 'steps': 2}, 'config.steps'),
      ({**CONFIG, 'model': {'name': 'mlp', 'features': (8,)}}, 'config.model.features'))
  def test_another_config_is_refused_by_its_first_difference(self, config, key):
    workdir.open_workdir(self.folder, CONFIG)
    with self.assertRaisesRegex(
        ConfigError, f'--workdir=.*: holds a run of another config; first difference at {key}$'):
      workdir.open_workdir(self.folder, config)
    self.assertEqual(json.loads((self.folder / 'config.json').read_text()), workdir.plain(CONFIG))

  def test_a_damaged_config_is_named(self):
    workdir.open_workdir(self.folder, CONFIG)
    (self.folder / 'config.json').write_text('{"seed": ')
    with self.assertRaisesRegex(ConfigError, '--workdir=.*: config.json: expected json'):
      workdir.open_workdir(self.folder, CONFIG)

  def test_only_process_0_writes(self):
    with mock.patch.object(jax, 'process_index', return_value=1):
      workdir.open_workdir(self.folder, CONFIG)
    self.assertEmpty(list(self.folder.iterdir()))

  def test_a_folder_that_cannot_be_made(self):
    (self.folder / 'file').write_text('')
    for path in ('file', 'file/below', 'file/below/it'):
      with self.assertRaisesRegex(
          ConfigError, f'--workdir=.*/{path}: cannot be written to .(Not a directory|File exists)'):
        workdir.open_workdir(self.folder / path, CONFIG)

  def test_a_folder_that_cannot_be_written_to(self):
    with mock.patch.object(pathlib.Path, 'write_text', side_effect=PermissionError(13, 'Denied')):
      with self.assertRaisesRegex(ConfigError, r'--workdir=.*: cannot be written to \(Denied\)'):
        workdir.check_writable(self.folder)

  def test_the_check_leaves_nothing(self):
    workdir.check_writable(self.folder / 'a')
    self.assertEmpty(list((self.folder / 'a').iterdir()))

  def test_a_text_is_written_whole_or_not_at_all(self):
    path = self.folder / 'results.json'
    workdir.write_atomically(path, 'old')
    with mock.patch.object(os, 'replace', side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        workdir.write_atomically(path, 'new')
    self.assertEqual(path.read_text(), 'old')
    workdir.write_atomically(path, 'new')
    self.assertEqual(path.read_text(), 'new')
    self.assertEqual([path.name for path in self.folder.iterdir()], ['results.json'])


if __name__ == '__main__':
  absltest.main()
