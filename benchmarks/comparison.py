"""What the benchmarks share: how a comparison is printed, and written with --json=FILE."""
import json

from absl import flags

JSON = flags.DEFINE_string('json', None, 'File to write the rows of the table to.')


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
