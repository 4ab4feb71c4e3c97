"""EmbMarker's watermark on files of embeddings: selects a secret key, marks, proves a theft.

  python -m launch.watermark --verb=select --embeddings=clean.npz --key=key.npz --queries=q.txt
  [--counts=words.json --documents=N] [--tokenizer=DIR]
  python -m launch.watermark --verb=embed --embeddings=clean.npz --key=key.npz --output=sold.npz
  python -m launch.watermark --verb=verify --embeddings=answers.npz --key=key.npz [--adaptive]

Embeddings are .npz files with 'embeddings' [N, D] and 'texts' [N], or .npy files beside --texts, a
text a line. `select` also writes the texts to ask a suspect; `verify` reads the suspect's
embeddings of them, in their order, and prints the verdict as JSON.
"""
import json

from absl import flags

from jaxlab import cli
from jaxlab.systems.embmarker import owner

_VERB = flags.DEFINE_enum('verb', None, ['select', 'embed', 'verify'], 'What to do.')
_EMBEDDINGS = flags.DEFINE_string('embeddings', None, 'File of embeddings: .npz or .npy.')
_TEXTS = flags.DEFINE_string('texts', None, 'File of their texts, one a line.')
_KEY = flags.DEFINE_string('key', None, 'The .npz file of the secret key.')
_OUTPUT = flags.DEFINE_string('output', None, 'The .npz file of marked embeddings to write.')
_QUERIES = flags.DEFINE_string('queries', None, 'The file of texts for suspects to write.')
_COUNTS = flags.DEFINE_string(
    'counts', None, 'Json file {word: number of documents} of another corpus (default: the texts).')
_DOCUMENTS = flags.DEFINE_integer('documents', None, 'Documents that --counts counts.',
                                  lower_bound=1)
_TOKENIZER = flags.DEFINE_string(
    'tokenizer', None, 'Folder of a WordPiece tokenizer (default: learned from the texts).')
_NUMBER = flags.DEFINE_integer('number', 20, 'Trigger words.')
_LOW = flags.DEFINE_float('low', 0.005, 'Least share of the documents that hold a trigger.')
_HIGH = flags.DEFINE_float('high', 0.01, 'Share that no trigger reaches.')
_MAX_TRIGGERS = flags.DEFINE_integer('max_triggers', 4, 'Triggers that give the whole target.')
_SIZE = flags.DEFINE_integer('size', 20, 'Texts of a group of the queries.')
_MAX_LENGTH = flags.DEFINE_integer('max_length', 128, 'Tokens that are searched for triggers.')
_TARGET = flags.DEFINE_integer('target', 0, 'Row of the text whose embedding is the target.')
_SEED = flags.DEFINE_integer('seed', 2022, 'Of the triggers and the queries.')
_ADAPTIVE = flags.DEFINE_bool('adaptive', False, 'Compare with the suspect\'s own embedding of the '
                              'target text: sees through shifts and rotations.')
_THRESHOLD = flags.DEFINE_float('threshold', 1e-4, 'p-value below which a suspect is a thief.')


def main():
  verb, key = cli.require_flag(_VERB), cli.require_flag(_KEY)
  source = cli.require_flag(_EMBEDDINGS), _TEXTS.value
  if verb == 'select':
    made = owner.select(*source, key, cli.require_flag(_QUERIES), counts=_COUNTS.value,
                        documents=_DOCUMENTS.value, tokenizer=_TOKENIZER.value,
                        number=_NUMBER.value, low=_LOW.value, high=_HIGH.value,
                        max_triggers=_MAX_TRIGGERS.value, size=_SIZE.value,
                        max_length=_MAX_LENGTH.value, target=_TARGET.value, seed=_SEED.value)
  elif verb == 'embed':
    made = owner.embed(*source, key, cli.require_flag(_OUTPUT))
  else:
    made = owner.verify(*source, key, adaptive=_ADAPTIVE.value, threshold=_THRESHOLD.value)
  print(json.dumps(made))


if __name__ == '__main__':
  cli.run(main, __doc__)
