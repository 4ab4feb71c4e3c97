"""The text-classification Task: loss in closed form, padding, gradients, folders, errors."""
import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from jaxlab.config import ConfigError
from jaxlab.models import bert
from jaxlab.models.bert_config import BertConfig
from jaxlab.tasks import text_classification as tc

CONFIG = BertConfig(30, 16, 1, 4, 24, max_position_embeddings=12, hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0)
DATA, MODEL = {'name': 'rte'}, {'name': 'bert-tiny'}


def rows(count=6):
  rng = np.random.default_rng(0)
  mask = (np.arange(8) < rng.integers(3, 9, (count, 1))).astype(np.uint8)
  return {'ids': rng.integers(5, 30, (count, 8)).astype(np.int32) * mask, 'mask': mask,
          'token_type': 0 * mask, 'label': (np.arange(count) % 2).astype(np.float32),
          'weight': np.arange(count).astype(np.float32)}


@functools.cache
def made(classes):
  task = tc.from_model(bert.SequenceClassifier(CONFIG, classes), tc.TextSpec('rte', classes), {})
  return task, jax.jit(task.init)(jax.random.key(0))


class LossTest(parameterized.TestCase):

  @parameterized.parameters(1, 2)
  def test_closed_form_and_gradients(self, classes):
    task, variables = made(classes)
    batch = rows()
    logits = np.asarray(jax.jit(task.predict)(variables, batch, None), np.float64)
    loss = jax.jit(task.loss)(variables, batch, jax.random.key(0))
    labels = batch['label'].astype(int)
    expected = ((logits[:, 0] - labels)**2 if classes == 1 else
                -special.log_softmax(logits, -1)[np.arange(6), labels])
    np.testing.assert_allclose(loss.values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loss.weights, batch['weight'])
    total = lambda v: (task.loss(v, batch, jax.random.key(0)).values * batch['weight']).sum()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(variables)):
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      self.assertTrue(np.any(leaf), name)


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'data': {'name': 'rti'}}, "data.name: unknown name 'rti'; did you mean 'rte'"),
      ({'model': {'name': 'bert-tinny'}}, "model.name: unknown name 'bert-tinny'"),
      ({'model': {}}, 'model.name, model.folder: expected one of them'),
      ({'model': {'folder': 'x', 'hidden_size': 8}}, 'model.folder: expected alone'),
      ({'model': {'name': 'bert-tiny', 'hidden_size': 9}}, 'hidden_size: expected a multiple'),
      ({'data': {'name': 'rte', 'max_length': 2}}, 'data.max_length: expected at least 8'))
  def test_mistakes(self, changes, message):
    with self.assertRaisesRegex(ConfigError, message):
      tc.check({'data': DATA, 'model': MODEL, **changes})


if __name__ == '__main__':
  absltest.main()
