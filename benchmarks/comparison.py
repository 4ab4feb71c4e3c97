"""What the benchmarks share: how programs are timed in turns, and how a comparison is printed, and
written with --json=FILE."""
import json
import statistics
import time

import jax
from absl import flags

JSON = flags.DEFINE_string('json', None, 'File to write the rows of the table to.')


def seconds(program):
  """Time of a call, its result included."""
  start = time.perf_counter()
  jax.block_until_ready(program())
  return time.perf_counter() - start


def medians(programs, repetitions, timer=seconds):
  """The median of timer(program) for each of {name: program}, called in turns.

  A turn before those that count compiles.
  """
  times = {name: [] for name in programs}
  for repetition in range(repetitions + 1):
    for name, program in programs.items():
      spent = timer(program)
      if repetition:
        times[name].append(spent)
  return {name: statistics.median(values) for name, values in times.items()}


def show(rows, heading='name: peer'):
  """Prints rows {'name', 'ours', 'peer', 'unit', 'ratio'}, and writes them if --json says where.

  Args:
    rows: one a comparison; other keys are written and not printed.
    heading: of the names.
  """
  width = max(len(heading), *(len(row['name']) for row in rows))
  print(f'{heading:{width}} {"ours":>10} {"peer":>10} {"unit":>5} {"peer/ours":>10}')
  for row in rows:
    print(f'{row["name"]:{width}} {row["ours"]:10.3f} {row["peer"]:10.3f} {row["unit"]:>5} '
          f'{row["ratio"]:10.3f}')
  write(rows)


def write(rows):
  """Writes the rows of any table if --json says where."""
  if JSON.value:
    with open(JSON.value, 'w', encoding='utf-8') as file:
      json.dump(rows, file, indent=1)
