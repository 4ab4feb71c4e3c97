"""Text of installed packages' docstrings."""
import sys
import types
from unittest import mock

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


LINKS = """f(x, y)

Do `this`, *or* that (see :func:`g`). More.

See Also
--------
g, other.h : Two names,
    with a text, that goes on.
:func:`~pkg.k` : A role.
l and m
n: A colon.

Notes
-----
not_a_name : here
"""


class SeeAlsoTest(absltest.TestCase):

  def test_first_sentence(self):
    self.assertEqual(docstrings.first_sentence(LINKS), 'Do this, or that (see g)')
    self.assertEqual(docstrings.first_sentence('Version 1.5 of it.'), 'Version 1.5 of it')
    self.assertEqual(docstrings.first_sentence('f(x) -> y'), '')
    self.assertLen(docstrings.first_sentence('word ' * 100, most=20), 19)

  def test_linked_names(self):
    self.assertEqual(docstrings.linked_names(LINKS),
                     ['g', 'other.h', 'pkg.k', 'l', 'm', 'n'])
    self.assertEqual(docstrings.linked_names('No section.'), [])

  def test_names_are_looked_up_and_aliases_are_one_node(self):
    module = types.ModuleType('jaxlab_test_links')

    class Thing:
      """A thing."""

      def first(self):
        """First.

        See Also
        --------
        second : Of the same class.
        alone : Of the module.
        missing : Nowhere.
        """

      def second(self):
        """Second."""

    def alone():
      """Alone."""

    module.Thing, module.alone, module.zalias = Thing, alone, alone
    with mock.patch.dict(sys.modules, {module.__name__: module}):
      found = docstrings.see_also((module.__name__,))
    prefix = f'{module.__name__}.'
    self.assertEqual(found.names, [f'{prefix}Thing.first', f'{prefix}Thing.second',
                                   f'{prefix}alone'])
    self.assertEqual(found.texts, ['First', 'Second', 'Alone'])
    self.assertEqual(found.edges, [(0, 1), (0, 2)])


if __name__ == '__main__':
  absltest.main()
