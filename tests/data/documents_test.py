"""Corpora: both forms hold the same, and every bad line is named."""
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import documents

GOOD = {'doc_id': 'a', 'sentences': ['One.', 'Twö.']}


class DocumentsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def write(self, name, content):
    path = self.folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

  def test_both_forms(self):
    text = '\ufeffOne.\r\nTwö.\r\n\r\n  \n\nThree.\n\n'
    plain = documents.read_documents(self.write('a.txt', text))
    rows = [GOOD, {'doc_id': 'b', 'sentences': ['Three.']}]
    lines = documents.read_documents(
        self.write('a.jsonl', '\n'.join(json.dumps(row) for row in rows) + '\n\n'))
    self.assertEqual([d.sentences for d in plain], [('One.', 'Twö.'), ('Three.',)])
    self.assertEqual([d.sentences for d in lines], [d.sentences for d in plain])
    self.assertEqual([d.name for d in plain + lines], ['0', '1', 'a', 'b'])

  @parameterized.parameters(
      ('a.txt', '\n \n', 'a.txt: expected at least one document'),
      ('a.txt', b'One.\nTw\xff.\n', 'a.txt: line 2, column 3: expected UTF-8, got byte 0xff'),
      ('a.jsonl', '{"doc_id": }', 'a.jsonl: line 1, column 12: expected json'),
      ('a.jsonl', '[]', 'line 1: expected an object, got list'),
      ('a.jsonl', '\n{"doc_id": 3}', "line 2: 'doc_id': expected a string, got 3"),
      ('a.jsonl', '{"doc_id": "a", "sentences": []}', "'sentences': expected strings"),
      ('a.jsonl', '{"doc_id": "a", "sentences": ["x", " "]}', "'sentences': expected strings"))
  def test_bad_lines(self, name, content, message):
    with self.assertRaisesRegex(ValueError, message):
      documents.read_documents(self.write(name, content))

  def test_bad_lines_may_be_skipped(self):
    path = self.write('a.jsonl', '[]\n' + json.dumps(GOOD) + '\n')
    with self.assertLogs(level='WARNING') as logs:
      found = documents.read_documents(path, on_bad_row='skip')
    self.assertEqual([d.name for d in found], ['a'])
    self.assertIn('skipped 1 of 2 rows', logs.output[0])

  def test_no_file(self):
    with self.assertRaisesRegex(ConfigError, 'nothing.txt: no such file'):
      documents.read_documents(self.folder / 'nothing.txt')


if __name__ == '__main__':
  absltest.main()
