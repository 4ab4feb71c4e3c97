"""EffOPD (arXiv 2605.11739) on mathematics problems: a student of the Qwen family, its RL-tuned
sibling as the teacher.

  python -m launch.distill --config=configs/effopd/math.py --workdir=/tmp/jaxlab/effopd-math \
      --config.student.weights=BASE --config.teachers[0].weights=TEACHER \
      --config.data.tokenizer=BASE --config.data.train=train.jsonl --config.data.test=test.jsonl

BASE and TEACHER are folders with config.json, safetensors and tokenizer.json; the problems are
JSON lines {"problem", "answer"}, as DeepMath-103K and GSM8K can be written. The numbers are the
paper's: 1024 prompts a step, one answer each at temperature 1, Adam at 1e-6, gradient clipped to 1.
It wants accelerators; no run of it has been made here. Variant 'exopd' extrapolates the teacher by
1.25 against the base (2602.12125), with that paper's rate of 1e-5.
"""
import ml_collections


def get_config(variant='opd'):
  """Returns the experiment; `variant` is 'opd' or 'exopd'."""
  exopd = variant == 'exopd'
  config = ml_collections.ConfigDict()
  config.task = 'effopd'
  config.seed = 0
  config.student = {'weights': 'BASE', 'dtype': 'bfloat16', 'remat': True}
  config.teachers = ({'weights': 'TEACHER', 'dtype': 'bfloat16'},)
  if exopd:
    config.reference = {'weights': 'BASE', 'dtype': 'bfloat16'}
  config.data = {'name': 'problems', 'train': 'train.jsonl', 'test': 'test.jsonl',
                 'tokenizer': 'BASE', 'max_prompt': 2048, 'max_answer': 4096}
  config.distill = {'max_new': 16384, 'objective': 'opd', 'lam': 1.25 if exopd else 1.0,
                    'temperature': 1.0, 'score_rows': 8, 'chunk': 512}
  config.extrapolation = {'max_k': 5, 'examples': 50, 'movable': 'official'}
  config.optimizer = {'name': 'adam', 'learning_rate': 1e-5 if exopd else 1e-6, 'clip_norm': 1.0}
  config.batch_size = 1024
  config.accumulate = 8
  config.steps = 128
  config.log_every = 1
  config.eval_every = 16
  config.save_every = 8
  return config
