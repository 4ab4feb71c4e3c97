"""Encoders of nodes: what reaches a vector and what does not, caches, gradients, weight names."""
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.data import graph
from jaxlab.models.bert import Bert
from jaxlab.models.bert_config import BertConfig
from jaxlab.systems.graphformers import inference, weights
from jaxlab.systems.graphformers.model import AGGREGATORS, Cascade, GraphFormer, TextOnly
from tests import conftest

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
RNG = np.random.default_rng(0)
PLAIN = BertConfig(30, 8, 3, 2, 16, max_position_embeddings=8, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0, initializer_range=0.3, add_pooler=False)
BIASED = dataclasses.replace(PLAIN, rel_pos_bins=8, max_rel_pos=16, type_vocab_size=0)
SHALLOW = dataclasses.replace(PLAIN, num_hidden_layers=1)
MODELS = {'graphformer': GraphFormer(PLAIN), 'biased': GraphFormer(BIASED),
          'plm': TextOnly(SHALLOW), **{name: Cascade(SHALLOW, name) for name in AGGREGATORS}}
B, N, S = 3, 4, 6


def inputs():
  """Three nodes: with three neighbours, with two, and alone."""
  ids = RNG.integers(1, 30, (B, N, S)).astype(np.int32)
  mask = (np.arange(S) < RNG.integers(2, S + 1, (B, N, 1))).astype(np.int32)
  node_mask = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 0]])
  mask[2, 3] = 0  # padding; the other absent ones have words
  return ids, mask, node_mask


INPUTS = inputs()


@functools.cache
def params_of(name):
  """Random parameters, biases and norms too."""
  shapes = jax.eval_shape(MODELS[name].init, jax.random.key(1), *INPUTS)
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: (0.5 * rng.normal(size=x.shape)).astype(np.float32), shapes)


@functools.cache
def program(name):
  """(params, ids, mask, node_mask) -> ((a sum, vectors), gradient), compiled once a model."""
  def weighted(params, *arrays):
    vectors = MODELS[name].apply(params, *arrays)
    return (vectors * jnp.cos(jnp.arange(vectors.size)).reshape(vectors.shape)).sum(), vectors
  return jax.jit(jax.value_and_grad(weighted, has_aux=True))


def encode(name, *arrays):
  (_, vectors), _ = program(name)(params_of(name), *(arrays or INPUTS))
  return np.asarray(vectors)


class NodeEncoderTest(parameterized.TestCase):

  @parameterized.parameters(*MODELS)
  def test_absent_nodes_and_padding_have_no_influence(self, name):
    ids, mask, node_mask = INPUTS
    expected = encode(name)
    self.assertTrue(np.isfinite(expected).all())
    other = np.where(node_mask[..., None] == 0, (ids + 7) % 29 + 1, ids)
    hidden = np.where(mask == 0, (other + 3) % 29 + 1, other)
    swapped = np.where(node_mask[..., None] == 0, 1 - mask, mask)
    np.testing.assert_allclose(encode(name, hidden, mask, node_mask), expected, atol=1e-6)
    np.testing.assert_allclose(encode(name, ids, swapped, node_mask), expected, atol=1e-6)

  @parameterized.parameters(*MODELS)
  def test_neighbours_are_a_set_that_matters(self, name):
    ids, mask, node_mask = INPUTS
    expected = encode(name)
    order = np.array([0, 3, 1, 2])
    np.testing.assert_allclose(encode(name, ids[:, order], mask[:, order], node_mask[:, order]),
                               expected, atol=1e-5)
    changed = ids.copy()
    changed[:, 1:, :2] = (changed[:, 1:, :2] + 5) % 29 + 1
    moved = np.abs(encode(name, changed, mask, node_mask) - expected).max(1)
    self.assertLess(moved[2], 1e-6)  # it has no neighbour
    if name == 'plm':
      self.assertLess(moved.max(), 1e-6)
    else:
      self.assertGreater(moved[:2].min(), 1e-5)

  @parameterized.parameters('graphformer', 'max')
  def test_a_node_alone(self, name):
    ids, mask, node_mask = INPUTS
    alone = encode(name, ids[:, :1], mask[:, :1], node_mask[:, :1])
    np.testing.assert_allclose(alone[2], encode(name)[2], atol=1e-5)

  @parameterized.parameters('graphformer', 'biased')
  def test_calling_is_the_paper_s_joint_forward(self, name):
    states = jax.jit(functools.partial(MODELS[name].apply, method='hidden_states'))(
        params_of(name), *INPUTS)
    self.assertEqual(states.shape, (B, N, 1 + S, 8))
    np.testing.assert_allclose(states[:, 0, 1], encode(name), atol=1e-5)

  @parameterized.parameters(*MODELS)
  def test_gradients(self, name):
    _, gradient = program(name)(params_of(name), *INPUTS)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      where = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), where)
      if not ("'key'" in where and 'bias' in where):  # softmax ignores a bias of the keys
        self.assertTrue(np.any(leaf), where)

  def test_a_row_without_tokens_is_finite_in_the_gradient_too(self):
    ids, mask, node_mask = INPUTS
    chex.assert_tree_all_finite(
        program('graphformer')(params_of('graphformer'), ids, 0 * mask, 0 * node_mask))


