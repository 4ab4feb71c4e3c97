"""KRED's layers: what the batch, padding and order must not change, and gradients."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.kred import model
from tests.systems.kred import toy_kred

HISTORY = np.array([[1, 2, 0], [4, 5, 6]])
CANDIDATES = np.array([[3, 7, 1, 9], [2, 8, 10, 11]])


def net_of(official):
  return toy_kred.make_model(variant=model.OFFICIAL if official else model.STRICT)


@functools.cache
def program(official):
  return jax.jit(net_of(official).apply)


@functools.cache
def params():
  """Parameters in which no table is tiny and no score is lost to the official ReLU."""
  made = jax.jit(toy_kred.make_model().init)(
      jax.random.key(0), toy_kred.make_tables(), HISTORY, CANDIDATES)['params']
  context = jax.tree.map(lambda x: 50 * x, made['news']['context'])
  score = {**made['user']['att2'], 'bias': made['user']['att2']['bias'] + 1}
  return {**made, 'news': {**made['news'], 'context': context},
          'user': {**made['user'], 'att2': score}}


def apply(tables, history=HISTORY, candidates=CANDIDATES, official=False):
  return jax.device_get(program(official)({'params': params()}, tables, history, candidates))


def total(parameters, tables, history, candidates):
  out = toy_kred.make_model().apply({'params': parameters}, tables, history, candidates)
  leaves = (jnp.sin(out[name]).sum() for name in ('users', 'user2item', 'category', 'popularity',
                                                  'local'))
  return sum(leaves)


gradient = jax.jit(jax.grad(total))


def close(a, b, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b)


class InvarianceTest(parameterized.TestCase):

  def test_a_user_does_not_depend_on_the_batch(self):
    other = np.array([HISTORY[0], [9, 10, 11]])
    tables = toy_kred.make_tables()
    for official, same in ((False, True), (True, False)):
      apart = np.abs(apply(tables, official=official)['users'][0] -
                     apply(tables, other, official=official)['users'][0]).max()
      self.assertEqual(apart < 1e-6, same, apart)

  def test_padding_changes_nothing(self):
    tables = toy_kred.make_tables()
    wide = {**tables, 'news': {name: np.pad(x, ((0, 0), (0, 2))) if x.dtype == np.int32 else x
                               for name, x in tables['news'].items()}}
    graph = {**tables['graph'], **{name: np.pad(tables['graph'][name], ((0, 0), (0, 2)))
                                   for name in ('tails', 'relations')}}
    longer = np.pad(HISTORY, ((0, 0), (0, 2)))
    wide['graph'] = graph
    out, plain = apply(wide, longer), apply(tables)
    for name in ('vectors', 'users', 'user2item', 'category'):
      close(out[name], plain[name])
    close(gradient(params(), wide, longer, CANDIDATES),
          gradient(params(), tables, HISTORY, CANDIDATES))

  def test_the_order_of_slots_and_neighbours_is_free(self):
    tables = toy_kred.make_tables()
    rng = np.random.default_rng(0)
    slots, around = rng.permutation(4), rng.permutation(3)
    mixed = {
        'news': {name: x[:, slots] if x.dtype == np.int32 else x
                 for name, x in tables['news'].items()},
        'graph': {**tables['graph'], **{name: tables['graph'][name][:, around]
                                        for name in ('tails', 'relations')}}}
    close(apply(mixed)['vectors'], apply(tables)['vectors'])

  def test_a_news_without_entities_is_its_document(self):
    tables = toy_kred.make_tables()
    other = toy_kred.make_tables(seed=5)
    other['news'] = {**tables['news']}  # the same news over another graph
    a, b = apply(tables), apply(other)
    self.assertTrue(np.isfinite(a['vectors']).all())
    np.testing.assert_array_equal(a['vectors'][0, 0], b['vectors'][0, 0])  # news 3 has none
    self.assertGreater(np.abs(a['vectors'][0, 1] - b['vectors'][0, 1]).max(), 1e-3)
    np.testing.assert_array_equal(a['weights']['entity'][0, 0], 0)

  def test_an_empty_history_is_the_zero_user(self):
    empty = np.zeros_like(HISTORY)
    out = apply(toy_kred.make_tables(), empty)
    np.testing.assert_array_equal(out['users'], 0)
    self.assertTrue(np.isfinite(out['user2item']).all())

  def test_an_isolated_entity_adds_nothing_of_its_neighbours(self):
    tables = toy_kred.make_tables()
    net = model.EntityLayer(5)
    made = net.init(jax.random.key(0), tables['graph'], jnp.array([2]))
    g, weights = net.apply(made, tables['graph'], jnp.array([2]))
    np.testing.assert_array_equal(weights, 0)
    own = np.concatenate([tables['graph']['entity'][2], np.zeros(6)])
    by_hand = own @ made['params']['agg']['kernel'] + made['params']['agg']['bias']
    np.testing.assert_allclose(g[0], np.maximum(by_hand, 0), atol=1e-6)

  def test_item2item_is_symmetric_and_bounded(self):
    a, b = np.random.default_rng(0).normal(size=(2, 50, 4)).astype(np.float32)
    np.testing.assert_array_equal(model.cosine(a, b), model.cosine(b, a))
    self.assertLessEqual(np.abs(model.cosine(a, np.concatenate([3 * a[:25], -a[25:]]))).max(), 1)
    self.assertEqual(model.cosine(a[0], 0 * a[0]), 0)
    self.assertTrue(np.isfinite(jax.grad(model.cosine)(0 * a[0], b[0])).all())


class GradientTest(absltest.TestCase):

  def test_every_parameter_has_one(self):
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        gradient(params(), toy_kred.make_tables(), HISTORY, CANDIDATES)):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      self.assertTrue(np.isfinite(leaf).all(), name)
      # A softmax does not feel a shift of all its scores.
      self.assertEqual(bool(np.abs(leaf).max() > 1e-7), not name.endswith('att2/bias'), name)


class LookupTest(parameterized.TestCase):

  @parameterized.parameters(1, 100)
  def test_all_or_some_news_are_encoded_alike(self, copies):
    tables = toy_kred.make_tables()
    ids = np.tile(CANDIDATES, (copies, 1))
    net = toy_kred.make_model()
    found = jax.jit(lambda p, t, ids: model.vectors_of(net, {'params': p, 'constants': t}, ids))(
        params(), tables, ids)
    close(found[:2], apply(tables)['vectors'])

  def test_in_chunks(self):
    encode = lambda ids: {'x': ids[:, None] * jnp.ones(3)}
    chunk, model._CHUNK = model._CHUNK, 4
    try:
      found = model._all_of(encode, 10)['x']
    finally:
      model._CHUNK = chunk
    np.testing.assert_array_equal(found, np.arange(10)[:, None] * np.ones(3))

  def test_parts_are_a_dense_layer_over_their_concatenation(self):
    rng = np.random.default_rng(0)
    table, x, ids = rng.normal(size=(3, 2)), rng.normal(size=(5, 1, 4)), rng.integers(0, 3, (5, 6))
    layer = model.PartsDense(7)
    made = layer.init(jax.random.key(0), (table, ids), x)
    whole = np.concatenate([table[ids], np.broadcast_to(x, (5, 6, 4))], -1)
    expected = whole @ made['params']['kernel'] + made['params']['bias']
    for looked in (ids, ids[:, :1]):  # the table first, or the rows first
      out = layer.apply(made, (table.astype(np.float32), looked), x.astype(np.float32))
      np.testing.assert_allclose(out, expected[:, :looked.shape[1]], rtol=1e-5, atol=1e-6)
    few = layer.apply(made, (table.astype(np.float32), ids[:1, :2]), x[:1].astype(np.float32))
    np.testing.assert_allclose(few, expected[:1, :2], rtol=1e-5, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
