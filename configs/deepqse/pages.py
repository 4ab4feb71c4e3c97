"""Efficient-DeepQSE (arXiv 2210.08809) with the official code's settings, on a folder of pages.

  python -m launch.train --config=configs/deepqse/pages.py --workdir=/tmp/jaxlab/deepqse-full \
      --config.data.folder=pages --config.model.folder=bert-base-uncased

The folder holds train.tsv, dev.tsv and test.tsv of 8 columns: query, title, snippet, body
(sentences joined by <sep>), url, lang, start_index, end_index. bert-base-uncased is the published
folder, of which the lowest 6 layers are used. The paper's two sets are not public, and its figures
could not be read. It wants an accelerator; no run of it has been made here. `steps` are 5 epochs of
100,000 pages: set them for the number of pages of the folder. Variants: 'efficient', 'joint'.
"""
import ml_collections

PAGES, EPOCHS = 100_000, 5


def get_config(variant='efficient'):
  """Returns the experiment; `variant` is one of 'efficient', 'joint'."""
  config = ml_collections.ConfigDict()
  config.task = 'deepqse'
  config.seed = 0
  config.data = {'folder': 'pages', 'max_sentences': 160, 'max_query': 32, 'max_title': 32,
                 'max_sentence': 64}
  config.model = {'kind': variant, 'candidates': 20, 'folder': 'bert-base-uncased', 'layers': 6,
                  'dtype': 'bfloat16', 'remat': True}
  config.predict = {'query': '', 'sentences': 1}
  config.batch_size = 128
  config.optimizer = {'name': 'adam', 'learning_rate': 1e-4}
  steps = EPOCHS * PAGES // config.batch_size
  if variant == 'efficient':
    config.phases = (
        {'steps': steps, 'arms': ('coarse',), 'trainable': 'coarse/.*'},
        {'steps': steps, 'trainable': 'fine/.*', 'refresh_every': steps})
  else:
    config.steps = steps
  config.log_every = 100
  config.eval_every = 0
  config.save_every = 500
  return config