class WeightsTest(parameterized.TestCase):

  @parameterized.parameters(*MODELS)
  def test_official_names_there_and_back(self, name):
    params = jax.tree.map(np.asarray, params_of(name)['params'])
    official = weights.params_to_torch(params, MODELS[name])
    chex.assert_trees_all_equal(weights.params_from_torch(official, MODELS[name]), params)
    if name == 'biased':
      self.assertEqual(official['bert.rel_pos_bias.weight'].shape, (2, 10))
      with self.assertRaisesRegex(ValueError, r'rel_pos_bias.weight has shape \(2, 8\)'):
        weights.params_from_torch(
            {**official, 'bert.rel_pos_bias.weight': np.zeros((2, 8))}, MODELS[name])

  def test_from_a_plain_encoder(self):
    shapes = jax.eval_shape(Bert(BIASED).init, jax.random.key(2), INPUTS[0][0])['params']
    encoder = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), shapes)
    params = weights.with_encoder(params_of('biased')['params'], encoder)
    last = encoder['rel_pos_bias']['kernel'][-1]
    np.testing.assert_array_equal(params['graph_bias'], np.stack([last, last]))
    chex.assert_trees_all_equal(params['bert'], encoder)
    chex.assert_trees_all_equal(params['graph_attention'],
                                params_of('biased')['params']['graph_attention'])


class EncodeGraphTest(parameterized.TestCase):

  @parameterized.parameters('graphformer', 'plm', 'max')
  def test_equals_the_joint_forward(self, name):
    nodes, most = B * 3, N - 1
    tokens = {'ids': RNG.integers(1, 30, (nodes, S)), 'mask': np.ones((nodes, S), np.int32)}
    tokens['mask'][4, 2:] = 0
    # 0 is a hub, 8 has no neighbour.
    edges = np.array([[0, i] for i in range(1, 8)] + [[1, 2], [3, 4]])
    table = graph.sample_neighbors(graph.adjacency(nodes, edges), most)
    found = inference.encode_graph(MODELS[name], params_of(name)['params'], tokens, table,
                                   batch_size=2)
    rows = np.concatenate([np.arange(nodes)[:, None], np.maximum(table, 0)], 1)
    node_mask = np.concatenate([np.ones((nodes, 1), int), table >= 0], 1)
    joint = tokens['ids'][rows].astype(np.int32), tokens['mask'][rows], node_mask
    expected = np.concatenate([encode(name, *(x[i:i + B] for x in joint))
                               for i in range(0, nodes, B)])
    self.assertEqual(found.shape, (nodes, 8))
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_a_table_without_columns(self):
    tokens = {'ids': RNG.integers(1, 30, (4, S)), 'mask': np.ones((4, S), np.int32)}
    found, expected = (inference.encode_graph(
        MODELS['graphformer'], params_of('graphformer')['params'], tokens,
        np.full((4, columns), -1), batch_size=2) for columns in (0, N - 1))
    np.testing.assert_allclose(found, expected, atol=1e-6)

  def test_a_neighbour_that_is_no_node(self):
    tokens = {'ids': np.ones((2, S), int), 'mask': np.ones((2, S), int)}
    with self.assertRaisesRegex(ValueError, r'^neighbors: expected -1..1, got -1..2$'):
      inference.encode_graph(MODELS['plm'], params_of('plm')['params'], tokens,
                             np.array([[-1], [2]]))


if __name__ == '__main__':
  absltest.main()
