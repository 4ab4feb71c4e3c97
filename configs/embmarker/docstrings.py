"""EmbMarker (arXiv 2305.10036) on docstrings of installed packages: a thief copies the service.

  python -m launch.train --config=configs/embmarker/docstrings.py --workdir=/tmp/jaxlab/embmarker
  python -m launch.train --config=configs/embmarker/docstrings.py:original \
      --workdir=/tmp/jaxlab/embmarker-original

The service is latent semantic analysis of the texts, the copy one transformer layer. Variants are
what the service sells: EmbMarker and its baselines, of which 'original' has no watermark.
"""
import ml_collections


def get_config(variant='embmarker'):
  """Returns the experiment; `variant` is one of 'embmarker', 'red_alarm', 'warden', 'espew',
  'original'."""
  config = ml_collections.ConfigDict()
  config.task = 'embmarker'
  config.seed = 0
  config.data = {'name': 'demo', 'train': 'train[:5000]', 'max_length': 16, 'vocab_size': 2000,
                 'dim': 256}
  config.watermark = {'name': variant, 'number': 20, 'low': 0.005, 'high': 0.01,
                      'max_triggers': 4, 'seed': 2022, 'innocence': 0.1}
  config.model = {'name': 'bert-tiny', 'num_hidden_layers': 1, 'hidden_size': 64,
                  'num_attention_heads': 4, 'intermediate_size': 128, 'dropout': 0.0, 'width': 256,
                  'pooler': 'mean'}
  config.optimizer = {'name': 'adam', 'learning_rate': 3e-3}
  config.batch_size = 64
  config.steps = 400
  config.log_every = 40
  config.eval_every = config.save_every = 200
  return config
