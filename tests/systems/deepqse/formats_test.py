"""Files of pages, judgements and scores: what is read, dropped and refused."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.deepqse import demo, formats

PAGE = 'who\tA title\tB.\tA.<sep>B.<sep>C.\tu\ten\t1\t2\n'
JUDGED = 'who\tu\t_\t_\t{}\ten\tA.<sep>B.\t0\t0\t1\t1\tA title\n'


class FormatsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'pages.tsv'

  def read(self, text, **options):
    self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return formats.read_pages(self.path, **options)

  def test_pages(self):
    late = PAGE.replace('A.<sep>', 'A.<sep>0<sep>').replace('1\t2', '3\t3')
    examples, dropped = self.read(PAGE + PAGE.replace('A title', ' ') + late, max_sentences=3)
    self.assertEqual(examples, [
        formats.Example('who', 'A title', ('A.', 'B.', 'C.'), 1, 'en', 'u')])
    self.assertEqual(dropped, {'empty title': 1, 'late label': 1})
    formats.write_pages(self.path, examples)
    self.assertEqual(formats.read_pages(self.path)[0], examples)

  @parameterized.parameters(
      ('a\tb\n', r'line 1: expected 8 columns \(query, .*\), got 2'),
      (PAGE + PAGE.replace('1\t2', '3\t3'),
       r"line 2: column 7 \(start_index\): expected a sentence of the page, 0 to 2, got '3'"),
      (PAGE.replace('1\t2', '1\tx'), r'line 1: column 8 \(end_index\): expected a sentence'),
      (PAGE.replace('1\t2', '1\t0'), r'end_index\): expected at least start_index=1, got 0'),
      (PAGE.replace('A.<sep>B.<sep>C.', ' '), r'column 4 \(body\): expected .*, got an empty page'),
      (PAGE.encode() + b'who\xff\n', 'line 2, column 4: expected UTF-8, got byte 0xff'),
  )
  def test_malformed_rows(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      self.read(text)

  def test_skips_and_missing_files(self):
    examples, _ = self.read(PAGE + 'a\tb\n', on_bad_row='skip')
    self.assertLen(examples, 1)
    with self.assertRaisesRegex(ConfigError, 'no such file'):
      formats.read_pages(self.path.with_name('none.tsv'))

  def test_judgements(self):
    self.path.write_text(JUDGED.format('1.5') + JUDGED.format('4'))
    found = formats.read_judgements(self.path)
    self.assertEqual([(j.label, j.confidence) for j in found], [(0, 1.5), (1, 1.0)])
    self.assertEqual((found[0].reference, found[0].test, found[0].title), (0, 1, 'A title'))
    self.path.write_text(JUDGED.format('good'))
    with self.assertRaisesRegex(ValueError, r"line 1: column 5 \(judgement\): expected a number"):
      formats.read_judgements(self.path)

  def test_scores(self):
    scores = [np.array([0.25, -1.5]), np.array([3.0])]
    formats.write_scores(self.path, scores)
    self.assertEqual(self.path.read_text(), '0\t0.2500 -1.5000\n1\t3.0000\n')
    for number, row in formats.read_scores(self.path).items():
      np.testing.assert_allclose(row, scores[number])
    for text, message in (('0\t1\n0\t2\n', 'line 2: column 1 .* each line once, got 0 again'),
                          ('0\tx\n', r'column 2 \(scores\): expected numbers'),
                          ('0\n', 'expected 2 columns, got 1')):
      self.path.write_text(text)
      with self.assertRaisesRegex(ValueError, message):
        formats.read_scores(self.path)

  def test_a_question_keeps_words_in_order(self):
    rng = np.random.default_rng(0)
    pages = [('t', ('one two three four five', 'six seven')), ('u', ('eight',))]
    for example in demo.questions(pages, 20, rng, (2, 3)):
      gold = example.sentences[example.label].split()
      asked = example.query.split()
      self.assertEqual(asked, [word for word in gold if word in asked])
      self.assertLen(asked, min(len(asked), 3))
      self.assertIn((example.title, example.sentences), pages)


if __name__ == '__main__':
  absltest.main()
