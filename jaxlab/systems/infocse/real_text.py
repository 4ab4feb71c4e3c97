"""The loop on real text, small: word vectors trained on docstrings, or on a folder of real slices.
"""
import pathlib

import numpy as np

from jaxlab import train
from jaxlab.data import documents, sts, text
from jaxlab.systems.infocse import corpus as corpus_lib
from jaxlab.systems.infocse import evaluation
from jaxlab.systems.infocse.model import WordAverage
from jaxlab.systems.infocse.positives import Positives
from jaxlab.systems.infocse.task import LossSettings, from_model

DIM, VOCABULARY, MAX_LENGTH, MAX_SENTENCES = 64, 4000, 48, 32
BATCH, WARM_UP, STEPS, ROUNDS, RATE = 64, 50, 600, 6, 3e-3
# Every arm hides 15 % of the positive's tokens: word vectors have no dropout to tell twins apart.
ARMS = {'twin': Positives(view='cutoff'), 'neighbour': Positives('neighbour', view='cutoff'),
        'InfoCSE': Positives(view='cutoff')}


def read_pages(folder):
  """({title: sentences} of all pages, [(query, title, sentence), ...] of the test pages).

  Args:
    folder: with train.tsv, dev.tsv and test.tsv: query, title, snippet, body with <sep> between
      sentences, and further columns, between tabs.

  Raises:
    ValueError: a line of fewer columns.
  """
  pages, asked = {}, []
  for split in ('train', 'dev', 'test'):
    for where, line in documents.read_lines(pathlib.Path(folder) / f'{split}.tsv'):
      cells = line.split('\t')
      if len(cells) < 4:
        raise ValueError(f'{where}: expected at least 4 columns between tabs, got {len(cells)}')
      query, title, snippet, body = cells[:4]
      pages[title] = [s.strip() for s in body.split('<sep>') if s.strip()]
      if split == 'test' and snippet.strip() in pages[title]:
        asked.append((query, title, snippet.strip()))
  return pages, asked


def measure(seed, data_dir):
  """{arm: {metric: float}} of one run of each arm.

  Args:
    seed: of the runs.
    data_dir: folder with xquad_snippets/{train,dev,test}.tsv (see `read_pages`) and
      stsb_captions/sts-test.csv (see `sts.read`), or None for docstrings.
  """
  if data_dir is None:
    found = corpus_lib.demo_documents()
    scored = _judge_docstrings(corpus_lib.demo_pairs())
  else:
    pages, asked = read_pages(pathlib.Path(data_dir) / 'xquad_snippets')
    found = [documents.Document(title, tuple(page)) for title, page in pages.items()]
    scored = _judge_slices(pages, asked, sts.read(
        pathlib.Path(data_dir) / 'stsb_captions' / 'sts-test.csv'))
  tokenizer = text.train_wordpiece((s for d in found for s in d.sentences), VOCABULARY)
  corpus = corpus_lib.make_corpus(found, tokenizer, max_length=MAX_LENGTH,
                                  max_sentences=MAX_SENTENCES)
  model = WordAverage(tokenizer.get_vocab_size(), DIM)
  results = {}
  for arm, positives in ARMS.items():
    task = from_model(model, corpus, {}, positives=positives,
                      settings=LossSettings(temperature=0.1))
    params = train.fit(task, _config(arm, seed)).params
    embed = _embedder(task, params, tokenizer)
    results[arm] = scored(embed)
  return results


def _config(arm, seed):
  every = 0 if arm == 'twin' else STEPS // ROUNDS
  return {'seed': seed, 'batch_size': BATCH, 'eval_splits': (), 'steps_per_call': 50,
          'optimizer': {'name': 'adam', 'learning_rate': RATE},
          'phases': ({'steps': WARM_UP}, {'steps': STEPS, 'refresh_every': every})}


def _embedder(task, params, tokenizer):
  def embed(sentences):
    tokens = text.encode(tokenizer, sentences, max_length=MAX_LENGTH, length=MAX_LENGTH)
    return np.asarray(task.predict({'params': params}, {'ids': tokens.ids, 'mask': tokens.mask},
                                   None)['embeddings'])
  return embed


def _judge_docstrings(pairs):
  first, second = map(list, zip(*pairs))
  return lambda embed: evaluation.pair_retrieval(embed(first), embed(second))


def _judge_slices(pages, asked, pairs):
  def scored(embed):
    vectors = {title: embed(pages[title]) for title in {title for _, title, _ in asked}}
    found = evaluation.page_retrieval(
        embed([query for query, _, _ in asked]), [vectors[title] for _, title, _ in asked],
        [pages[title].index(snippet) for _, title, snippet in asked])
    same = evaluation.similarity(embed(pairs.first), embed(pairs.second), pairs.score)
    return {**found, 'spearman': same['spearman']}
  return scored
