"""Embeddings of a published encoder: jaxlab's against transformers', from text to vector.

  python -m benchmarks.text_encoder_parity --folder=DIR [--sts=sts-test.csv]

The folder holds config.json, model.safetensors and a tokenizer that is averaged over its tokens,
such as all-MiniLM-L6-v2. 100 sentences of NumPy's docstrings, each side with its own tokenizer;
with --sts the similarity of STS-B's pairs too. The exit status is 1 where cosines of the two sides
differ from 1 by more than 1e-5, or Spearman x 100 by more than .001.
"""
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from benchmarks import comparison
from jaxlab.data import docstrings, sts, text
from jaxlab.metrics.glue import spearman
from jaxlab.models import bert_weights
from jaxlab.tasks import sentence_encoder

FOLDER = flags.DEFINE_string('folder', None, 'Folder of a published encoder.', required=True)
STS = flags.DEFINE_string('sts', None, 'A file of STS-B, or a folder of a year of SentEval.')

SENTENCES, MAX_LENGTH, BATCH = 100, 128, 32
TOLERANCE, SPEARMAN = 1e-5, 1e-3


def our_embed(folder):
  """The function of texts to float32 [N, D], of length 1, by jaxlab."""
  model, params = bert_weights.load(folder, add_pooler=None)
  params, tokenizer = jax.tree.map(jnp.asarray, params), text.load_tokenizer(folder)
  return lambda texts: sentence_encoder.embed_texts(model, params, tokenizer, texts,
                                                    max_length=MAX_LENGTH, batch_size=BATCH)


def peer_embed(folder):
  """The same by transformers."""
  model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

  def embed(texts):
    found = []
    with torch.inference_mode():
      for start in range(0, len(texts), BATCH):
        tokens = tokenizer(texts[start:start + BATCH], padding='longest', truncation=True,
                           max_length=MAX_LENGTH, return_tensors='pt')
        hidden = model(**tokens).last_hidden_state
        weights = tokens['attention_mask'][..., None].float()
        mean = (hidden * weights).sum(1) / weights.sum(1)
        found.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
    return np.concatenate(found)

  return embed


def main(_):
  sides = {'ours': our_embed(FOLDER.value), 'peer': peer_embed(FOLDER.value)}
  prose = dict.fromkeys(s for document in docstrings.sentences('numpy') for s in document)
  sentences = list(itertools.islice(prose, SENTENCES))
  vectors = {side: embed(sentences).astype(np.float64) for side, embed in sides.items()}
  norms = np.prod([np.linalg.norm(x, axis=1) for x in vectors.values()], axis=0)
  distance = float(np.max(np.abs(1 - (vectors['ours'] * vectors['peer']).sum(1) / norms)))
  print(f'{len(sentences)} sentences: cosine of the two sides differs from 1 by at most '
        f'{distance:.1e}')
  rows, good = [{'name': 'largest distance', 'distance': distance}], distance <= TOLERANCE
  if STS.value is not None:
    pairs = sts.read(STS.value)
    figures = {}
    for side, embed in sides.items():
      first, second = (np.asarray(embed(x), np.float64) for x in (pairs.first, pairs.second))
      figures[side] = 100 * spearman((first * second).sum(1), pairs.score)
    print(f'{len(pairs.score)} pairs, Spearman x 100: jaxlab {figures["ours"]:.3f}, transformers '
          f'{figures["peer"]:.3f}')
    rows.append({'name': 'Spearman x 100', **figures})
    good &= abs(figures['ours'] - figures['peer']) <= SPEARMAN
  comparison.write(rows)
  if not good:
    sys.exit('the two sides differ')


if __name__ == '__main__':
  app.run(main)
