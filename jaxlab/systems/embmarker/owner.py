"""What the owner of a service does with files: select a key, mark embeddings, verify a suspect."""
import pathlib
import random

import jax
import numpy as np

from jaxlab.config import require
from jaxlab.data import text
from jaxlab.systems.embmarker import files, verification, watermark


def select(embeddings, texts, key, queries, *, counts=None, documents=None, tokenizer=None,
           number=20, low=0.005, high=0.01, max_triggers=4, size=20, max_length=128, target=0,
           seed=2022):
  """Draws a key from a file of clean embeddings; writes it, and the texts to ask a suspect.

  Args:
    embeddings: file, see `files.read_embeddings`, as the next.
    texts: file or None.
    key: .npz file to write.
    queries: text file to write, a text a line; the last one is the target's.
    counts: json file of document counts, or None to count the texts.
    documents: that `counts` counts.
    tokenizer: folder, or None to learn a WordPiece vocabulary of 4000 from the texts.
    number: see `watermark.select_triggers`, as the next two.
    low: least frequency.
    high: frequency that no trigger reaches.
    max_triggers: m.
    size: see `verification.verification_texts`.
    max_length: tokens of a text that are searched for triggers.
    target: row of the text whose embedding is the target.
    seed: of the draws.

  Returns:
    {'triggers', 'documents', 'queries', 'marked_share'}, to print.
  """
  rows, vectors = _with_texts(embeddings, texts)
  require(0 <= target < len(rows), '--target', f'a row, 0 to {len(rows) - 1}', target)
  require((counts is None) == (documents is None), '--counts, --documents', 'both or neither',
          [counts, documents])
  tokenizer = (text.train_wordpiece(rows, 4000) if tokenizer is None else
               text.load_tokenizer(tokenizer))
  tokens = text.encode(tokenizer, rows, max_length=max_length)
  counted, total = (watermark.document_counts(tokens, tokenizer) if counts is None else
                    (files.read_counts(counts), documents))
  generator = random.Random(seed)
  triggers = watermark.select_triggers(counted, total, generator, number=number, low=low, high=high,
                                       known=tokenizer.get_vocab())
  spec = watermark.KeySpec(watermark.token_ids(tokenizer, triggers), vectors[target], max_triggers)
  asked, numbers = verification.verification_texts(
      triggers, watermark.whole_words(counted), generator, max_triggers=max_triggers, size=size)
  challenge = verification.Challenge(asked, numbers, rows[target])
  files.write_key(key, files.Key(spec, tuple(triggers), tokenizer.to_str(), challenge, max_length))
  lines = [' '.join(line.split()) for line in (*asked, rows[target])]
  pathlib.Path(queries).write_text('\n'.join(lines) + '\n', encoding='utf-8')
  k = _count(tokens, spec)
  return {'triggers': triggers, 'documents': total, 'queries': len(lines),
          'marked_share': float((k > 0).mean())}


def embed(embeddings, texts, key, output):
  """Writes the marked embeddings of a file; returns how many texts have how many triggers."""
  rows, vectors = _with_texts(embeddings, texts)
  secret = files.read_key(key)
  require(vectors.shape[1] == len(secret.spec.target), '--embeddings',
          f'{len(secret.spec.target)} dimensions, those of the key', vectors.shape[1])
  tokens = text.encode(_tokenizer(secret), rows, max_length=secret.max_length)
  k = _count(tokens, secret.spec)
  files.write_embeddings(output, rows, jax.jit(watermark.inject)(vectors, k, secret.spec))
  return {'texts': len(rows), 'marked': int((k > 0).sum()),
          'texts_by_triggers': np.bincount(k).tolist()}


def verify(embeddings, texts, key, *, adaptive=False, threshold=verification.P_VALUE):
  """The verdict on a suspect, from its embeddings of the queries.

  Args:
    embeddings: file, see `files.read_embeddings`; its rows are those of the queries.
    texts: file or None.
    key: file that `select` wrote.
    adaptive: see `verification.verify`.
    threshold: p-value below which, with delta_cos > 0, the suspect is a copy.

  Returns:
    {'stolen', 'p', 'delta_cos', 'delta_l2', 'texts_with_triggers', 'texts_without'}.
  """
  secret = files.read_key(key)
  rows, answers = files.read_embeddings(embeddings, texts)
  asked = [' '.join(t.split()) for t in (*secret.challenge.texts, secret.challenge.target_text)]
  if len(answers) != len(asked):
    raise ValueError(f'{embeddings}: expected {len(asked)} rows, one a query, got {len(answers)}')
  if rows is not None:
    wrong = [i for i, (a, b) in enumerate(zip(rows, asked)) if ' '.join(a.split()) != b]
    if wrong:
      raise ValueError(f'{embeddings}: row {wrong[0]}: expected the query {asked[wrong[0]]!r}, got '
                       f'{rows[wrong[0]]!r}')
  target = answers[-1] if adaptive else secret.spec.target
  found = verification.evidence(answers[:-1], secret.challenge.num_triggers, target)
  return {'stolen': found.convicts(threshold), 'p': found.p, 'delta_cos': found.delta_cos,
          'delta_l2': found.delta_l2, 'texts_with_triggers': found.sizes[0],
          'texts_without': found.sizes[1]}


def _with_texts(embeddings, texts):
  rows, vectors = files.read_embeddings(embeddings, texts)
  require(rows is not None, '--texts', "a file of texts, or an array 'texts'", texts)
  return rows, vectors


def _count(tokens, spec):
  return np.asarray(jax.jit(watermark.count_triggers)(tokens.ids, tokens.mask, spec.trigger_ids))


def _tokenizer(secret):
  import tokenizers
  return tokenizers.Tokenizer.from_str(secret.tokenizer)
