"""BUILD evaluated as Starlark: every source in exactly one target, every dependency exists."""
import pathlib
import re

import starlark
from absl.testing import absltest

ROOT = pathlib.Path(__file__).parents[1]


def _glob(include, exclude=()):
  found = {str(path.relative_to(ROOT)) for pattern in include for path in ROOT.glob(pattern)}
  return sorted(found -
                {str(path.relative_to(ROOT)) for pattern in exclude for path in ROOT.glob(pattern)})


def evaluate():
  """{target name: (rule, attributes)} of BUILD, and the names that it declares twice."""
  targets, twice = {}, []

  def rule(kind):
    def declare(name, **attributes):
      if name in targets:
        twice.append(name)
      targets[name] = (kind, attributes)
    return declare

  module = starlark.Module()
  module.add_callable('glob', _glob)
  for name in ('package', 'licenses', 'exports_files'):
    module.add_callable(name, lambda *args, **kwargs: None)
  for kind in ('py_library', 'py_binary', 'py_test'):
    module.add_callable(kind, rule(kind))
  module.add_callable('requirement', lambda name: f'@pip//{name}')
  # The loaded symbols are the callables above.
  text = re.sub(r'^load\(.*\)$', '', (ROOT / 'BUILD').read_text(), flags=re.MULTILINE)
  starlark.eval(module, starlark.parse('BUILD', text), starlark.Globals.extended_by([]))
  return targets, twice


class BuildTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.targets, self.twice = evaluate()

  def test_every_source_belongs_to_exactly_one_target(self):
    owners = {}
    for name, (_, attributes) in self.targets.items():
      for source in attributes['srcs']:
        owners.setdefault(source, []).append(name)
    sources = {
        str(path.relative_to(ROOT)) for path in ROOT.rglob('*.py') if not any(
            part.startswith('.') or part in ('build', 'venv')
            for part in path.relative_to(ROOT).parts)
    }
    self.assertEqual(sources, set(owners))
    self.assertEmpty({source: names for source, names in owners.items() if len(names) > 1})
    self.assertEmpty(self.twice)

  def test_every_dependency_exists(self):
    locked = {re.split('==', line)[0].lower().replace('_', '-')
              for line in (ROOT / 'requirements_lock.txt').read_text().splitlines() if '==' in line}
    for name, (_, attributes) in self.targets.items():
      for dependency in attributes.get('deps', []):
        if dependency.startswith(':'):
          self.assertIn(dependency[1:], self.targets, f'{name} depends on {dependency}')
        else:
          package = dependency.removeprefix('@pip//').lower().replace('_', '-')
          self.assertIn(package, locked, f'{name} depends on {dependency}')

  def test_every_test_file_is_a_target(self):
    tests = {attributes['main'] for kind, attributes in self.targets.values() if kind == 'py_test'}
    self.assertEqual(tests, set(_glob(['tests/**/*_test.py'])))

  def test_the_files_that_tests_open_are_there(self):
    def files(name):
      _, attributes = self.targets[name]
      inner = [files(dependency[1:]) for dependency in attributes.get('deps', [])
               if dependency.startswith(':')]
      return {*attributes['srcs'], *attributes.get('data', [])}.union(*inner)

    texts = [(ROOT / path).read_text() for path in _glob(['tests/**/*_test.py'])]
    opened = {path for text in texts for path in re.findall(r"ROOT / '([\w./-]+)'", text)
              if (ROOT / path).is_file()}
    self.assertContainsSubset(['BUILD', 'CITATION.cff'], opened)
    # The test of every source looks at those that BUILD names without a glob.
    named = set(re.findall(r'"([\w./-]+\.py)"', (ROOT / 'BUILD').read_text()))
    self.assertLessEqual(opened | named, files('tests.build_test'))


if __name__ == '__main__':
  absltest.main()
