"""A trained encoder as a folder that transformers and sentence-transformers open."""
from jaxlab import config as config_lib
from jaxlab.models import bert, bert_weights, pretrained
from jaxlab.systems.infocse.task import load_texts, make_encoder, make_task, make_tokenizer
from jaxlab.train import evaluation


def save_encoder(config, workdir, folder):
  """Writes the encoder of a run's newest checkpoint; the head of training is left off.

  Args:
    config: the experiment, as the workdir's config.json has it.
    workdir: of the run.
    folder: to write to; it is made.

  Raises:
    ConfigError: no checkpoint, or an encoder that such a folder cannot hold.
  """
  config_lib.require(config['model'].get('name') != 'word_average', 'model.name', 'a transformer',
                     'word_average')
  tokenizer = make_tokenizer(config, config_lib.call(load_texts, config['data'], 'data', drop=()))
  model, _ = make_encoder(config, tokenizer)
  pretrained.check_pooling(model.pooler)
  params = evaluation.restored(make_task(config), config, workdir)[0].params
  source = config['data'].get('tokenizer') or config['model'].get('folder')
  bert_weights.save(folder, params['bert'], bert.Bert(model.config),
                    tokenizer_from=source or tokenizer)
  pretrained.write_sentence_transformers_folder(
      folder, model.pooler, width=model.config.hidden_size,
      max_length=config['data'].get('max_length', 64))
