"""GraphFormers (arXiv 2105.02605) on the official files of DBLP or Wikidata5M.

  python -m launch.train --config=configs/graphformers/dblp.py --workdir=/tmp/jaxlab/dblp \
      --config.model.folder=UNILM2_BASE_FOLDER --config.data.manual_dir=DIR

DIR/text_pairs holds train.tsv, valid.tsv and test.tsv. The folder is that of a published encoder
(config.json, model.safetensors, vocab.txt): UniLM-base, or bert-base-uncased where there is none.
The paper's P@1 is 72.67 on DBLP and 39.52 on Wikidata5M (from memory: UNVERIFIED). A step is 240
pairs. As in the official run training ends after two epochs without a better validation P@1, of 100
at most. Never run here.

Variants: graphformers (two such phases, of 50 epochs at most: polluted, then clean), plain (the
official code's default, no pollution), wiki (Wikidata5M: its epochs, 64 tokens), plm, and the
cascades max, mean, att, gat.
"""
import ml_collections

DBLP, WIKI = 3_009_506, 7_145_834  # training pairs


def get_config(variant='graphformers'):
  """Returns the experiment."""
  epoch = (WIKI if variant == 'wiki' else DBLP) // 240
  config = ml_collections.ConfigDict()
  config.task = 'graphformers'
  config.seed = 42
  config.data = {'name': 'pairs', 'neighbors': 5, 'token_length': 64 if variant == 'wiki' else 32,
                 'candidates': 300, 'pollute_rate': 0.15,
                 'manual_dir': ml_collections.config_dict.placeholder(str)}
  nested = variant in ('graphformers', 'plain', 'wiki')
  config.model = {'architecture': 'graphformers' if nested else variant,
                  'folder': 'unilm2-base-uncased', 'dropout': 0.1, 'dtype': 'bfloat16',
                  'remat': False}
  config.optimizer = {'name': 'adam', 'learning_rate': 1e-5}
  config.predict = {'batch_size': 256, 'seed': 0}
  config.batch_size = 240
  if variant in ('graphformers', 'wiki'):
    config.phases = ({'steps': 50 * epoch, 'arms': ('polluted',)},
                     {'steps': 50 * epoch, 'arms': ('clean',)})
  else:
    config.steps = 100 * epoch
  config.early_stop = {'metric': 'validation/p@1', 'patience': 2}
  config.log_every = 100
  config.eval_every = config.save_every = epoch
  config.eval_splits = ('validation', 'test')
  return config
