"""CITATION.cff names a paper for each of the nineteen systems, each once."""
import pathlib
import re

from absl.testing import absltest

ROOT = pathlib.Path(__file__).parents[1]


class CitationTest(absltest.TestCase):

  def test_nineteen_papers(self):
    text = (ROOT / 'CITATION.cff').read_text()
    systems = re.findall(r'jaxlab system: (\w+)"', text)
    identifiers = re.findall(r'value: "arXiv:(\d{4}\.\d{5})"', text)
    self.assertLen(set(systems), 19)
    self.assertLen(set(identifiers), 19)
    folders = {
        path.name for path in (ROOT / 'jaxlab' / 'systems').iterdir()
        if (path / '__init__.py').exists()
    }
    self.assertLessEqual(folders, set(systems))


if __name__ == '__main__':
  absltest.main()
