"""Text of installed packages' docstrings."""
from absl.testing import absltest

from jaxlab.data import docstrings

DOC = """A first sentence of enough words here. A second one, of enough words too! Too short.

Parameters
----------
x : array
    This sentence describes an argument and is none of the prose.

>>> an example of enough words to be taken for prose

And the last paragraph
goes over two lines."""


class DocstringsTest(absltest.TestCase):

  def test_prose(self):
    self.assertEqual(docstrings.prose(DOC), [
        'A first sentence of enough words here.', 'A second one, of enough words too!',
        'And the last paragraph goes over two lines.'])

  def test_public(self):
    found = dict(docstrings.public('json'))
    self.assertIn('loads', found)
    self.assertIn('Deserialize', found['loads'])
    self.assertNotIn('codecs', found)  # a module, not a callable
    self.assertNotIn('_default_decoder', found)

  def test_sentences_of_a_whole_module(self):
    documents = docstrings.sentences('numpy')
    self.assertGreater(len(documents), 100)
    self.assertFalse([s for d in documents for s in d if '>>>' in s or '\n' in s])


if __name__ == '__main__':
  absltest.main()
