"""Claims: margins of paired runs, verdicts, the report."""
import contextlib
import io
import json
import pathlib
import tempfile

import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized

from jaxlab.train import claims


class MarginTest(parameterized.TestCase):

  @parameterized.parameters(2, 24)
  def test_paired_by_seed(self, runs):
    rng = np.random.default_rng(0)
    hard = rng.normal(size=runs)  # seeds differ more than systems do
    better, worse = 10 * hard + 1 + .1 * rng.normal(size=runs), 10 * hard
    margin = claims.margin(better.tolist(), worse.tolist())
    self.assertAlmostEqual(margin.mean, np.mean(better - worse))
    self.assertAlmostEqual(margin.error, scipy.stats.sem(better - worse))
    self.assertTrue(margin.at_least())
    self.assertFalse(claims.margin(worse, better).at_least())

  def test_integers_and_booleans_are_numbers(self):
    margin = claims.margin(np.array([True, True, False]), np.array([False, True, False]))
    self.assertAlmostEqual(margin.mean, 1 / 3)

  @parameterized.parameters(
      (0.5, 0.2, 0.0, True), (0.5, 0.25, 0.0, False), (0.5, 0.3, 0.0, False), (0.5, 0.2, 0.5, True),
      (0.5, 0.2, 0.6, False), (-0.5, 0.1, 0.0, False), (0.0, 0.0, 0.0, False),
      (0.5, float('nan'), 0.0, False))
  def test_two_standard_errors_above_zero_and_at_least(self, mean, error, least, expected):
    self.assertEqual(claims.Margin(mean, error).at_least(least), expected)

  def test_text(self):
    self.assertEqual(str(claims.Margin(0.12345, 0.01)), '+0.1235 +- 0.0100')
    self.assertEqual(f'{claims.Margin(-1.0, 0.5)}', '-1.0000 +- 0.5000')

  def test_verdict(self):
    self.assertEqual(claims.verdict(True), 'holds')
    self.assertEqual(claims.verdict(np.False_), 'does not hold')


class ReportTest(parameterized.TestCase):

  @parameterized.parameters(
      ((claims.HOLDS,), True), ((claims.HOLDS, claims.FAILS), False), ((claims.NOT_JUDGED,), True),
      ((claims.FAILS, claims.NOT_JUDGED), False), ((claims.HOLDS, claims.NOT_JUDGED), True))
  def test_true_unless_a_claim_does_not_hold(self, statuses, expected):
    table = [claims.Claim(f'claim {i}', 'not available', '0.5', status)
             for i, status in enumerate(statuses)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as out:
      workdir = pathlib.Path(folder) / 'a' / 'b'
      held = claims.report('adasam', table, {'curves': [[0.5]]}, str(workdir), seed=7, ablate=True)
      results = json.loads((workdir / 'results.json').read_text())
    self.assertIs(held, expected)
    self.assertEqual(results, {
        'system': 'adasam', 'seed': 7, 'ablate': True, 'curves': [[0.5]], 'claims': [
            {'text': f'claim {i}', 'paper': 'not available', 'measured': '0.5', 'status': status}
            for i, status in enumerate(statuses)]})
    lines = out.getvalue().splitlines()
    self.assertEqual(lines[0], 'adasam, seed 7, ablated')
    self.assertEqual(lines[1].split(), ['text', 'paper', 'measured', 'status'])
    for i, (line, status) in enumerate(zip(lines[3:-1], statuses, strict=True)):
      self.assertRegex(line, f'^claim {i} +not available +0.5 +{status}$')
    self.assertEqual(lines[-1], f'results: {workdir}/results.json')

  def test_without_ablation(self):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as out:
      claims.report('adasam', [], {}, folder, seed=0, ablate=False)
    self.assertEqual(out.getvalue().splitlines()[0], 'adasam, seed 0')


if __name__ == '__main__':
  absltest.main()
