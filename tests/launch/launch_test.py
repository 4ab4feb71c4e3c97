"""The launch scripts as users call them: help, small full runs, and one line for bad input."""
import atexit
import functools
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import traceback
from typing import NamedTuple

import numpy as np
from absl.testing import absltest, parameterized

from tests import conftest

ROOT = pathlib.Path(__file__).parents[2]
VERBS = sorted(path.stem for path in (ROOT / 'launch').glob('*.py') if path.stem != '__init__')
ADASAM, FEDLALR = '--config=configs/adasam/digits.py', '--config=configs/fedlalr/digits.py'
TOPI, FLUX = '--config=configs/topi/digits.py', '--config=configs/topi/flux.py'
SHORT = ['--config.steps=40', '--config.eval_every=20', '--config.log_every=20',
         '--config.save_every=20']
SWEEP = '''
from configs.adasam import digits

def get_config():
  config = digits.get_config()
  config.steps = config.log_every = config.eval_every = config.save_every = 20
  config.model.features = (4,)
  rates = ('optimizer.learning_rate', (1e-3, 3e-3))
  config.sweep.arms = {'AMSGrad': {'set': (('optimizer.rho', 0.0),), 'grid': (rates,)}}
  return config
'''
SYSTEM = '''
from jaxlab.systems.shown import reproduce
'''
REPRODUCE = '''
def main(seed, workdir, ablate):
  print([seed, workdir, ablate])
  return not ablate
'''


class Result(NamedTuple):
  """How a script ended and what it wrote."""
  status: int
  out: str
  err: str


