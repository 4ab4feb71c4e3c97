"""Sentence embeddings a second: jaxlab's encoder against transformers on the same weights.

  python -m benchmarks.text_encoder [--folder=DIR] [--json=FILE]

Float32, as many cores for both (ours: a device a core), mean over the tokens. Sentences of 32 and
of 128 tokens, and of mixed lengths from 8 to 128, where both sides sort by length and pad to the
longest of a batch (ours to its bucket). The folder is of a published BERT; by default one of
MiniLM's size (6 layers of 384) with random weights. Outputs are compared first. The exit status is
1 below the bars.
"""
import os
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from benchmarks import comparison
from jaxlab import parallel
from jaxlab.data import text
from jaxlab.models import bert_weights
from jaxlab.models.bert import Bert
from jaxlab.models.bert_config import PRESETS
from jaxlab.tasks import sentence_encoder

FOLDER = flags.DEFINE_string('folder', None, 'Folder of a published encoder.')
ROWS = flags.DEFINE_integer('rows', 256, 'Sentences of each comparison.', lower_bound=1)
BATCH = flags.DEFINE_integer('batch', 32, 'Sentences of a batch.', lower_bound=1)
REPETITIONS = flags.DEFINE_integer('repetitions', 5, 'Timed runs, in turns.', lower_bound=1)

TOLERANCE = 1e-4
BARS = {'32 tokens': 1.0, '128 tokens': 1.0, '8 to 128 tokens': 1.3}


def write_random(folder):
  """Writes an encoder of MiniLM's size with random weights."""
  model = Bert(PRESETS['minilm-l6-h384'])
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
  bert_weights.save(folder, params, model)


def sentences(rng, lengths, vocab_size):
  """`text.Tokens` of random ids of the given lengths."""
  mask = (np.arange(max(lengths)) < np.asarray(lengths)[:, None]).astype(np.int32)
  ids = rng.integers(1, vocab_size, mask.shape).astype(np.int32) * mask
  return text.Tokens(ids, mask, np.zeros_like(ids))


def peer(model, tokens, batch):
  """Embeddings float32 [N, D] by transformers."""
  lengths = tokens.mask.sum(1)
  order = np.argsort(lengths, kind='stable')
  vectors = np.zeros((len(order), model.config.hidden_size), np.float32)
  with torch.inference_mode():
    for start in range(0, len(order), batch):
      rows = order[start:start + batch]
      longest = lengths[rows[-1]]
      ids, mask = (torch.from_numpy(x[rows, :longest]) for x in (tokens.ids, tokens.mask))
      hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
      weights = mask[..., None].float()
      mean = (hidden * weights).sum(1) / weights.sum(1)
      vectors[rows] = torch.nn.functional.normalize(mean, dim=-1).numpy()
  return vectors


def compare(name, tokens, ours, theirs):
  """The row of one comparison."""
  sides = {'ours': lambda: sentence_encoder.embed_tokens(*ours, tokens, batch_size=BATCH.value),
           'peer': lambda: peer(theirs, tokens, BATCH.value)}
  first = {side: run() for side, run in sides.items()}  # compiles
  np.testing.assert_allclose(first['ours'], first['peer'], atol=TOLERANCE)
  times = comparison.medians(sides, REPETITIONS.value)
  ours_s, peer_s = times['ours'], times['peer']
  return {'name': name, 'ours': 1e3 * ours_s, 'peer': 1e3 * peer_s, 'unit': 'ms',
          'ratio': peer_s / ours_s, 'sentences_per_s': len(tokens.ids) / ours_s,
          'peer_sentences_per_s': len(tokens.ids) / peer_s}


def main(_):
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)
  parallel.initialize(cpu_devices=cores)
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as made:
    folder = FOLDER.value or made
    if FOLDER.value is None:
      write_random(made)
    model, params = bert_weights.load(folder, add_pooler=None)
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
  ours = model, jax.tree.map(jnp.asarray, params)
  fixed = lambda length: np.full(ROWS.value, length)
  lengths = {'32 tokens': fixed(32), '128 tokens': fixed(128),
             '8 to 128 tokens': rng.integers(8, 129, ROWS.value)}
  rows = [compare(name, sentences(rng, chosen, model.config.vocab_size), ours, theirs)
          for name, chosen in lengths.items()]
  print(f'{ROWS.value} sentences, batches of {BATCH.value}, {model.config.num_hidden_layers} '
        f'layers of {model.config.hidden_size}, {torch.get_num_threads()} threads; transformers '
        f'{transformers.__version__}')
  for row in rows:
    print(f'{row["name"]}: {row["sentences_per_s"]:.0f} sentences/s, transformers '
          f'{row["peer_sentences_per_s"]:.0f}')
  comparison.show(rows, 'jaxlab: transformers')
  under = [row['name'] for row in rows if row['ratio'] < BARS[row['name']]]
  if under:
    sys.exit(f'below the bar: {"; ".join(under)}')


if __name__ == '__main__':
  app.run(main)
