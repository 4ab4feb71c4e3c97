"""A tiny Task with a closed form, and helpers that several tests share."""
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data import pipeline
from jaxlab.task import Loss, Task


def columns(rows=24, features=4, classes=3, seed=0):
  """Random inputs [rows, features] and labels of a noisy linear rule."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(rows, features)).astype(np.float32)
  label = (x @ rng.normal(size=(features, classes)) +
           .1 * rng.normal(size=(rows, classes))).argmax(-1)
  return {'x': x, 'label': label.astype(np.int32), 'id': np.arange(rows, dtype=np.int32)}


def softmax_task(rows=24, features=4, classes=3, noise=0.0):
  """Softmax regression; with `noise` > 0 the loss uses its key."""
  data = {
      'train': columns(rows, features, classes), 'test': columns(rows, features, classes, seed=1)
  }

  def init(key):
    return {
        'params': {'w': .1 * jax.random.normal(key, (features, classes)), 'b': jnp.zeros(classes)}
    }

  def logits_of(variables, x):
    return x @ variables['params']['w'] + variables['params']['b']

  def loss(variables, batch, key):
    x = batch['x'] + noise * jax.random.normal(key, batch['x'].shape) if noise else batch['x']
    logits = logits_of(variables, x)
    values = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch['label'][:, None], 1)[:, 0]
    correct = (logits.argmax(-1) == batch['label']).astype(jnp.float32)
    return Loss(values, batch['weight'], {'accuracy': (correct, batch['weight'])})

  def predict(variables, batch, key):
    del key
    return logits_of(variables, batch['x'])

  def evaluate(pairs):
    outputs, batches = zip(*pairs)
    logits = np.concatenate(outputs)
    labels = np.concatenate([batch['label'] for batch in batches])
    ids = np.concatenate([batch['id'] for batch in batches])
    return {
        'accuracy': float((logits.argmax(-1) == labels).mean()), 'rows': float(len(np.unique(ids))),
        'seen': float(len(ids))
    }

  return Task(init, loss, predict, evaluate, lambda split: pipeline.from_arrays(data[split]))


def assert_trees_equal(a, b):
  """Bit equality of two pytrees, typed PRNG keys included."""
  from jaxlab import parallel
  a, b = parallel.to_host(a), parallel.to_host(b)
  assert jax.tree.structure(a) == jax.tree.structure(b), (jax.tree.structure(a),
                                                          jax.tree.structure(b))
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
    np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
