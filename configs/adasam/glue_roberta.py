"""AdaSAM (arXiv 2303.00565) fine-tunes RoBERTa-large on GLUE; a variant a task.

  python -m launch.train --config=configs/adasam/glue_roberta.py:rte \
      --config.model.folder=ROBERTA_LARGE --config.data.manual_dir=GLUE --workdir=/tmp/jaxlab/rte

ROBERTA_LARGE holds config.json, model.safetensors and tokenizer.json
(https://huggingface.co/FacebookAI/roberta-large), GLUE the official folders CoLA, RTE and so on
(https://gluebenchmark.com). It wants an accelerator; no run of it has been made here. Rates,
batches, steps and warm-up are those of a public code of overlapping authors, not confirmed to be
this paper's: 10 epochs, dropout .1, weight decay .01, b2 .98, eps 1e-6, rho .05, linear decay.
"""
import ml_collections

# task -> (peak rate, batch, updates, warm-up)
TASKS = {'cola': (1e-5, 32, 2668, 160), 'mrpc': (1e-5, 32, 1148, 68), 'rte': (2e-5, 32, 1018, 61),
         'sst2': (1e-5, 64, 10467, 628), 'stsb': (2e-5, 32, 1799, 107)}


def get_config(variant='rte'):
  """Returns the experiment; `variant` is 'cola', 'mrpc', 'rte', 'sst2' or 'stsb'."""
  if variant not in TASKS:
    raise ValueError(f"variant: expected one of {', '.join(TASKS)}, got {variant!r}")
  rate, batch, steps, warmup = TASKS[variant]
  config = ml_collections.ConfigDict()
  config.task = 'text_classification'
  config.seed = 0
  config.data = {'name': variant, 'train': 'train', 'test': 'validation', 'max_length': 128,
                 'manual_dir': ml_collections.config_dict.placeholder(str)}
  config.model = {'folder': 'roberta-large', 'dropout': 0.1, 'dtype': 'bfloat16', 'remat': True}
  linear = {'name': 'linear_schedule'}
  config.optimizer = {
      'name': 'adasam', 'rho': 0.05, 'b1': 0.9, 'b2': 0.98, 'eps': 1e-6, 'weight_decay': 0.01,
      'learning_rate': {
          'name': 'join_schedules', 'boundaries': (warmup,), 'schedules': (
              {**linear, 'init_value': 0.0, 'end_value': rate, 'transition_steps': warmup},
              {**linear, 'init_value': rate, 'end_value': 0.0, 'transition_steps': steps - warmup})
      }
  }
  config.batch_size = batch
  config.steps = steps
  config.steps_per_call = 1
  config.accumulate = 1
  config.log_every = 50
  config.eval_every = 200
  config.save_every = 500
  return config
