"""InfoCSE (arXiv 2202.13802) with BERT-base on a corpus of documents; variants bert, roberta.

  python -m launch.train --config=configs/infocse/bert_base.py --workdir=/tmp/jaxlab/infocse-bert \
      --config.model.folder=BERT --config.data.train=corpus.jsonl \
      --config.data.sts_pairs=sts-dev.csv

BERT is the folder of bert-base-uncased (config.json, model.safetensors, tokenizer.json); the corpus
has {"doc_id", "sentences"} a line; sts-dev.csv is STS-B's (https://ixa2.si.ehu.eus/stswiki). The
paper's body was not read: rate, batch and length are those of unsupervised SimCSE (2104.08821),
three rounds and the warm-up a choice. The numbers are of 10^6 sentences, 15625 steps an epoch, a
round an epoch. It wants an accelerator; no run of it has been made here. Variant 'roberta': batch
512, rate 1e-5.
"""
import ml_collections

SENTENCES, ROUNDS, WARM_UP = 1_000_000, 3, 1000


def get_config(variant='bert'):
  """Returns the experiment; `variant` is 'bert' or 'roberta'."""
  batch, rate = {'bert': (64, 3e-5), 'roberta': (512, 1e-5)}[variant]
  epoch = SENTENCES // batch
  config = ml_collections.ConfigDict()
  config.task = 'infocse'
  config.seed = 0
  config.data = {'name': 'files', 'train': 'corpus.jsonl', 'sts_pairs': 'sts-dev.csv',
                 'max_length': 64, 'max_sentences': 32}
  config.model = {'folder': 'bert-base-uncased', 'dropout': 0.1, 'dtype': 'bfloat16',
                  'pooler': 'cls', 'head': True}
  config.positives = {'name': 'annotated', 'per_cluster': 4, 'min_cosine': 0.3, 'pick': 'sample'}
  config.loss = {'temperature': 0.05, 'mask_documents': True}
  linear = {'name': 'linear_schedule', 'init_value': rate, 'end_value': 0.0}
  adamw = {'name': 'adamw', 'weight_decay': 0.0}
  config.batch_size = batch
  config.phases = (
      {'steps': WARM_UP, 'optimizer': {**adamw, 'learning_rate': rate}},
      {'steps': ROUNDS * epoch, 'refresh_every': epoch,
       'optimizer': {**adamw, 'learning_rate': {**linear, 'transition_steps': ROUNDS * epoch}}})
  config.log_every = 125
  config.eval_every = config.save_every = 1000
  return config
