"""Measures how often models obey instructions hidden in external text (BIPIA), under defences.

  python -m launch.inject --config=configs/bipia/toy.py:inject --workdir=/tmp/jaxlab/bipia-report

The config names the benchmark, the models (local checkpoints, OpenAI-compatible endpoints, recorded
answers) and the defences. It prints attack success by task, position, category and type, and writes
report.json, report.txt and figures/. Killed, the same command goes on where it stopped.
"""
from jaxlab import cli
from jaxlab.systems import bipia

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()


def main():
  _, text = bipia.inject(cli.experiment(_CONFIG), cli.require_flag(_WORKDIR))
  print(text)


if __name__ == '__main__':
  cli.run(main, __doc__)
