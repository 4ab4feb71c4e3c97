"""Claims of a paper, judged: table, results file and verdict of every `reproduce.py`."""
import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab.train.sweep import format_table
from jaxlab.train.workdir import write_atomically

HOLDS, FAILS, NOT_JUDGED = 'holds', 'does not hold', 'not judged at this size'


class Claim(NamedTuple):
  """One line of the table.

  Attributes:
    text: what the paper claims.
    paper: the paper's own figure, or 'not available'.
    measured: what was measured here.
    status: HOLDS, FAILS or NOT_JUDGED.
  """
  text: str
  paper: str
  measured: str
  status: str


class Margin(NamedTuple):
  """Mean of paired differences and its standard error."""
  mean: float
  error: float

  def __str__(self):
    return f'{self.mean:+.4f} +- {self.error:.4f}'

  def at_least(self, least=0.0):
    """True if the mean is at least `least` and lies more than two standard errors above zero."""
    return self.mean >= least and self.mean > 2 * self.error


def margin(better, worse):
  """The Margin of `better - worse`, arrays [runs] paired by seed."""
  difference = np.asarray(better, np.float64) - np.asarray(worse, np.float64)
  return Margin(
      float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference))))


def verdict(condition):
  """HOLDS or FAILS."""
  return HOLDS if condition else FAILS


def report(system, claims, results, workdir, *, seed, ablate):
  """Prints the table and writes results.json.

  Args:
    system: its name.
    claims: sequence of Claim.
    results: what JSON can hold: every run's curve and every baseline's whole grid.
    workdir: folder to write to; it is made.
    seed: of the experiments.
    ablate: whether the paper's ingredient was taken away.

  Returns:
    True unless a claim does not hold.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  write_atomically(
      workdir / 'results.json',
      json.dumps({'system': system, 'seed': seed, 'ablate': ablate,
                  'claims': [claim._asdict() for claim in claims], **results}, indent=1) + '\n')
  print(f'{system}, seed {seed}{", ablated" if ablate else ""}')
  print(format_table(Claim._fields, claims))
  print(f'results: {workdir}/results.json')
  return all(claim.status != FAILS for claim in claims)