class Launcher:
  """Runs scripts in forks of one process that has imported what they need, and used none of it."""

  def __init__(self):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    self._server = subprocess.Popen(
        [sys.executable, '-c', 'from tests.launch import launch_test; launch_test.serve()'],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(self._server.communicate)  # its end of file ends it

  def __call__(self, script, *arguments):
    """Runs a module 'launch.VERB' or a file as a script."""
    self._server.stdin.write(json.dumps([str(script), *map(str, arguments)]) + '\n')
    self._server.stdin.flush()
    return Result(*json.loads(self._server.stdout.readline()))


@functools.cache
def launcher():
  """The Launcher of this process."""
  return Launcher()


def serve():
  """Answers each command line, a JSON list on a line of stdin, by a Result on a line of stdout."""
  # pylint: disable=g-import-not-at-top,unused-import
  from matplotlib import pyplot  # noqa: F401
  from tensorboard.summary.writer import event_file_writer  # noqa: F401

  from jaxlab import cli, federated, systems, train  # noqa: F401
  # The devices of a user are those that the flags say.
  os.environ['XLA_FLAGS'] = os.environ['XLA_FLAGS'].replace(conftest.FLAGS, '')
  for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
      child = os.fork()
      if not child:
        sys.stdin.close()
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.argv = json.loads(line)
        run = runpy.run_path if sys.argv[0].endswith('.py') else functools.partial(
            runpy.run_module, alter_sys=True)
        _finish(run)
      status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
      texts = []
      for file in (out, err):
        file.seek(0)
        texts.append(file.read().decode())
    print(json.dumps([status, *texts]), flush=True)


def _finish(run):
  """Ends this process as Python ends a script, but without a second of taking it apart."""
  try:
    run(sys.argv[0], run_name='__main__')
    status = 0
  except SystemExit as error:
    status = error.code or 0
  except BaseException:  # pylint: disable=broad-except
    traceback.print_exc()
    status = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


class LaunchTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.workdir = self.folder / 'run'

  def launch(self, verb, *arguments):
    return launcher()(f'launch.{verb}', *arguments)

  def succeed(self, verb, *arguments):
    result = self.launch(verb, *arguments)
    self.assertEqual(result.status, 0, result.err)
    self.assertNotIn('Traceback', result.err)
    return result

  def rows(self):
    return [json.loads(line) for line in (self.workdir / 'metrics.jsonl').read_text().splitlines()]

  def promised(self, *checkpoints):
    """Asserts that the files of a finished run are there."""
    self.assertTrue((self.workdir / 'config.json').exists())
    self.assertLen(list(self.workdir.glob('events.out.tfevents.*')), 1)
    self.assertGreater((self.workdir / 'figures' / 'curves.png').stat().st_size, 1000)
    self.assertEqual(sorted(int(path.name) for path in (self.workdir / 'checkpoints').iterdir()),
                     sorted(checkpoints))


class HelpTest(LaunchTest):

  @parameterized.parameters(*VERBS)
  def test_help_says_what_the_script_does(self, verb):
    source = (ROOT / 'launch' / f'{verb}.py').read_text()
    description = source.split('"""')[1]
    result = self.launch(verb, '--help')
    self.assertIn(result.status, (0, 1))
    self.assertEqual(result.err, '')
    words = ' '.join(result.out.split())
    self.assertIn(' '.join(description.split()), words)
    self.assertIn(f'python -m launch.{verb} ', words)
    for flag in ('config', 'workdir'):
      self.assertEqual(f'--{flag}:' in words, f'_{flag.upper()} = ' in source, flag)
    for flag in ('cpu_devices', 'data_dir', 'coordinator', 'num_processes', 'process_id'):
      self.assertIn(f'--{flag}:', words, flag)


class RunTest(LaunchTest):

  def test_prepare_data(self):
    result = self.succeed('prepare_data', '--dataset=digits', f'--data_dir={self.folder}/data')
    self.assertEqual(result.out.splitlines()[-1],
                     f'digits: train 1797 examples in {self.folder}/data/digits/1.0.0')
    self.assertNotEmpty(list((self.folder / 'data' / 'digits' / '1.0.0').glob('*array_record*')))

  def test_train_goes_on_and_evaluate(self):
    command = [ADASAM, f'--workdir={self.workdir}', *SHORT]
    result = self.succeed('train', *command)
    self.promised(20, 40)
    self.assertRegex(result.err, r'compiled in .* 20 step\(s\) a call\n')
    self.assertRegex(result.err, r'step 40/40  .*loss \d.*  examples_per_s .*  test/accuracy 0')
    rows = self.rows()
    self.assertEqual([row['step'] for row in rows], [20, 40])
    config = json.loads((self.workdir / 'config.json').read_text())
    self.assertEqual((config['steps'], config['batch_size']), (40, 50))

    result = self.succeed('train', *command)
    self.assertIn('resumed from step 40', result.err)
    self.assertEqual(self.rows(), rows)
    result = self.launch('train', *command, '--config.optimizer.rho=0.7')
    self.assertEqual((result.status, result.err.count('\n')), (2, 1))
    self.assertIn('first difference at config.optimizer.rho', result.err)

    result = self.succeed('evaluate', f'--workdir={self.workdir}', '--cpu_devices=2')
    metrics = json.loads(result.out)
    self.assertEqual(set(metrics), {'test/accuracy', 'test/loss'})
    for name, value in metrics.items():
      self.assertAlmostEqual(value, rows[-1][name], places=4)
    result = self.launch('evaluate', f'--workdir={self.workdir}', '--split=tset')
    self.assertEqual((result.status, result.out), (2, ''))
    self.assertStartsWith(result.err, "error: split: unknown name 'tset'; did you mean 'test'?")
    self.predict_and_convert(rows[-1]['test/accuracy'])

  def predict_and_convert(self, accuracy):
    """The outputs of the run, by its workdir and by its config with a converted checkpoint."""
    outputs = [self.folder / f'{name}.npz' for name in ('run', 'converted')]
    self.succeed('predict', f'--workdir={self.workdir}', f'--output={outputs[0]}')
    weights, checkpoint = self.folder / 'weights.npz', self.folder / 'checkpoint'
    for arguments in ([f'--workdir={self.workdir}', f'--output={weights}'],
                      [f'--workdir={checkpoint}', f'--input={weights}']):
      self.succeed('convert', ADASAM, *arguments)
    self.succeed('predict', ADASAM, f'--checkpoint={checkpoint}', f'--output={outputs[1]}')
    first, second = (np.load(path)['output'] for path in outputs)
    np.testing.assert_array_equal(first, second)
    self.assertBetween(accuracy, 0.1, 1)
    self.assertLen(first, 797)
    result = self.launch('predict', f'--workdir={self.workdir}', f'--output={outputs[0]}',
                         '--input=rows.tsv')
    self.assertEqual(result.status, 2)
    self.assertIn('--input: expected no file: task classification reads none', result.err)

  def test_federate_and_evaluate(self):
    self.succeed('federate', FEDLALR + ':iid', f'--workdir={self.workdir}',
                 '--config.federated.rounds=2', '--config.federated.cohort_size=5',
                 '--config.federated.save_every=1', '--cpu_devices=2')
    self.promised(1, 2)
    rows = self.rows()
    self.assertEqual([row['step'] for row in rows], [1, 2])
    self.assertEqual([row['participants'] for row in rows], [5, 5])
    config = json.loads((self.workdir / 'config.json').read_text())
    self.assertEqual(config['federated']['partition'], {'name': 'iid'})
    result = self.succeed('evaluate', f'--workdir={self.workdir}')
    self.assertAlmostEqual(json.loads(result.out)['test/accuracy'], rows[-1]['test/accuracy'])

  def test_sweep(self):
    (self.folder / 'tiny.py').write_text(SWEEP)
    command = [f'--config={self.folder}/tiny.py', f'--workdir={self.workdir}']
    result = self.succeed('sweep', *command)
    header, rule, line, figure = result.out.splitlines()
    self.assertEqual(header.split('  ')[0], 'arm (best of its grid)')
    self.assertRegex(rule, '^[- ]+$')
    self.assertRegex(line, r'^AMSGrad \(learning_rate=0\.00[13]\)  .*0\.\d{4}')
    self.assertEqual(figure, f'figure: {self.workdir}/figures/sweep.png')
    self.assertTrue((self.workdir / 'figures' / 'sweep.png').exists())
    self.assertEqual(sorted(path.name for path in self.workdir.glob('*-seed*')),
                     ['000-AMSGrad-seed0', '001-AMSGrad-seed0'])
    results = json.loads((self.workdir / 'results.json').read_text())
    self.assertEqual([cell['setting'] for cell in results], [
        {'optimizer.learning_rate': rate} for rate in (1e-3, 3e-3)])
    again = self.succeed('sweep', *command)
    self.assertEqual(again.out, result.out)
    self.assertNotIn('compiled', again.err)

  def test_reproduce(self):
    package = self.folder / 'systems' / 'shown'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text(SYSTEM)
    (package / 'reproduce.py').write_text(REPRODUCE)
    script = self.folder / 'script.py'
    script.write_text(f'''
import runpy
from jaxlab import systems
systems.__path__.append({str(package.parent)!r})
runpy.run_module('launch.reproduce', run_name='__main__', alter_sys=True)
''')
    for flags, status, ablate in (([], 0, False), (['--ablate'], 1, True)):
      result = launcher()(script, '--system=shown', '--seed=7', f'--workdir={self.workdir}', *flags)
      self.assertEqual((result.status, result.err), (status, ''))
      self.assertEqual(result.out, f"[7, '{self.workdir}/shown', {ablate}]\n")


class BadInputTest(LaunchTest):

  @parameterized.parameters(
      ('train', [ADASAM, '--config.optimizer.rh=1.0'], "unknown key 'rh'; did you mean 'rho'?"),
      ('train', [ADASAM, '--config.modle.features=(3,)'], "unknown key 'modle'; did you mean 'mod"),
      ('train', [ADASAM, '--config.steps=many'], 'config.steps.*many'),
      ('train', [ADASAM, '--config.optimizer.rho=-1'], 'optimizer.rho: expected .* >= 0, got -1.0'),
      ('train', [ADASAM, '--config.task=clasification'],
       "config.task: unknown name 'clasification'; did you mean 'classification'?"),
      ('train', [ADASAM, '--config.task=adasam'], 'config.task: expected a task'),
      ('train', [ADASAM, '--config.data.label_noise=1.5'], 'data.label_noise: expected a prob'),
      ('train', [ADASAM, '--config.data.train=tran'], "digits: no examples in split 'tran'"),
      ('train', [ADASAM, '--cpu_devices=3'],
       'config.batch_size: expected a multiple of 3 devices x accumulate=1, got 50'),
      ('train', [ADASAM, '--cpu_devices=0'], 'cpu_devices'),
      ('train', [ADASAM, '--config.steps_per_call=7'], 'a multiple of steps_per_call=7, got 1200'),
      ('train', [ADASAM, '--workdir={folder}/file/below'], 'workdir=.*: cannot be written to'),
      ('train', [ADASAM, '--workdri=/tmp/x'], "Unknown command line flag 'workdri'.*workdir"),
      ('train', [ADASAM, 'configs/adasam/digits.py'], "unexpected argument 'configs/adasam/digits"),
      ('train', [ADASAM, '--num_processes=2'], '--num_processes and --process_id go together'),
      ('train', ['--config=configs/adasam/digit.py'], 'configs/adasam/digit.py'),
      ('train', ['--config={folder}/broken.py'], 'broken.py'),
      ('train', [FEDLALR + ':fedavgg'], 'fedavgg'),
      ('train', [FEDLALR], 'config.batch_size: missing'),
      ('train', [FLUX], "config.task: expected a task, as in configs that train, got 'system=topi"),
      ('train', [], '--config: missing'),
      ('train', [ADASAM, '--workdir='], '--workdir: missing'),
      ('federate', [FEDLALR, '--config.federated.cohort_size=21'],
       'federated.cohort_size: expected at most num_clients=20, got 21'),
      ('federate', [FEDLALR, '--config.federated.algorithm.vhat_agg=median'], 'vhat_agg: expected'),
      ('federate', [FEDLALR, '--config.federated.partition.alpha=-1'], 'alpha: expected > 0'),
      ('federate', [FEDLALR, '--workdir={folder}/file'], 'workdir=.*: cannot be written to'),
      ('federate', [ADASAM], 'config.federated: missing'),
      ('sweep', [ADASAM, '--config.sweep.metric=test/auc', '--config.steps=20',
                 '--config.sweep.last=0'], 'sweep.last: expected at least 1, got 0'),
      ('sweep', [ADASAM, '--workdir={folder}/file'], 'workdir=.*: cannot be written to'),
      ('convert', [FLUX, '--workdir={folder}/run', '--input={folder}/wrong.npz'],
       'config.task: expected a task'),
      ('convert', [TOPI, '--official', '--workdir={folder}/run', '--input={folder}/wrong.npz'],
       '--input=.*wrong.npz: the checkpoint is not of this model: .*proj_out.bias is missing'),
      ('convert', [ADASAM, '--workdir={folder}/run', '--output={folder}/nowhere/out.npz'],
       '--output: expected a file in a folder that is there'),
      ('predict', [ADASAM, '--checkpoint={folder}/run', '--output={folder}/nowhere/out.npz'],
       '--output: expected a file in a folder that is there'),
      ('evaluate', ['--workdir={folder}/nowhere'], 'no run there'),
      ('evaluate', ['--workdir='], '--workdir: missing'),
      ('prepare_data', ['--dataset=digit'], "unknown data set 'digit'; did you mean 'digits'?"),
      ('prepare_data', [], '--dataset: missing'),
      ('prepare_data', ['--dataset=glue', '--builder_config=dem'], "'dem'; did you mean 'demo'?"),
      ('prepare_data', ['--dataset=digits', '--data_dir={folder}/file/below'],
       'digits: cannot write to data_dir'),
      ('reproduce', ['--system=fedlar'], "unknown system 'fedlar'; did you mean 'fedlalr'?"),
      ('reproduce', [], '--system: missing'),
      ('reproduce', ['--system=fedlalr', '--seed=-1'], 'seed'),
      ('reproduce', ['--system=fedlalr', '--real_data=real'], '--real_data: expected no folder'),
  )
  def test_one_line_and_status_2(self, verb, arguments, message):
    (self.folder / 'file').write_text('')
    (self.folder / 'broken.py').write_text('def get_config(:\n  pass\n')
    np.savez(self.folder / 'wrong.npz', x=np.zeros(1))
    arguments = [argument.format(folder=self.folder) for argument in arguments]
    if verb in ('train', 'federate', 'sweep') and not any('workdir=' in a for a in arguments):
      arguments.append(f'--workdir={self.workdir}')
    result = self.launch(verb, *[a for a in arguments if a != '--workdir='])
    self.assertRegex(result.err, rf'^error: [^\n]*{message}[^\n]*\n$')
    self.assertEqual((result.status, result.out), (2, ''))
    self.assertFalse(list(self.folder.glob('run/checkpoints/*')))


if __name__ == '__main__':
  absltest.main()
