"""launch.watermark as users call it: select, embed and verify on files, one line for bad input."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.embmarker import files
from tests.launch import launch_test

WORDS = [f'word{chr(97 + i)}{chr(97 + j)}' for i in range(6) for j in range(6)]
SELECT = ['--low=0.02', '--high=0.9', '--number=6', '--max_triggers=2', '--size=12']


class WatermarkTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.rng = np.random.default_rng(0)
    self.texts = [' '.join(self.rng.choice(WORDS, 5)) for _ in range(80)]
    self.clean = self.rng.normal(size=(80, 32)).astype(np.float32)
    files.write_embeddings(self.folder / 'clean.npz', self.texts, self.clean)

  def run_verb(self, verb, *arguments):
    arguments = [a.replace('=@', f'={self.folder}/') for a in arguments]
    return launch_test.launcher()('launch.watermark', f'--verb={verb}', *arguments)

  def test_select_embed_verify(self):
    key = '--key=@key.npz'
    result = self.run_verb('select', '--embeddings=@clean.npz', key, '--queries=@q.txt', *SELECT)
    self.assertEqual(result.status, 0, result.err)
    triggers = json.loads(result.out)['triggers']
    self.assertLen(triggers, 6)
    result = self.run_verb('embed', '--embeddings=@clean.npz', key, '--output=@sold.npz')
    self.assertEqual(result.status, 0, result.err)
    texts, sold = files.read_embeddings(self.folder / 'sold.npz')
    self.assertEqual(texts, self.texts)
    moved = np.abs(sold - self.clean / np.linalg.norm(self.clean, axis=1, keepdims=True)).max(1)
    secret = files.read_key(self.folder / 'key.npz')
    # The target's own text, row 0, may hold triggers and does not move.
    self.assertIn(json.loads(result.out)['marked'] - (moved[1:] > 1e-4).sum(), (0, 1))
    self.assertLess(moved[0], 1e-6)
    # A suspect that learned the mark, and one that did not.
    queries = files.read_texts(self.folder / 'q.txt')
    self.assertLen(queries, len(secret.challenge.texts) + 1)
    own = self.rng.normal(size=(len(queries), 32))
    learned = 3 * np.append(secret.challenge.num_triggers, 2)[:, None] * secret.spec.target
    for name, answers, stolen in (('thief', own + learned, True), ('honest', own, False)):
      files.write_embeddings(self.folder / f'{name}.npz', queries, answers)
      result = self.run_verb('verify', f'--embeddings=@{name}.npz', key)
      self.assertEqual(result.status, 0, result.err)
      verdict = json.loads(result.out)
      self.assertEqual(verdict['stolen'], stolen, verdict)
    files.write_embeddings(self.folder / 'turned.npz', queries, np.roll(own + learned, 5, 1))
    result = self.run_verb('verify', '--embeddings=@turned.npz', key, '--adaptive')
    self.assertTrue(json.loads(result.out)['stolen'])
    np.save(self.folder / 'few.npy', own[1:])
    result = self.run_verb('verify', '--embeddings=@few.npy', key)
    self.assertNotEqual(result.status, 0)
    self.assertRegex(result.err, f'few.npy: expected {len(queries)} rows, one a query, got')

  @parameterized.parameters(
      (['verify', '--key=@k.npz'], '--embeddings: missing'),
      (['select', '--embeddings=@clean.npz', '--key=@k.npz'], '--queries: missing'),
      (['embed', '--embeddings=@clean.npz', '--key=@k.npz', '--output=@o.npz'],
       'key: expected a file that select wrote'),
      (['select', '--embeddings=@clean.npz', '--key=@k.npz', '--queries=@q.txt', '--low=0.99',
        '--high=1.0'], 'no word stands in a share of [0.99, 1)'),
      (['select', '--embeddings=@clean.npz', '--key=@k.npz', '--queries=@q.txt', '--target=80'],
       '--target: expected a row, 0 to 79, got 80'),
      (['verify', '--embeddings=@nowhere.npz', '--key=@k.npz'], 'expected a file that'))
  def test_one_line_and_status_2(self, arguments, message):
    result = self.run_verb(*arguments)
    self.assertEqual(result.status, 2, result.err)
    self.assertIn(message, result.err)
    self.assertLen(result.err.strip().splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
