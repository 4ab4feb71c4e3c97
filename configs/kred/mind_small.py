"""KRED (arXiv 1910.11494) on MIND-small.

  python -m launch.train --config=configs/kred/mind_small.py \
      --config.data.documents.path=VECTORS.npz --config.data.graph.folder=WIKIDATA_GRAPH \
      --workdir=/tmp/jaxlab/kred-mind

It wants MINDsmall_train and MINDsmall_dev unpacked in downloads/manual/MINDsmall of the data sets,
a file of document vectors by news id ('news' and 'vector' in a .npz; the official code's are of
DistilBERT), the authors' WikidataGraph folder and an accelerator; no run of it has been made here.
Expected: the official notebook on the smaller MIND-demo, single task, has a validation AUC of .6272
and NDCG@10 of .376. MIND has no label of local news, so there are four tasks. As in the official
code training ends after three epochs without a better validation, of 100 at most.

Variants: 'kred'; 'vec', MIND's own .vec files (and --config.data.graph.triples=FILE) in place of
the bundle, whose link is dead; 'transe', vectors trained here on a file of triples; 'single',
user2item alone; 'category', 'popularity' and 'item2item', which end with that task; 'official', the
official code's forms of everything, single task.
"""
import ml_collections

ARMS = ('category', 'popularity', 'item2item', 'user2item')
VARIANTS = ('kred', 'vec', 'transe', 'single', 'category', 'popularity', 'item2item', 'official')
EPOCH = 236_344 // 64  # steps of a pass over the training clicks


def get_config(variant='kred'):
  """Returns the experiment; `variant` is one of 'kred', 'vec', 'transe', 'single', 'category',
  'popularity', 'item2item' and 'official'.
  """
  if variant not in VARIANTS:
    raise ValueError(f'variant: expected one of {", ".join(sorted(VARIANTS))}, got {variant!r}')
  official = variant == 'official'
  config = ml_collections.ConfigDict()
  config.task = 'kred'
  config.seed = 0
  config.target = variant if variant in ARMS else 'user2item'
  config.model = {'features': 100, 'hidden': 128, 'official_compat': official,
                  'entity_layer': True}
  graph = {'vec': {'source': 'mind', 'triples': ''},
           'transe': {'source': 'transe', 'triples': 'triples.tsv', 'dim': 100, 'steps': 100_000,
                      'batch_size': 4096, 'learning_rate': 1e-3}}
  config.data = {
      'name': 'mind_small', 'history_length': 20,
      'history_keep': 'first' if official else 'last', 'negatives': 4, 'slots': 20,
      'neighbours': 20, 'entities': True,
      'graph': graph.get(variant, {'source': 'official', 'folder': 'WikidataGraph'}),
      'documents': {'name': 'file', 'path': 'documents.npz'}, 'seed': 0
  }
  config.optimizer = {'name': 'adam', 'learning_rate': 2e-5}
  metric = 'accuracy' if config.target in ('category', 'popularity') else 'auc'
  second = {'steps': 100 * EPOCH, 'early_stop': {'metric': f'dev/{metric}', 'patience': 3}}
  config.phases = ((second,) if variant in ('single', 'official')
                   else ({'steps': 5 * EPOCH, 'arms': ARMS}, second))
  config.batch_size = 64
  config.eval_splits = ('dev',)
  config.log_every = 100
  config.eval_every = config.save_every = EPOCH
  config.predict = {'news': 20}
  return config
