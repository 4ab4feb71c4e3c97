"""One wrong letter in any key of any config ends in an error that names the key, at no cost."""
import importlib
import pathlib
import random
import re
import string
from unittest import mock

import jax
from absl.testing import absltest, parameterized

from jaxlab import systems
from jaxlab.config import ConfigError
from jaxlab.data import builders
from tests.launch import launch_test

ROOT = pathlib.Path(__file__).parents[2]
TRIES = 200
COMPILATION = '/jax/core/compile/backend_compile_duration'


def experiments():
  """{'SYSTEM/DATASET:VARIANT': config as plain dicts} of all of configs/.

  The docstring of a get_config quotes its variants in the sentence that begins with `variant`.
  """
  found = {}
  for path in sorted((ROOT / 'configs').glob('*/*.py')):
    system, name = path.parent.name, path.stem
    get_config = importlib.import_module(f'configs.{system}.{name}').get_config
    sentence = get_config.__doc__.partition('`variant`')[2].partition('.')[0]
    for variant in re.findall(r"'(\w*)'", sentence) or ['']:
      config = get_config(variant) if variant else get_config()
      found[f'{system}/{name}:{variant}'] = config.to_dict()
  return found


def key_paths(node, path=()):
  """Yields (path, part) of every key; `part` counts the parts of a dotted key, else it is None.

  A path is made of the keys of mappings and the positions in sequences. The labels of a sweep's
  arms are free, and so are no keys.
  """
  if isinstance(node, dict):
    for key, value in node.items():
      if path != ('sweep', 'arms'):
        yield (*path, key), None
      yield from key_paths(value, (*path, key))
  elif isinstance(node, (tuple, list)):
    for i, value in enumerate(node):
      yield from key_paths(value, (*path, i))
  elif len(path) > 2 and path[:2] == ('sweep', 'arms') and path[-1] == 0 and isinstance(node, str):
    for part in range(node.count('.') + 1):
      yield path, part


def lookup(node, path):
  """What stands at the path."""
  for step in path:
    node = node[step]
  return node


def renamed(node, path, part, name):
  """The config with another name for one key."""
  if not path:
    parts = node.split('.')
    return '.'.join([*parts[:part], name, *parts[part + 1:]])
  (step, *rest), inside = path, lambda value: renamed(value, path[1:], part, name)
  if isinstance(node, dict):
    last = not rest and part is None
    return {(name if last and key == step else key):
            value if last or key != step else inside(value) for key, value in node.items()}
  return tuple(inside(value) if i == step else value for i, value in enumerate(node))


def misspell(word, rng):
  """Another word: one letter deleted, inserted or replaced, or two neighbours transposed."""
  while True:
    i, letter = rng.randrange(len(word)), rng.choice(string.ascii_lowercase + '_')
    wrong = rng.choice([word[:i] + word[i + 1:], word[:i] + letter + word[i:],
                        word[:i] + letter + word[i + 1:],
                        word[:i] + word[i:i + 2][::-1] + word[i + 2:]])
    if wrong and wrong != word:
      return wrong


def names(message, key):
  """Whether an error names the key: as what was meant, as what is missing, or as what is wrong."""
  hint = re.search(r'did you mean (.*?)\? ', message)
  return (hint and repr(key) in hint[1]) or re.search(rf"(\b|\.){key}: |name '{key}'", message)


class MisspellingTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.compilations = []
    listen = lambda event, *_, **__: self.compilations.extend([event] * (event == COMPILATION))
    jax.monitoring.register_event_duration_secs_listener(listen)
    self.addCleanup(jax.monitoring.unregister_event_duration_listener, listen)
    self.enter_context(mock.patch.object(builders, 'load', side_effect=self.fail))

  def test_compilations_are_counted(self):
    jax.jit(lambda x: x * 3 + 1).lower(1.0).compile()
    self.assertLen(self.compilations, 1)

  def test_every_config_is_right_as_it_stands(self):
    configs = experiments()
    self.assertContainsSubset(['adasam/digits:', 'adasam/digits:units', 'fedlalr/digits:fedlalr',
                               'fedlalr/digits:fedadam'], configs)
    for name, config in configs.items():
      with self.subTest(name):
        systems.check(config)

  def test_misspelt_keys(self):
    configs, rng = experiments(), random.Random(0)
    places = [(name, *place) for name, config in configs.items() for place in key_paths(config)]
    depths = {len(path) + (part or 0) for _, path, part in places}
    self.assertGreaterEqual(max(depths), 8)
    self.assertGreater(sum(part is not None for _, _, part in places), 20)
    seen, skipped = [], []
    while len(seen) < TRIES:
      name, path, part = rng.choice(places)
      parent, key = lookup(configs[name], path[:-1]), path[-1]
      if part is not None:
        key = parent[key].split('.')[part]
      wrong = misspell(key, rng)
      config = renamed(configs[name], path, part, wrong)
      if wrong in parent:
        skipped.append(wrong)
        continue
      seen.append(wrong)
      with self.subTest(f'{name} {path} {part}: {key} as {wrong}'):
        with self.assertRaises(ConfigError) as raised:
          systems.check(config)
        message = str(raised.exception)
        self.assertTrue(names(message, key), message)
        self.assertNotIn('\n', message)
    self.assertLess(len(skipped), TRIES // 4)
    self.assertEmpty(self.compilations)

  def test_names(self):
    for message in ("a: unknown key 'ro'; did you mean 'rho'? (known: rho)", 'a.rho: missing',
                    "a: unknown key 'r'; did you mean 'eps' or 'rho'? (known: eps, rho)",
                    "optimizer: unknown name 'rho'; did you mean 'ro'? (known: ro)"):
      self.assertTrue(names(message, 'rho'), message)
    for message in ("a: unknown key 'ro'; did you mean 'eps'? (known: eps, rho)", 'rhom: missing',
                    "a: unknown key 'rx' (known: eps, rho)"):
      self.assertFalse(names(message, 'rho'), message)


class OverrideTest(parameterized.TestCase):

  @parameterized.parameters(
      ('adasam', 'optimizer', 'optimzer'), ('adasam', 'optimizer.rho', 'optimizer.roh'),
      ('adasam', 'steps_per_call', 'steps_percall'), ('adasam', 'model.features', 'model.featuers'),
      ('adasam', 'data.label_noise', 'data.label_nois'), ('fedlalr', 'federated', 'federted'),
      ('fedlalr', 'federated.partition.alpha', 'federated.partition.alhpa'),
      ('fedlalr', 'federated.client_optimizer.learning_rate',
       'federated.client_optimizer.learnin_rate'),
      ('fedlalr', 'sweep.target', 'sweep.taget'))
  def test_misspelt_overrides(self, system, key, wrong):
    verb = 'train' if system == 'adasam' else 'federate'
    result = launch_test.launcher()(
        f'launch.{verb}', f'--config=configs/{system}/digits.py', f'--config.{wrong}=1')
    first = next(a for a, b in zip(key.split('.'), wrong.split('.'), strict=True) if a != b)
    self.assertRegex(
        result.err, rf"^error: --config[.\w]*: unknown key '\w+'; did you mean '{first}'")
    self.assertEqual((result.status, result.out, result.err.count('\n')), (2, '', 1))


if __name__ == '__main__':
  absltest.main()
