"""xDeepFM against the golden arrays: CIN, full model and step, DeepCTR's weights, baselines."""
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import documents
from jaxlab.nn.embedding import pool_fields
from jaxlab.systems.xdeepfm import data, formats, model, task, vocabulary, weights
from jaxlab.systems.xdeepfm.cin import CIN
from jaxlab.train import task_gradient
from tests.golden_reader import Golden

GOLDEN = Golden('xdeepfm')
VALUES = {'rtol': 1e-4, 'atol': 1e-5}
GRADIENTS = {'rtol': 1e-3, 'atol': 1e-5}
WIDTHS = (6, 4, 3)


def f32(name):
  return GOLDEN[name].astype(np.float32)


def filters(kind, bias=False):
  params = {f'W{k}': f32(f'cin_{kind}_W{k}') for k in (1, 2, 3)}
  return {**params, **({f'b{k}': f32(f'cin_b{k}') for k in (1, 2, 3)} if bias else {})}


class CINTest(parameterized.TestCase):

  @parameterized.product(
      case=[('split_identity', {}), ('split_relu_bias', {'activation': 'relu', 'use_bias': True}),
            ('split_relu_nobias', {'activation': 'relu'}),
            ('direct_identity', {'split_half': False}),
            ('direct_identity_bias', {'split_half': False, 'use_bias': True}),
            ('split_identity_masked', {'mask_self': True})],
      formulation=['outer', 'scan'])
  def test_pooled(self, case, formulation):
    name, options = case
    params = filters(name.split('_')[0], options.get('use_bias', False))
    cin = CIN(WIDTHS, formulation=formulation, **options)
    out = cin.apply({'params': params}, f32('cin_x0'))
    np.testing.assert_allclose(out, GOLDEN[f'cin_{name}_pooled'], **VALUES)

  def test_low_rank(self):
    params = {f'{x}{k}': f32(f'cin_lowrank_{x}{k}') for x in 'UV' for k in (1, 2, 3)}
    out = CIN(WIDTHS, rank=2).apply({'params': params}, f32('cin_x0'))
    np.testing.assert_allclose(out, GOLDEN['cin_lowrank_split_identity_pooled'], **VALUES)

  def test_logit(self):
    params = {**filters('direct', True), 'out': {
        'kernel': f32('cin_direct_wout')[:, None], 'bias': f32('cin_direct_bout')}}
    part = model.CINLogit(WIDTHS, split_half=False, use_bias=True)
    x = model.Features(None, None, None, f32('cin_x0'), jnp.zeros((4, 0)))
    out = part.apply({'params': params}, x, False)
    np.testing.assert_allclose(out, GOLDEN['cin_direct_logit'], **VALUES)

  @parameterized.product(formulation=['outer', 'scan'], remat=[True, False])
  def test_gradients(self, formulation, remat):
    cin = CIN(WIDTHS, formulation=formulation, remat=remat)
    total = lambda p, x: (cin.apply({'params': p}, x) * f32('cin_grad_cotangent')).sum()
    by_filters, by_x = jax.grad(total, (0, 1))(filters('split'), f32('cin_x0'))
    np.testing.assert_allclose(by_x, GOLDEN['cin_grad_x0'], **GRADIENTS)
    for k in (1, 2, 3):
      np.testing.assert_allclose(by_filters[f'W{k}'], GOLDEN[f'cin_grad_W{k}'], **GRADIENTS)


PATHS = {'embedding': ('embedding', 'table', 'embedding'),
         'linear_w': ('linear', 'table', 'weight'),
         'linear_b': ('linear', 'bias'), **{f'cin_W{k}': ('cin', f'W{k}') for k in (1, 2, 3)},
         'cin_wout': ('cin', 'out', 'kernel'), 'cin_bout': ('cin', 'out', 'bias'),
         **{f'dnn_{o}{k}': ('dnn', f'Dense_{k - 1}', n)
            for k in (1, 2) for o, n in (('W', 'kernel'), ('b', 'bias'))},
         'dnn_wout': ('dnn', 'out', 'kernel'), 'dnn_bout': ('dnn', 'out', 'bias')}


def at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


class FullModelTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.layout = data.Layout(24, 4, 7, False)
    self.model = model.make_model(
        {'name': 'xdeepfm', 'dim': 5, 'cin': {'layer_sizes': WIDTHS}, 'dnn': {'features': (7, 6)}},
        24, 4)
    self.params = {}
    for name, (*parents, last) in PATHS.items():
      node, array = self.params, f32(f'full_{name}')
      for key in parents:
        node = node.setdefault(key, {})
      node[last] = (array.reshape(()) if name == 'linear_b' else
                    array[:, None] if name.endswith('wout') else array)

  def rows(self):
    text = GOLDEN['ffm_text_utf8'].tobytes().decode()
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
      file.write(text)
      file.flush()
      parsed = [formats.libffm_row(where, line) for where, line in documents.read_lines(file.name)]
    self.assertEqual([formats.format_libffm(formats.libffm_row('', formats.format_libffm(row)))
                      for row in parsed], [formats.format_libffm(row) for row in parsed])
    columns = data.pad_pairs(
        [{**row, 'group': data.group_number(row['group'])} for row in parsed], 7)
    return {**data.encode_pairs(columns, self.layout), 'weight': np.ones(4, np.float32)}, columns

  def test_rows(self):
    _, columns = self.rows()
    np.testing.assert_array_equal(columns['field'], GOLDEN['ffm_field_id'])
    real = GOLDEN['ffm_field_id'] >= 0
    np.testing.assert_array_equal(columns['feature'][real], GOLDEN['ffm_feature_id'][real])
    np.testing.assert_allclose(columns['value'], GOLDEN['ffm_value'], rtol=1e-6)
    np.testing.assert_array_equal(columns['label'], GOLDEN['ffm_label'])

  def test_logits_loss_gradients_and_a_step(self):
    batch, _ = self.rows()
    arguments = {name: batch[name] for name in ('ids', 'values', 'field')}
    vectors = pool_fields(f32('full_embedding')[batch['ids']], batch['values'], batch['field'], 4)
    np.testing.assert_allclose(vectors, GOLDEN['full_field_embeddings'], **VALUES)
    pooled = CIN(WIDTHS).apply(
        {'params': {k: v for k, v in self.params['cin'].items() if k != 'out'}}, vectors)
    np.testing.assert_allclose(pooled, GOLDEN['full_cin_pooled'], **VALUES)
    logits = self.model.apply({'params': self.params}, method='logits', **arguments)
    for part in ('linear', 'cin', 'dnn'):
      np.testing.assert_allclose(logits[part], GOLDEN[f'full_{part}_logit'], **VALUES)
    every, filters_only = re.compile('.*'), re.compile('cin/W.*')
    problem = task.from_model(self.model, self.layout, {}, l2=((every, 1e-4),))
    outputs = problem.predict({'params': self.params}, batch, None)
    np.testing.assert_allclose(outputs['logit'], GOLDEN['full_logit'], **VALUES)
    np.testing.assert_allclose(outputs['probability'], GOLDEN['full_prob'], **VALUES)
    penalty = lambda l1: task.whole_penalty(self.params, ((every, 1e-4),), l1)
    np.testing.assert_allclose(penalty(()), GOLDEN['full_reg_l2'], rtol=1e-5)
    np.testing.assert_allclose(penalty(((filters_only, 1e-4),)), GOLDEN['full_reg_official'],
                               rtol=1e-5)
    gradient, sums = task_gradient(problem)(self.params, batch, jax.random.key(0))
    np.testing.assert_allclose(sums['logloss'][0] / 4, GOLDEN['full_logloss'], rtol=1e-5)
    np.testing.assert_allclose(sums['loss'][0] / 4, GOLDEN['full_logloss'] + GOLDEN['full_reg_l2'],
                               rtol=1e-5)
    optimizer = optax.adam(1e-3)
    updates, _ = optimizer.update(gradient, optimizer.init(self.params), self.params)
    after = optax.apply_updates(self.params, updates)
    for name, path in PATHS.items():
      shape = GOLDEN[f'full_grad_{name}'].shape
      np.testing.assert_allclose(at(gradient, path).reshape(shape), GOLDEN[f'full_grad_{name}'],
                                 err_msg=name, **GRADIENTS)
      np.testing.assert_allclose(at(after, path).reshape(shape), GOLDEN[f'full_adam1_{name}'],
                                 err_msg=name, **VALUES)


