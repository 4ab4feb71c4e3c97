"""BIPIA (arXiv 2312.14197) on a public checkpoint: the paper's hardening, and the measurement.

  python -m launch.train --config=configs/bipia/benchmark.py:train --workdir=/tmp/jaxlab/bipia \
      --config.model.weights=VICUNA --config.data.folder=BENCHMARK
  python -m launch.inject --config=configs/bipia/benchmark.py:inject --workdir=/tmp/jaxlab/asr \
      --config.data.folder=BENCHMARK --config.models[0].checkpoint=/tmp/jaxlab/bipia

VICUNA is a folder with config.json, safetensors and tokenizer.json; BENCHMARK has the official
files. The numbers are the official ones: AdamW 2e-5, 1000 steps of 128 examples of at most 2048
tokens. The paper reports an attack success of .124 before and .005 to .024 after for Vicuna-7B; no
run of it has been made here. 'endpoint' measures a model behind an OpenAI-compatible API without a
judge, on a small part, and with the system message of GPT models; open models have none.
"""
import ml_collections

from jaxlab.systems.bipia.templates import CHATGPT_SYSTEM


def get_config(variant='train'):
  """Returns the experiment; `variant` is one of 'train', 'inject', 'endpoint'."""
  config = ml_collections.ConfigDict()
  tasks = ('email', 'table', 'code')
  if variant == 'train':
    config.task = 'bipia'
    config.seed = 2023
    config.model = {'weights': 'VICUNA', 'dtype': 'bfloat16', 'remat': True}
    config.data = {'name': 'official', 'folder': 'BENCHMARK', 'tasks': tasks, 'examples': 128000,
                   'max_length': 2048, 'reminder': True, 'chunk': 256}
    config.phases = ({'steps': 1000, 'arms': ('whitebox',),
                      'surgery': 'jaxlab.systems.bipia.whitebox:grow'},)
    config.optimizer = {'name': 'adamw', 'b1': 0.9, 'b2': 0.999, 'weight_decay': 0.0,
                        'learning_rate': {
                            'name': 'warmup_cosine_decay_schedule', 'init_value': 0.0,
                            'peak_value': 2e-5, 'warmup_steps': 30, 'decay_steps': 1000}}
    config.batch_size = 128
    config.accumulate = 4
    config.log_every = 10
    config.save_every = 100
    return config
  config.system = 'bipia'
  config.data = {'name': 'official', 'folder': 'BENCHMARK', 'split': 'test', 'tasks': tasks}
  config.clean = True
  if variant == 'inject':
    config.models = ({'name': 'local', 'checkpoint': 'CHECKPOINT', 'max_new': 2048,
                      'batch_size': 8, 'dtype': 'bfloat16'},)
    config.defences = ({'name': 'markers', 'reminder': True},)
  else:
    config.data.max_contexts, config.data.max_attacks = 5, 15
    config.models = ({'name': 'endpoint', 'url': 'http://localhost:8000/v1', 'model': 'MODEL'},)
    gpt = {'system': CHATGPT_SYSTEM}
    config.defences = ({'name': 'none', **gpt}, {'name': 'border', 'border': '=', **gpt},
                       {'name': 'multi_turn'},
                       {'name': 'none', 'reminder': True, 'label': 'reminder', **gpt})
  return config
