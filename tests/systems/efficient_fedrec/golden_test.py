"""Efficient-FedRec against its golden vectors: BERT, pooling and dense layer; both stages; Adam."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

from jaxlab import federated
from jaxlab.data import news as news_data
from jaxlab.data import pipeline
from jaxlab.federated import aggregators
from jaxlab.models import bert, bert_weights, news_weights
from jaxlab.models import news as models
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.efficient_fedrec import efficient_fedrec
from jaxlab.tasks import news as news_task
from tests.golden_reader import Golden

GOLDEN = Golden('efficient_fedrec')
OWN = {'pooling/hidden/kernel': 'additive_attention.att_fc1.weight',
       'pooling/hidden/bias': 'additive_attention.att_fc1.bias',
       'pooling/score/kernel': 'additive_attention.att_fc2.weight',
       'pooling/score/bias': 'additive_attention.att_fc2.bias',
       'output/kernel': 'fc.weight', 'output/bias': 'fc.bias'}
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


def arrays(prefix):
  """{name: array} of the golden's arrays under a prefix."""
  return {key[len(prefix):]: GOLDEN[key] for key in GOLDEN.unread() if key.startswith(prefix)}


@functools.cache
def setup():
  """(NewsTask, params, user encoder) of the golden's model and data."""
  encoder = bert_model()
  state = arrays('news_param/')
  width, queries = len(state['fc.bias']), len(state['additive_attention.att_fc1.bias'])
  plm = {name.removeprefix('bert.'): x for name, x in state.items() if name.startswith('bert.')}
  news = {'encoder': bert_weights.params_from_torch(plm, encoder)}
  for path, name in OWN.items():
    *parents, leaf = path.split('/')
    node = news
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = state[name].T
  user = arrays('user_param/')
  user_heads = int(GOLDEN['user_heads'])
  params = {'news': news, 'user': news_weights.params_from_torch(user, 'nrms_user')}
  candidates = GOLDEN['candidates'].astype(np.int32)
  samples = len(candidates)
  train = {'row': np.arange(samples, dtype=np.int32),
           'user': GOLDEN['user_index'].astype(np.int32), 'click': candidates[:, 0],
           'pool': candidates[:, 1:], 'history': GOLDEN['history'].astype(np.int32),
           'pool_size': np.full(samples, candidates.shape[1] - 1, np.int32)}
  table = news_data.NewsTable(features(), {}, 1, 1)
  data = news_task.Data(table, {'train': train}, candidates.shape[1] - 1)
  user_model = models.NRMSUser(heads=user_heads, head_dim=width // user_heads,
                               queries=len(user['additive_attention.att_fc1.bias']))
  task = news_task.from_models(models.PretrainedNews(encoder, width, queries), user_model, data)
  return task, jax.tree.map(jnp.float32, params), user_model


def check_news(found, expected):
  """Compares a tree shaped like the news parameters with official names."""
  plm = bert_weights.params_to_torch(found['encoder'], bert_model())
  ours = {f'bert.{name}': x for name, x in plm.items()}
  for path, name in OWN.items():
    leaf = found
    for part in path.split('/'):
      leaf = leaf[part]
    ours[name] = np.asarray(leaf).T
  for name, value in expected.items():
    close(ours[name], value, err_msg=name)


def features():
  """Tokens and masks of the news."""
  return {'title': jnp.asarray(GOLDEN['news_tokens'], jnp.int32),
          'title_mask': jnp.asarray(GOLDEN['news_attention_mask'], jnp.int32)}


def bert_model():
  """The encoder of `setup`."""
  vocab, hidden, layers, heads, inner, positions = GOLDEN['bert_config'].tolist()
  return bert.Bert(BertConfig(
      vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
      intermediate_size=inner, max_position_embeddings=positions, hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0))


class GoldenTest(absltest.TestCase):

  def test_forward(self):
    task, params, user_model = setup()
    vectors = jax.jit(task.encode)(params['news'], features())
    close(vectors, GOLDEN['news_vecs'])
    history = GOLDEN['history']
    users = user_model.apply({'params': params['user']}, vectors[history], history > 0)
    close(users, GOLDEN['user_vecs'])
    close(jnp.einsum('bd,bcd->bc', users, vectors[GOLDEN['candidates']]), GOLDEN['scores'])

  def test_a_round(self):
    task, params, _ = setup()
    constants = {'news': features()}
    adam = efficient_fedrec(task, constants, optax.adam(5e-5, eps=1e-8), union_size=11, chunk=4)
    descent = efficient_fedrec(task, constants, optax.sgd(1.0), union_size=11, chunk=4)
    counts, user = GOLDEN['counts'], GOLDEN['user_index']
    index = np.full((len(counts), 1, counts.max()), -1, np.int32)
    for client, count in enumerate(counts):
      index[client, 0, :count] = np.flatnonzero(user == client)
    cohort = federated.Cohort(jnp.arange(len(counts), dtype=jnp.int32), jnp.asarray(index),
                              jnp.asarray(counts, jnp.float32))
    table = jax.tree.map(jnp.asarray, pipeline.columns(task.dataset('train')))
    mean = aggregators.weighted_mean()

    payload, _ = adam.broadcast(adam.init(params), cohort, table, jax.random.key(0))
    np.testing.assert_array_equal(payload['ids'], GOLDEN['union_news'])
    close(payload['vectors'], GOLDEN['news_vecs'])

    def message(index):
      data = federated.ClientData(table, index, jnp.ones((), jnp.int32))
      return adam.client(payload, (), data, jax.random.key(1))

    messages, _, metrics = jax.jit(jax.vmap(message))(cohort.index)
    sums = messages['vectors'] * counts[:, None, None]
    close(sums, GOLDEN['client_news_vec_grad_sum'])
    close(sums.sum(0) / counts.sum(), GOLDEN['news_vec_grad'])
    close((metrics['loss'] * counts).sum() / counts.sum(), GOLDEN['loss'])

    def one_round(algorithm):
      state = federated.RoundState.start(algorithm, mean, params)
      return jax.jit(functools.partial(federated.federated_round, algorithm=algorithm,
                                       aggregator=mean, clients_per_vmap=2))(
                                           state, cohort, table, jax.random.key(0))[0].server.params

    gradient = jax.tree.map(jnp.subtract, params, one_round(descent))
    expected = arrays('user_grad/')
    found = news_weights.params_to_torch(gradient['user'], 'nrms_user')
    for name, value in expected.items():
      close(found[name], value, err_msg=name)
    check_news(gradient['news'], arrays('news_grad/'))
    stepped = one_round(adam)
    check_news(stepped['news'], arrays('news_param_after_adam/'))

  def test_zz_every_array_was_compared(self):
    left = [key for key in GOLDEN.unread() if not key.startswith('sec/')]
    self.assertEmpty(left)  # tests/federated compares the arrays of secure aggregation


if __name__ == '__main__':
  absltest.main()