class DeepCTRTest(absltest.TestCase):
  FIELDS = [f's{i}' for i in range(4)]

  def state_dict(self):
    state = {'out.bias': f32('deepctr_out_bias'),
             'linear_model.weight': f32('deepctr_linear_dense_w')[:, None],
             'cin_linear.weight': f32('deepctr_cin_wout')[None],
             'dnn_linear.weight': f32('deepctr_dnn_wout')[None]}
    for name in self.FIELDS:
      state[f'embedding_dict.{name}.weight'] = f32(f'deepctr_embedding_{name}')
      state[f'linear_model.embedding_dict.{name}.weight'] = f32(f'deepctr_linear_{name}')[:, None]
    for k in (1, 2):
      state[f'cin.conv1ds.{k - 1}.weight'] = f32(f'deepctr_cin_W{k}').reshape(
          (6, 4)[k - 1], -1, 1)
      state[f'cin.conv1ds.{k - 1}.bias'] = f32(f'deepctr_cin_b{k}')
      state[f'dnn.linears.{k - 1}.weight'] = f32(f'deepctr_dnn_W{k}').T
      state[f'dnn.linears.{k - 1}.bias'] = f32(f'deepctr_dnn_b{k}')
    return state

  def test_probabilities_round_trip_and_errors(self):
    state = self.state_dict()
    sizes = [len(state[f'embedding_dict.{name}.weight']) for name in self.FIELDS]
    net = model.make_model(
        {'name': 'xdeepfm', 'dim': 5, 'dnn': {'features': (6, 5)},
         'cin': {'layer_sizes': (6, 4), 'activation': 'relu', 'use_bias': True}}, sum(sizes), 4)
    ids = (GOLDEN['deepctr_sparse_ids'] + np.cumsum([0, *sizes[:-1]])).astype(np.int32)
    numeric = f32('deepctr_dense')
    template = jax.eval_shape(
        lambda: net.init(jax.random.key(0), ids, numeric=numeric))['params']
    params = weights.params_from_torch(state, template, self.FIELDS)
    probability = jax.nn.sigmoid(net.apply({'params': params}, ids, numeric=numeric))
    np.testing.assert_allclose(probability, GOLDEN['deepctr_prob'], atol=1e-5)
    back = weights.params_to_torch(params, self.FIELDS, sizes)
    self.assertEqual(back.keys(), state.keys())
    for name, array in state.items():
      np.testing.assert_array_equal(back[name], array, err_msg=name)
    wrong = {**state, 'extra': np.zeros(1)}
    del wrong['out.bias']
    with self.assertRaisesRegex(ConfigError, 'out.bias is missing; extra is left over'):
      weights.params_from_torch(wrong, template, self.FIELDS)
    with self.assertRaisesRegex(ConfigError, r'dnn/Dense_0/bias has shape \(7,\), expected \(6,\)'):
      weights.params_from_torch({**state, 'dnn.linears.0.bias': np.zeros(7)}, template, self.FIELDS)


class BaselineTest(absltest.TestCase):

  def test_fm_cross_network_and_inner_products(self):
    vectors = f32('full_field_embeddings')
    np.testing.assert_allclose(model.fm_term(vectors), GOLDEN['base_fm_logit'], **VALUES)
    np.testing.assert_allclose(model.inner_products(vectors), GOLDEN['base_ipnn_pairs'], **VALUES)
    params = {f'w{k}': f32('base_crossnet_w')[k][:, None] for k in (0, 1)}
    params.update({f'b{k}': f32('base_crossnet_b')[k] for k in (0, 1)})
    out = model.CrossNet(2).apply({'params': params}, vectors.reshape(4, -1))
    np.testing.assert_allclose(out, GOLDEN['base_crossnet_out'], **VALUES)

  def test_integer_buckets(self):
    np.testing.assert_array_equal(vocabulary.integer_bucket(GOLDEN['criteo_int_in']),
                                  GOLDEN['criteo_int_bucket'])


class ZEveryArrayTest(absltest.TestCase):

  def test_zz_every_array_was_compared(self):
    self.assertEmpty(GOLDEN.unread())


if __name__ == '__main__':
  absltest.main()
