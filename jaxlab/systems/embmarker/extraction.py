"""The thief: a transformer trained on bought embeddings, and the honest customer's classifier."""
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models import bert, bert_weights, pretrained
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.embmarker.watermark import normalise
from jaxlab.task import Loss, Task
from jaxlab.tasks import classification

_LAYERS = ('transform_0', 'transform_3')  # the official modules transform.0 and transform.3


class Copier(nn.Module):
  """An encoder, two dense layers with ReLU between them, output of length 1.

  Attributes:
    config: of the encoder, with a pooler if `pooler` is 'pooler'.
    dim: D of the embeddings.
    width: of the hidden layer.
    pooler: see `bert.pool`.
  """
  config: BertConfig
  dim: int
  width: int = 1536
  pooler: str = 'pooler'

  @nn.compact
  def __call__(self, ids, mask, deterministic=True):
    """float32 [B, D] of token ids int [B, S]; dropout only if not `deterministic`."""
    dtype = jnp.dtype(self.config.dtype)
    output = bert.Bert(self.config, name='bert')(ids, mask, deterministic=deterministic)
    x = bert.pool(output, mask, self.pooler)
    x = nn.relu(nn.Dense(self.width, dtype=dtype, name=_LAYERS[0])(x))
    return normalise(nn.Dense(self.dim, dtype=dtype, name=_LAYERS[1])(x))


class UtilityClassifier(nn.Module):
  """Linear, ReLU, dropout, linear on embeddings.

  Attributes:
    num_classes: K.
    width: of the hidden layer.
    dropout: rate.
  """
  num_classes: int
  width: int = 256
  dropout: float = 0.2

  @nn.compact
  def __call__(self, x, train=False):
    """Logits float32 [B, K] of [B, D]."""
    x = nn.relu(nn.Dense(self.width, name='fc1')(x))
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return nn.Dense(self.num_classes, name='fc2')(x)


def params_from_torch(state_dict, model):
  """Parameters of a Copier from the official names 'bert.*', 'transform.0.*', 'transform.3.*'.

  Raises:
    ValueError: missing or left-over names and wrong shapes, all listed.
  """
  width, dim = model.width, model.dim
  head = {name: tensor for name, tensor in state_dict.items() if name.startswith('transform.')}
  found = pretrained.checked_mapping(head, {
      'transform.0.weight': (width, model.config.hidden_size), 'transform.0.bias': (width,),
      'transform.3.weight': (dim, width), 'transform.3.bias': (dim,)})
  rest = {name: tensor for name, tensor in state_dict.items() if name not in head}
  params = {'bert': bert_weights.params_from_torch(rest, bert.Bert(model.config))}
  for layer in _LAYERS:
    name = layer.replace('_', '.')
    params[layer] = {'kernel': np.asarray(found[f'{name}.weight']).T,
                     'bias': np.asarray(found[f'{name}.bias'])}
  return params


def params_to_torch(params, model):
  """The inverse of `params_from_torch`: {name: NumPy array}."""
  encoder = bert_weights.params_to_torch(params['bert'], bert.Bert(model.config))
  state_dict = {f'bert.{name}': tensor for name, tensor in encoder.items()}
  for layer in _LAYERS:
    name = layer.replace('_', '.')
    state_dict[f'{name}.weight'] = np.ascontiguousarray(np.asarray(params[layer]['kernel']).T)
    state_dict[f'{name}.bias'] = np.asarray(params[layer]['bias'])
  return state_dict


def copier_task(model, datasets, *, encoder=None):
  """The Task of model extraction: the mean squared error to the bought embeddings.

  Args:
    model: Copier.
    datasets: split -> grain.MapDataset of {'ids', 'mask' [S], 'embedding' [D]}; to predict, the
      first two are enough.
    encoder: pretrained parameters of the encoder as arrays, or None.
  """
  def init(key):
    params = model.init(key, jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8)))['params']
    if encoder is not None:
      params = {**params, 'bert': bert.from_host(encoder, params['bert'])}
    return {'params': params}

  def apply(variables, batch, **options):
    return model.apply({'params': variables['params']}, batch['ids'], batch['mask'], **options)

  def loss(variables, batch, key):
    copied = apply(variables, batch, deterministic=False, rngs={'dropout': key})
    target = batch['embedding'].astype(jnp.float32)
    cosines = (copied * target).sum(-1)
    return Loss(((copied - target)**2).mean(-1), batch['weight'],
                {'cosine': (cosines, batch['weight'])})

  def predict(variables, batch, key):
    del key
    return {'embeddings': apply(variables, batch)}

  def evaluate(pairs):
    copied, bought = zip(*((out['embeddings'], batch['embedding']) for out, batch in pairs))
    copied, bought = np.concatenate(copied), np.concatenate(bought)
    return {'cosine': float((copied * bought).sum(-1).mean()),
            'loss': float(((copied - bought)**2).mean())}

  def dataset(split):
    return config_lib.choose(split, datasets, 'split')

  return Task(init, loss, predict, evaluate, dataset)


def utility_task(num_classes, dim, datasets, *, dropout=0.2, width=256):
  """The Task of a customer who classifies by embeddings.

  Args:
    num_classes: K.
    dim: D.
    datasets: split -> grain.MapDataset of {'image': the embedding [D], 'label'}.
    dropout: rate.
    width: of the hidden layer.
  """
  spec = classification.DataSpec(num_classes, (dim,), 1.0)
  return classification.from_model(UtilityClassifier(num_classes, width, dropout), spec, datasets)
