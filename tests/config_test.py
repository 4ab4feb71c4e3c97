"""The checks of experiment configs: every mistake ends in one line that names the key."""
import collections.abc
import functools
import pathlib
import subprocess
import sys
import types
from typing import Any, Literal

import ml_collections
from absl.testing import absltest, parameterized

from jaxlab import config as config_lib
from jaxlab.config import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
NOTHING_ELSE = '''
import sys
before = set(sys.modules)
import jaxlab.config
more = {name.split('.')[0] for name in set(sys.modules) - before} - {'jaxlab'}
print(sorted(more - set(sys.stdlib_module_names)))
'''


def network(*, width: int, rates: collections.abc.Sequence[float] = (0.1,), name: str = 'net',
            scale: float = 1.0):
  """What `call` calls here."""
  if width < 0:
    raise ValueError(f'width: expected >= 0, got {width}')
  if width == 13:
    raise ConfigError('elsewhere.width: unlucky')
  if width == 17:
    raise TypeError('a bug')
  return width, tuple(rates), name, scale


class UnknownTest(parameterized.TestCase):

  @parameterized.parameters(
      ('rh', ['rho', 'b1', 'learning_rate'
             ], "unknown key 'rh'; did you mean 'rho'? (known: b1, learn"),
      ('b', ['rho', 'b2', 'b1'
            ], "unknown key 'b'; did you mean 'b1' or 'b2'? (known: b1, b2, rho)"),
      ('zzz', ['rho', 'b1'], "unknown key 'zzz' (known: b1, rho)"),
      ('rho', [], "unknown key 'rho' (known: )"),
      (3, ['2', '33'], "unknown key 3; did you mean '33'? (known: 2, 33)"),
  )
  def test_names_the_nearest(self, name, allowed, message):
    self.assertStartsWith(str(config_lib.unknown('key', name, allowed)), message)
    self.assertStartsWith(str(config_lib.unknown('key', name, allowed, 'a.b')), f'a.b: {message}')

  def test_check_keys(self):
    config_lib.check_keys({'rho': 1, 'b1': 2}, ('rho', 'b1', 'b2'))
    with self.assertRaisesRegex(ConfigError, "^config: unknown key 'roh'; did you mean 'rho'"):
      config_lib.check_keys({'b1': 1, 'roh': 2}, ('rho', 'b1'))

  def test_require(self):
    config_lib.require(True, 'a.rho', '>= 0', -1)
    with self.assertRaisesRegex(ConfigError, "^a.rho: expected >= 0, got '-1'$"):
      config_lib.require(False, 'a.rho', '>= 0', '-1')

  def test_at_least(self):
    config_lib.at_least(1, {'rho': 1, 'b1': 0.5}, ('rho',))
    config_lib.at_least(0, {'rho': 0, 'b1': 0.5}, where='a')
    with self.assertRaisesRegex(ConfigError, '^b1: expected at least 1, got 0.5$'):
      config_lib.at_least(1, {'rho': 1, 'b1': 0.5})
    settings = types.SimpleNamespace(rho=1, b1=0.5, name='net')
    config_lib.at_least(0.5, settings, ('rho', 'b1'), 'a.b')
    with self.assertRaisesRegex(ConfigError, '^a.b.b1: expected at least 1, got 0.5$'):
      config_lib.at_least(1, settings, ('rho', 'b1'), 'a.b')

  def test_choose(self):
    self.assertEqual(config_lib.choose('one', {'one': 1}, 'a.name'), 1)
    with self.assertRaisesRegex(ConfigError, "^a.name: unknown name 'oen'; did you mean 'one'"):
      config_lib.choose('oen', {'one': 1}, 'a.name')

  def test_choose_named(self):
    self.assertEqual(config_lib.choose_named({'name': 'one', 'x': 0}, {'one': 1}, 'a'), 1)
    with self.assertRaisesRegex(ConfigError, "^a.name: unknown name 'oen'; did you mean 'one'"):
      config_lib.choose_named({'name': 'oen'}, {'one': 1}, 'a')
    with self.assertRaisesRegex(ConfigError, '^a.name: missing$'):
      config_lib.choose_named({'nmae': 'one'}, {'one': 1}, 'a')

  def test_section(self):
    self.assertEqual(config_lib.section({'data': {'x': 1}}, 'data'), {'x': 1})
    with self.assertRaisesRegex(ConfigError, '^config.data: missing$'):
      config_lib.section({}, 'data')
    with self.assertRaisesRegex(ConfigError, r"^config.data: expected Mapping, got 'x' \(str\)$"):
      config_lib.section({'data': 'x'}, 'data')


class TypesTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, int), (1, float), (1.5, float), (True, bool), ('x', str), (None, str | None),
      ('x', str | None), (None, None), ('mean', Literal['mean', 'max']), ((1, 2), tuple[int, ...]),
      ([1, 2], collections.abc.Sequence[int]), ((), collections.abc.Sequence[str]),
      ({'a': 1}, collections.abc.Mapping), ({}, dict), ((1, 'x'), tuple), ({'x'}, set),
      (ml_collections.ConfigDict({'a': 1}), collections.abc.Mapping), (object(), Any),
      (1, int | tuple[int, ...]), ((1,), int | tuple[int, ...]), (len, collections.abc.Callable),
  )
  def test_fits(self, value, annotation):
    config_lib.check_type(value, annotation, 'a.b')

  @parameterized.parameters(
      ('1', int, r"expected int, got '1' \(str\)"), (1.0, int, r'expected int, got 1.0 \(float\)'),
      (True, int, r'expected int, got True \(bool\)'), (True, float, 'expected float, got True'),
      (1, bool, 'expected bool, got 1'), (None, str, 'expected str, got None'),
      (1, str | None, r'expected str \| None, got 1'), (0, None, 'got 0'),
      ('min', Literal['mean', 'max'], r"expected Literal\['mean', 'max'\], got 'min'"),
      ((1, 'x'), tuple[int, ...], r"expected tuple\[int, ...\], got \(1, 'x'\)"),
      ('ab', collections.abc.Sequence[str], r"Sequence\[str\], got 'ab' \(str\)"),
      ((('name', 'x'),), collections.abc.Mapping, 'expected Mapping'), (3, list, 'expected list'),
      (('x',), int | tuple[int, ...], r"got \('x',\)"),
  )
  def test_does_not_fit(self, value, annotation, message):
    with self.assertRaisesRegex(ConfigError, f'^a.b: .*{message}'):
      config_lib.check_type(value, annotation, 'a.b')


class CallTest(parameterized.TestCase):

  @parameterized.parameters(lambda x: x, ml_collections.ConfigDict)
  def test_calls(self, kind):
    self.assertEqual(config_lib.call(network, kind({'width': 3, 'rates': (1, 2.5)}), 'model'),
                     (3, (1, 2.5), 'net', 1.0))

  def test_name_is_dropped_unless_told_otherwise(self):
    config = {'name': 'mlp', 'width': 3}
    self.assertEqual(config_lib.call(network, config, 'model')[2], 'net')
    self.assertEqual(config_lib.call(network, config, 'model', drop=())[2], 'mlp')
    self.assertEqual(
        config_lib.call(network, {**config, 'x': 0}, 'model', drop=('name', 'x'))[0], 3)

  def test_injected_arguments_belong_to_the_code(self):
    self.assertEqual(config_lib.call(network, {'width': 1}, 'model', scale=2.0)[3], 2.0)
    with self.assertRaisesRegex(ConfigError, "^model: unknown key 'scale'"):
      config_lib.call(network, {'width': 1, 'scale': 3.0}, 'model', scale=2.0)

  def test_schema_of_a_partial(self):
    self.assertEqual(config_lib.call(functools.partial(network, scale=4.0), {'width': 1}, 'model'),
                     (1, (0.1,), 'net', 4.0))

  @parameterized.parameters(
      ({}, '^model.width: missing$'),
      ({'widht': 3}, "^model: unknown key 'widht'; did you mean 'width'"),
      ({'width': '3'}, r"^model.width: expected int, got '3' \(str\)$"),
      ({'width': 3, 'rates': ('x',)}, r'^model.rates: expected .*Sequence\[float\]'),
      ({'width': -1}, '^model: width: expected >= 0, got -1$'),
      ({'width': 13}, '^elsewhere.width: unlucky$'),
  )
  def test_mistakes(self, config, message):
    with self.assertRaisesRegex(ConfigError, message):
      config_lib.call(network, config, 'model')

  def test_a_bug_is_not_blamed_on_the_config(self):
    with self.assertRaisesRegex(TypeError, 'a bug'):
      config_lib.call(network, {'width': 17}, 'model')

  def test_check_arguments_does_not_call(self):
    arguments = config_lib.check_arguments(network, {'name': 'x', 'width': 17}, 'model')
    self.assertEqual(arguments, {'width': 17})
    self.assertEqual(
        config_lib.check_arguments(network, {}, 'model', injected=('width', 'scale')), {})
    with self.assertRaisesRegex(ConfigError, '^model.width: missing$'):
      config_lib.check_arguments(network, {}, 'model')
    with self.assertRaisesRegex(ConfigError, "^model: unknown key 'width'"):
      config_lib.check_arguments(network, {'width': 1}, 'model', injected=('width',))


class ImportTest(absltest.TestCase):

  def test_needs_nothing_but_the_standard_library(self):
    output = subprocess.run([sys.executable, '-c', NOTHING_ELSE], cwd=ROOT, capture_output=True,
                            text=True, check=True).stdout
    self.assertEqual(output, '[]\n')


if __name__ == '__main__':
  absltest.main()
