"""Decoders of the white-box defence: their shape, weights and Coder, from folders."""
import dataclasses
import pathlib

from jaxlab import config as config_lib
from jaxlab.data import text
from jaxlab.models import decoder_checkpoint, decoder_lm, pretrained
from jaxlab.models.decoder_config import from_checkpoint_config
from jaxlab.systems.bipia import toy, whitebox
from jaxlab.train.checkpoints import load_collection, read_leaves

_GENERATION = 'generation_config.json'


def check_model(spec, where='model'):
  """Checks `config.model` without looking at folders; raises ConfigError."""
  if 'weights' in spec:
    config_lib.check_keys(spec, ('weights', *decoder_checkpoint.OPTIONS), where)
  decoder_checkpoint.check_spec(spec, where)


def model_of(config, params):
  """The DecoderLM of a config with as many rows as the parameters have: a vocabulary may grow."""
  rows = params['embed']['embedding'].shape[0]
  return decoder_lm.DecoderLM(dataclasses.replace(config, vocab_size=rows))


def public(folder):
  """(DecoderConfig, params, Coder, ids that end an answer) of a public checkpoint's folder."""
  folder = pathlib.Path(folder)
  config = from_checkpoint_config(pretrained.read_json(folder / pretrained.CONFIG))
  params = decoder_checkpoint.read_params(folder, config)
  return config, params, *public_coder(folder, config.vocab_size, config.vocab_size)


def public_coder(folder, vocab_size, rows):
  """(Coder, ids that end an answer) of a folder's tokenizer.

  Args:
    folder: with tokenizer.json, its chat template and, perhaps, generation_config.json.
    vocab_size: rows of the public checkpoint.
    rows: rows of the model at hand: two more where its vocabulary has grown.
  """
  folder = pathlib.Path(folder)
  tokenizer = text.load_tokenizer(folder)
  own = tuple(tokenizer.token_to_id(marker) for marker in whitebox.MARKERS)
  if rows == vocab_size + 2:
    markers = (vocab_size, vocab_size + 1)
  else:
    markers = own if None not in own else None
  settings = {}
  if (folder / _GENERATION).is_file():
    settings = pretrained.read_json(folder / _GENERATION)
  ends = settings.get('eos_token_id', ())
  ends = tuple(ends) if isinstance(ends, list) else (ends,) if isinstance(ends, int) else ()
  return whitebox.chat_coder(tokenizer, folder, markers=markers, eos_ids=ends), ends


def trained(folder, config):
  """(DecoderConfig, params, Coder, ids that end an answer) of a run of this system's own Task.

  Args:
    folder: its workdir.
    config: its config.json.
  """
  decoder = decoder_checkpoint.decoder_config(config['model'], 'model')
  rows = read_leaves(folder)[".params['embed']['embedding']"].shape[0]
  params = load_collection(
      folder, decoder_checkpoint.shapes_of(dataclasses.replace(decoder, vocab_size=rows)))
  if config['data']['name'] == 'toy':
    return decoder, params, toy.coder(rows), ()
  weights = config['model'].get('weights')
  config_lib.require(weights is not None, 'model.weights', 'a folder with a tokenizer', None)
  return decoder, params, *public_coder(weights, decoder.vocab_size, rows)


def checkpoint(folder, dtype='float32'):
  """(DecoderLM, params, Coder, ids that end an answer) of a public checkpoint or a run of ours.

  Args:
    folder: of the one or the other.
    dtype: to compute in.

  Raises:
    ConfigError: neither is there.
  """
  folder = pathlib.Path(folder)
  described = pretrained.read_json(folder / pretrained.CONFIG)
  if 'model_type' in described:
    config, *rest = public(folder)
  else:
    config_lib.require(described.get('task') == 'bipia', 'checkpoint',
                       'a public checkpoint, or a run of the task bipia', str(folder))
    config, *rest = trained(folder, described)
  return model_of(dataclasses.replace(config, dtype=dtype), rest[0]), *rest
