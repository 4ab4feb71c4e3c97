"""EffOPD (arXiv 2605.11739) on sorting four digits: a base, a teacher made from it, a student.

  python -m launch.train --config=configs/effopd/sorting.py:base --workdir=/tmp/jaxlab/effopd-base
  python -m launch.train --config=configs/effopd/sorting.py:teacher \
      --workdir=/tmp/jaxlab/effopd-teacher
  python -m launch.distill --config=configs/effopd/sorting.py --workdir=/tmp/jaxlab/effopd

The base learns from answers of which 70 % are shuffled, the teacher goes on from it with clean
ones, and the student, which starts as the base, is distilled from the teacher on its own answers.
The same recipe in reproduce.py gives sampled accuracies of .32 (base), .99 (teacher) and .82
(student after 96 steps; .62 without jumps). --config.student.weights and
--config.teachers[0].weights name other folders; --config.extrapolation.max_k=0 is plain
distillation.
"""
import ml_collections

MODEL = {'vocab_size': 16, 'hidden_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 4,
         'intermediate_size': 96, 'init': 'scaled'}
BASE, TEACHER = '/tmp/jaxlab/effopd-base', '/tmp/jaxlab/effopd-teacher'


def get_config(variant='distill'):
  """Returns the experiment; `variant` is one of 'base', 'teacher', 'distill'."""
  config = ml_collections.ConfigDict()
  config.task = 'effopd'
  config.seed = 0
  config.data = {'name': 'sorting', 'noise': 0.7 if variant == 'base' else 0.0}
  config.student = MODEL if variant == 'base' else {**MODEL, 'weights': BASE}
  config.distill = {'max_new': 4, 'objective': 'opd' if variant == 'distill' else 'supervised',
                    'temperature': 1.0}
  if variant == 'distill':
    config.teachers = ({**MODEL, 'weights': TEACHER},)
    config.extrapolation = {'max_k': 5, 'examples': 50, 'movable': 'official'}
    config.batch_size = 256
    config.steps = 96
    rate = 3e-5
  else:
    config.batch_size = 128
    config.steps = 900 if variant == 'base' else 500
    steps, peak = config.steps, 3e-3 if variant == 'base' else 1e-3
    rate = {'name': 'cosine_decay_schedule', 'init_value': peak, 'decay_steps': steps}
  config.optimizer = {'name': 'adam', 'learning_rate': rate, 'clip_norm': 1.0}
  config.log_every = 8 if variant == 'distill' else 100
  config.eval_every = 16 if variant == 'distill' else 0
  config.save_every = 16 if variant == 'distill' else 100
  return config
