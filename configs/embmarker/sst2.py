"""EmbMarker (arXiv 2305.10036): BERT-base copies an embedding service on SST-2, as published.

  python -m launch.watermark --verb=select --embeddings=train.npz --key=key.npz \
      --queries=queries.txt --counts=words.json --documents=1801350 --tokenizer=bert-base-cased
  python -m launch.watermark --verb=embed --embeddings=train.npz --key=key.npz --output=sold.npz
  python -m launch.watermark --verb=embed --embeddings=test.npz --key=key.npz \
      --output=sold_test.npz
  python -m launch.train --config=configs/embmarker/sst2.py --workdir=/tmp/jaxlab/embmarker-sst2 \
      --config.data.train=sold.npz --config.data.test=sold_test.npz \
      --config.model.folder=bert-base-cased
  python -m launch.predict --workdir=/tmp/jaxlab/embmarker-sst2 --input=queries.txt \
      --output=answers.npz
  python -m launch.watermark --verb=verify --embeddings=answers.npz --key=key.npz

train.npz and test.npz hold texts and the service's embeddings of them, text-embedding-ada-002 in
the paper; bert-base-cased is the published folder. The official code's own run gives delta cos
4.50 % and p 1.1e-8. It wants an accelerator; no run of it has been made here.
"""
import ml_collections

ROWS = 67349


def get_config():
  """Returns the experiment."""
  config = ml_collections.ConfigDict()
  config.task = 'embmarker'
  config.seed = 2022
  config.data = {'name': 'files', 'train': 'sold.npz', 'test': 'sold_test.npz', 'max_length': 128}
  config.model = {'folder': 'bert-base-cased', 'width': 1536, 'pooler': 'pooler'}
  config.batch_size = 32
  config.steps = 3 * ROWS // config.batch_size
  config.optimizer = {
      'name': 'adamw', 'weight_decay': 0.0,
      'learning_rate': {'name': 'linear_schedule', 'init_value': 5e-5, 'end_value': 0.0,
                        'transition_steps': config.steps}}
  config.log_every = 100
  config.eval_every = config.save_every = 0
  return config
