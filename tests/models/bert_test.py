"""BERT and RoBERTa against transformers' numbers; invariances, hooks, gradients, layouts, weights.
"""
import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.models import bert, bert_weights
from jaxlab.models.bert_config import PRESETS, BertConfig, checkpoint_config, from_checkpoint_config
from jaxlab.nn.relative_position import relative_position_bucket
from tests.golden_reader import Golden

TOLERANCE = 2e-5
SMALL = BertConfig(30, 16, 2, 4, 24, max_position_embeddings=12)
IDS = np.random.default_rng(0).integers(5, 30, (3, 7)).astype(np.int32)
MASK = np.arange(7) < np.array([[7], [4], [5]])


@functools.cache
def golden():
  return Golden('text_encoders')


@functools.cache
def names():
  """Of all arrays in the golden file."""
  return Golden('text_encoders').unread()


def state_dict(prefix):
  """The golden weights of a prefix, without it."""
  found = [name for name in names() if name.startswith(prefix)]
  return {name.removeprefix(prefix): golden()[name] for name in found}


def bert_config(**changes):
  vocab, width, layers, heads, inner, positions, types = map(int,
                                                             golden()['bert_cfg_V_D_L_H_I_P_T'])
  return BertConfig(vocab, width, layers, heads, inner, positions, types,
                    layer_norm_eps=float(golden()['bert_cfg_eps']), **changes)


def roberta_config():
  vocab, width, layers, heads, inner, positions = map(int, golden()['roberta_cfg_V_D_L_H_I_P'])
  return BertConfig(vocab, width, layers, heads, inner, positions, 1, model_type='roberta',
                    pad_token_id=1, layer_norm_eps=float(golden()['roberta_cfg_eps']))


def bert_inputs():
  return [golden()[f'bert_{name}'] for name in ('input_ids', 'attention_mask', 'token_type_ids')]


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, *args, **kwargs):
  return model.apply({'params': params}, *args, **kwargs)


def bert_error(config):
  """Largest difference of the hidden states from the reference."""
  model = bert.Bert(config)
  out = run(model, bert_weights.params_from_torch(state_dict('bert.'), model), *bert_inputs())
  return np.abs(np.stack(out.hidden_states) - golden()['bert_out_hidden_states']).max()


@functools.cache
def small(**changes):
  """(model, params) without dropout."""
  config = dataclasses.replace(SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                               **changes)
  model = bert.Bert(config)
  params = jax.jit(model.init)(jax.random.key(0), IDS)['params']
  # Biases and scales that are not at their neutral start.
  noise = lambda key, x: x + 0.1 * jax.random.normal(key, x.shape)
  keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
  return model, jax.tree.map(noise, jax.tree.unflatten(jax.tree.structure(params), list(keys)),
                             params)


class GoldenTest(parameterized.TestCase):

  def test_bert(self):
    model = bert.Bert(bert_config())
    params = bert_weights.params_from_torch(state_dict('bert.'), model)
    out, sown = model.apply({'params': params}, *bert_inputs(), mutable=['intermediates'])
    np.testing.assert_allclose(np.stack(out.hidden_states), golden()['bert_out_hidden_states'],
                               atol=TOLERANCE)
    np.testing.assert_allclose(out.pooled, golden()['bert_out_pooler'], atol=TOLERANCE)
    weights = sown['intermediates']['layers_0']['attention']['weights'][0]
    np.testing.assert_allclose(weights, golden()['bert_out_attn_layer0'], atol=TOLERANCE)

  def test_vectors_in_place_of_words(self):
    model = bert.Bert(bert_config())
    params = bert_weights.params_from_torch(state_dict('bert.'), model)
    out = run(model, params, None, golden()['bert_attention_mask'],
              position_ids=golden()['bert_position_ids'],
              inputs_embeds=golden()['bert_inputs_embeds'].astype(np.float32))
    np.testing.assert_allclose(out.last, golden()['bert_out_embeds_last'], atol=TOLERANCE)

  def test_masked_language_model(self):
    model = bert.MaskedLM(bert_config(add_pooler=False))
    params = bert_weights.params_from_torch({**state_dict('bert.'), **state_dict('mlm.')}, model)
    logits, _ = run(model, params, *bert_inputs())
    np.testing.assert_allclose(logits, golden()['bert_out_mlm_logits'], atol=1e-4)

  def test_roberta(self):
    model = bert.Bert(roberta_config())
    params = bert_weights.params_from_torch(state_dict('roberta.'), model)
    ids, mask = golden()['roberta_input_ids'], golden()['roberta_attention_mask']
    np.testing.assert_array_equal(bert.roberta_positions(ids, 1), golden()['roberta_position_ids'])
    out = run(model, params, ids, mask)
    np.testing.assert_allclose(np.stack(out.hidden_states), golden()['roberta_out_hidden_states'],
                               atol=TOLERANCE)
    np.testing.assert_allclose(out.pooled, golden()['roberta_out_pooler'], atol=TOLERANCE)

  @parameterized.parameters((32, 128), (8, 20))
  def test_buckets(self, buckets, distance):
    key = f'relpos_{buckets}_{distance}'
    found = jax.jit(relative_position_bucket, static_argnums=(1, 2))(
        golden()[f'{key}_delta'], buckets, distance)
    np.testing.assert_array_equal(found, golden()[f'{key}_bucket'])

  def test_odd_halves_of_buckets(self):
    # Of five buckets a side two are exact, the others begin at 2, 2 * 50^(1/3), 2 * 50^(2/3).
    delta = np.array([-99, -28, -27, -8, -7, -1, 0, 1, 2, 7, 8, 27, 28])
    np.testing.assert_array_equal(relative_position_bucket(delta, 10, 100),
                                  [4, 4, 3, 3, 2, 1, 0, 6, 7, 7, 8, 8, 9])
    self.assertEqual(dataclasses.replace(SMALL, rel_pos_bins=10).rel_pos_bins, 10)

  @parameterized.parameters(jax.jit, lambda f, **_: f)
  def test_distances_that_are_edges_of_buckets(self, compiled):
    # log(20 / 2) / log(200 / 2) is 1 / 2: the second of two buckets begins at 20.
    delta = np.array([-21, -20, -19, 19, 20, 21])
    found = compiled(relative_position_bucket, static_argnums=(1, 2))(delta, 8, 200)
    np.testing.assert_array_equal(found, [3, 3, 2, 6, 7, 7])

  @parameterized.parameters({'hidden_act': 'gelu_new'}, {'layer_norm_eps': 1e-6})
  def test_the_wrong_details_break_parity(self, **changes):
    self.assertLess(bert_error(bert_config()), TOLERANCE)
    self.assertGreater(bert_error(dataclasses.replace(bert_config(), **changes)), TOLERANCE)

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    unread = [name for name in golden().unread() if not name.startswith('minilm_')]
    assert not unread, unread  # those of MiniLM are for sentence_encoder_test


class InvarianceTest(chex.TestCase):

  @parameterized.parameters('bert', 'roberta')
  def test_padding_and_order_of_rows_change_nothing(self, family):
    pad = {'bert': 0, 'roberta': 1}[family]
    model, params = small(model_type=family, pad_token_id=pad, max_position_embeddings=14)
    ids = np.where(MASK, IDS, pad)
    out = run(model, params, ids, MASK)
    longer = np.pad(ids, ((0, 0), (0, 3)), constant_values=pad)
    padded = run(model, params, longer, np.pad(MASK, ((0, 0), (0, 3))))
    for a, b in zip(out.hidden_states, padded.hidden_states):
      np.testing.assert_allclose(np.asarray(a)[MASK], np.asarray(b)[:, :7][MASK], atol=1e-6)
    np.testing.assert_allclose(out.pooled, padded.pooled, atol=1e-6)
    order = np.array([2, 0, 1])
    permuted = run(model, params, ids[order], MASK[order])
    np.testing.assert_allclose(out.last[order], permuted.last, atol=1e-6)

  def test_hidden_tokens_have_no_influence(self):
    model, params = small()
    out = run(model, params, IDS, MASK)
    other = run(model, params, np.where(MASK, IDS, 29), MASK)
    np.testing.assert_array_equal(np.asarray(out.last)[MASK], np.asarray(other.last)[MASK])

  @parameterized.parameters('float32', 'bfloat16', 'float16')
  def test_a_row_that_sees_nothing_is_finite(self, dtype):
    model, params = small(dtype=dtype)
    mask = np.array([[1] * 7, [0] * 7, [1] * 7])

    def loss(params):
      out = model.apply({'params': params}, IDS, mask)
      return jnp.sum(out.last.astype(jnp.float32)[::2] ** 3), out.last

    gradient, last = jax.jit(jax.grad(loss, has_aux=True))(params)
    chex.assert_tree_all_finite((gradient, last))
    out = run(model, params, IDS[::2], mask[::2])
    np.testing.assert_allclose(last[::2], out.last, atol=1e-6 if dtype == 'float32' else 0.05)

  def test_every_gradient_is_finite_and_not_zero(self):
    model, params = small(rel_pos_bins=8, max_rel_pos=20)
    types = np.arange(7) // 4 * np.ones((3, 1), int)

    def loss(params):
      out = model.apply({'params': params}, IDS, MASK, types)
      return jnp.sum(out.last[MASK] ** 3) + jnp.sum(out.pooled ** 2)

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
      leaf, name = np.asarray(leaf), jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      if 'key' in name and 'bias' in name:  # shifts all scores of a query alike: no gradient
        self.assertLess(np.abs(leaf).max(), 1e-4, name)
      else:
        self.assertGreater(np.abs(leaf).max(), 1e-4, name)

  def test_the_padding_row_starts_at_zero(self):
    params = jax.jit(bert.Bert(SMALL).init)(jax.random.key(0), IDS)['params']
    word = params['embeddings']['word']['embedding']
    self.assertEqual(float(jnp.abs(word[0]).max()), 0)
    self.assertAlmostEqual(float(word[1:].std()), 0.02, delta=0.003)
    roberta = dataclasses.replace(SMALL, model_type='roberta', pad_token_id=1)
    params = jax.jit(bert.Bert(roberta).init)(jax.random.key(0), IDS)['params']
    for name in ('word', 'position'):
      row = np.abs(params['embeddings'][name]['embedding']).max(-1)
      self.assertEqual(row[1], 0, name)
      self.assertGreater(row[0], 0, name)

  @parameterized.parameters(('bert', 0), ('roberta', 1))
  def test_looking_up_the_padding_gives_it_no_gradient(self, family, pad):
    model = bert.MaskedLM(dataclasses.replace(SMALL, model_type=family, pad_token_id=pad,
                                              num_hidden_layers=1))
    ids = np.array([[5, 6, 7, pad, pad], [8, 9, pad, pad, pad]])
    params = jax.jit(model.init)(jax.random.key(0), ids)['params']

    def gradient(pick):
      loss = lambda params: jnp.sum((1 + pick(*model.apply({'params': params}, ids))) ** 3)
      tables = jax.grad(loss)(params)['bert']['embeddings']
      return {name: np.abs(table['embedding']).max(-1) for name, table in tables.items()
              if name != 'norm'}

    looked_up = gradient(lambda logits, output: output.last)  # of all tokens, the padding's too
    self.assertEqual(looked_up['word'][pad], 0)
    self.assertGreater(looked_up['word'][[5, 6, 7, 8, 9]].min(), 0)
    self.assertEqual(looked_up['position'][pad] > 0, family == 'bert')
    self.assertGreater(gradient(lambda logits, output: logits)['word'][pad], 0)  # tied

  def test_bfloat16_computes_and_float32_is_stored(self):
    _, params = small()
    self.assertTrue(all(x.dtype == jnp.float32 for x in jax.tree.leaves(params)))
    exact = run(small()[0], params, IDS, MASK).last
    rough = run(small(dtype='bfloat16')[0], params, IDS, MASK).last
    self.assertEqual(rough.dtype, jnp.bfloat16)
    np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.1)

  def test_dropout_in_training_only(self):
    model, params = bert.Bert(SMALL), small()[1]
    noisy = lambda seed: run_noisy(model, params, jax.random.key(seed))
    np.testing.assert_array_equal(noisy(0), noisy(0))
    self.assertGreater(np.abs(noisy(0) - noisy(1)).max(), 0.01)
    self.assertGreater(np.abs(noisy(0) - run(model, params, IDS, MASK).last).max(), 0.01)


@functools.partial(jax.jit, static_argnums=0)
def run_noisy(model, params, key):
  return model.apply({'params': params}, IDS, MASK, deterministic=False,
                     rngs={'dropout': key}).last


class HooksTest(parameterized.TestCase):

  def test_a_hidden_prefix_changes_nothing_and_a_visible_one_does(self):
    model, params = small()
    query = run(model, params, IDS[:, :4])
    plain = run(model, params, IDS, MASK)
    hidden = query.keys_values._replace(mask=np.zeros((3, 4)))
    out = run(model, params, IDS, MASK, kv_prefix=hidden)
    np.testing.assert_allclose(out.last, plain.last, atol=1e-6)
    out = run(model, params, IDS, MASK, kv_prefix=query.keys_values)
    self.assertGreater(np.abs(out.last - plain.last).max(), 0.01)

  def test_a_prefix_of_itself_is_as_if_it_were_not_there(self):
    # Each key twice: the softmax halves every weight, and the sum over both is the same.
    model, params = small()
    plain = run(model, params, IDS, MASK)
    out = run(model, params, IDS, MASK, kv_prefix=plain.keys_values)
    np.testing.assert_allclose(np.asarray(out.last)[MASK], np.asarray(plain.last)[MASK], atol=1e-5)

  def test_relative_bias_comes_from_the_table_or_the_caller(self):
    model, params = small(rel_pos_bins=8, max_rel_pos=20)
    out = run(model, params, IDS, MASK)
    table = params['rel_pos_bias']['kernel']
    delta = np.arange(7) - np.arange(7)[:, None]
    bias = table[relative_position_bucket(delta, 8, 20)].transpose(2, 0, 1)[None]
    bare = {name: tree for name, tree in params.items() if name != 'rel_pos_bias'}
    given = run(small()[0], bare, IDS, MASK, rel_bias=bias)
    np.testing.assert_allclose(out.last, given.last, atol=1e-6)
    self.assertGreater(np.abs(out.last - run(small()[0], bare, IDS, MASK).last).max(), 1e-3)

  def test_between_the_layers(self):
    class Doubled(nn.Module):
      """Puts twice the stream into the second layer."""
      config: BertConfig

      @nn.compact
      def __call__(self, ids, mask):
        encoder = bert.Bert(self.config, name='bert')
        x = encoder.embed(ids)
        for i in range(2):
          x, _ = encoder.layer(i, 2 * x if i else x, encoder.bias(mask))
        return x

    model, params = small()
    bare = {'bert': params}
    out = run(Doubled(model.config), bare, IDS, MASK)
    first = run(model, params, IDS, MASK).hidden_states[1]
    layer = lambda p: model.apply({'params': p}, 1, 2 * first, bert.mask_bias(MASK), method='layer')
    np.testing.assert_allclose(out, jax.jit(layer)(params)[0], atol=1e-6)

  def test_vectors_without_a_word_table(self):
    config = dataclasses.replace(SMALL, vocab_size=0)
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    variables = jax.jit(lambda: bert.Bert(config).init(jax.random.key(0), None, inputs_embeds=x))()
    self.assertNotIn('word', variables['params']['embeddings'])
    out = bert.Bert(config).apply(variables, None, inputs_embeds=x)
    chex.assert_shape(out.last, (2, 5, 16))

  @parameterized.parameters(*bert.POOLERS)
  def test_poolers(self, how):
    model, params = small()
    out = run(model, params, IDS, MASK)
    rows = []
    for b, n in enumerate((7, 4, 5)):
      first, last = (np.asarray(h[b, :n], np.float64) for h in (out.hidden_states[0], out.last))
      rows.append({'cls': last[0], 'pooler': np.asarray(out.pooled)[b], 'mean': last.mean(0),
                   'first_last_avg': ((first + last) / 2).mean(0), 'max': last.max(0)}[how])
    np.testing.assert_allclose(bert.pool(out, MASK, how), rows, atol=1e-5)

  def test_unknown_pooler(self):
    with self.assertRaisesRegex(ValueError, "pooler: expected one of cls, .*, got 'min'"):
      bert.pool(None, MASK, 'min')
    x = jnp.ones((2, 3, 4))
    with self.assertRaisesRegex(ValueError, "pooler: expected another one than 'pooler'"):
      bert.pool(bert.Output((x, x), None, None), np.ones((2, 3)), 'pooler')

  @parameterized.parameters('mean', 'first_last_avg', 'max')
  def test_a_row_without_tokens_is_zero(self, how):
    x = -jnp.ones((2, 3, 4))
    found = bert.pool(bert.Output((x, x), None, None), np.array([[0, 0, 0], [1, 1, 0]]), how)
    np.testing.assert_array_equal(found, [[0] * 4, [-1] * 4])

  @parameterized.parameters(('bert', 12), ('roberta', 11))
  def test_more_tokens_than_positions(self, family, most):
    model = bert.Bert(dataclasses.replace(SMALL, model_type=family))
    init = lambda length, **options: jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones((1, length), jnp.int32), **options))
    init(most)
    with self.assertRaisesRegex(ValueError, f'ids: expected at most {most} tokens.*got {most + 1}'):
      init(most + 1)
    init(most + 1, position_ids=jnp.zeros((1, most + 1), jnp.int32))  # the caller knows


class LayoutTest(parameterized.TestCase):

  def test_scanned_and_unrolled_layers_agree_and_convert_losslessly(self):
    model, params = small()
    scanned, stacked = bert_weights.with_scan(model, params, True)
    self.assertEqual(stacked['layers']['output']['bias'].shape, (2, 16))
    out = run(scanned, stacked, IDS, MASK)
    np.testing.assert_allclose(out.last, run(model, params, IDS, MASK).last, atol=1e-6)
    self.assertLen(out.hidden_states, 2)
    chex.assert_trees_all_equal(bert_weights.with_scan(scanned, stacked, False)[1], params)
    chex.assert_trees_all_equal_shapes(
        stacked, jax.eval_shape(scanned.init, jax.random.key(0), IDS)['params'])
    with self.assertRaisesRegex(ValueError, 'kv_prefix: expected a config with scan_layers=False'):
      query = run(model, params, IDS)
      scanned.apply({'params': stacked}, IDS, kv_prefix=query.keys_values)

  @parameterized.parameters(False, True)
  def test_remat_changes_no_gradient(self, scan):
    model, params = small() if not scan else bert_weights.with_scan(*small(), True)
    gradient = lambda model: jax.jit(jax.grad(lambda p: jnp.sum(
        model.apply({'params': p}, IDS, MASK, deterministic=False,
                    rngs={'dropout': jax.random.key(0)}).last ** 3)))(params)
    again = model.clone(config=dataclasses.replace(model.config, remat=True))
    chex.assert_trees_all_close(gradient(model), gradient(again), rtol=1e-4, atol=1e-5)

  def test_twelve_layers_are_scanned_by_default(self):
    self.assertTrue(PRESETS['bert-base-uncased'].scan_layers)
    self.assertFalse(PRESETS['minilm-l6-h384'].scan_layers)


class WeightsTest(parameterized.TestCase):

  @parameterized.parameters(bert.Bert, bert.MaskedLM, functools.partial(bert.SequenceClassifier,
                                                                        num_classes=3))
  def test_there_and_back_is_bitwise(self, make):
    for config in (SMALL, dataclasses.replace(SMALL, scan_layers=True),
                   dataclasses.replace(SMALL, model_type='roberta', add_pooler=False)):
      model = make(config)
      params = jax.jit(model.init)(jax.random.key(0), IDS)['params']
      tensors = bert_weights.params_to_torch(params, model)
      chex.assert_trees_all_equal(bert_weights.params_from_torch(tensors, model), params)

  def test_old_names_and_prefixes(self):
    model, params = small()
    tensors = bert_weights.params_to_torch(params, model)
    old = {f'bert.{name}'.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
        'LayerNorm.bias', 'LayerNorm.beta'): array for name, array in tensors.items()}
    old |= {'bert.embeddings.position_ids': np.arange(12), 'cls.predictions.bias': np.zeros(30),
            'cls.seq_relationship.weight': np.zeros((2, 16))}
    chex.assert_trees_all_equal(bert_weights.params_from_torch(old, model), params)
    self.assertIn('bert.embeddings.LayerNorm.gamma', old)

  def test_mistakes_are_listed_together(self):
    model, params = small()
    tensors = bert_weights.params_to_torch(params, model)
    del tensors['pooler.dense.bias']
    tensors['encoder.layer.2.output.dense.bias'] = np.zeros(16)
    tensors['encoder.layer.0.intermediate.dense.weight'] = np.zeros((16, 24))
    with self.assertRaises(ValueError) as raised:
      bert_weights.params_from_torch(tensors, model)
    message = str(raised.exception)
    for part in ('pooler.dense.bias is missing', 'encoder.layer.2.output.dense.bias is left over',
                 'encoder.layer.0.intermediate.dense.weight has shape (16, 24), expected (24, 16)'):
      self.assertIn(part, message)
    self.assertEqual(message.count(';'), 2)

  def test_a_pooler_is_left_behind_where_none_is_wanted(self):
    model, params = small()
    tensors = bert_weights.params_to_torch(params, model)
    bare = bert.Bert(dataclasses.replace(model.config, add_pooler=False))
    self.assertNotIn('pooler', bert_weights.params_from_torch(tensors, bare))

  def test_unilm_positions_are_repeated_or_cut(self):
    model, params = small(rel_pos_bins=8, max_rel_pos=20)
    tensors = bert_weights.params_to_torch(params, model)
    self.assertEqual(tensors['rel_pos_bias.weight'].shape, (4, 8))
    table = tensors['embeddings.position_embeddings.weight']
    for rows in (5, 20):
      longer = bert.Bert(dataclasses.replace(model.config, max_position_embeddings=rows))
      found = bert_weights.params_from_torch(tensors, longer)['embeddings']['position']['embedding']
      np.testing.assert_array_equal(found, np.concatenate([table, table])[:rows])


class ConfigTest(parameterized.TestCase):

  def test_there_and_back(self):
    for name, config in PRESETS.items():
      with self.subTest(name):
        described = checkpoint_config(config, 'BertModel')
        self.assertEqual(from_checkpoint_config(described), config)

  @parameterized.parameters(
      ({'model_type': 'distilbert'}, 'model_type: expected bert, roberta or xlm-roberta'),
      ({'position_embedding_type': 'relative_key'}, 'position_embedding_type: expected absolute'),
      ({'is_decoder': True}, 'is_decoder: expected an encoder'),
      ({'hidden_act': 'swish'}, "hidden_act: unknown name 'swish'"),
      ({'hidden_size': 15}, 'hidden_size: expected a multiple of num_attention_heads=4, got 15'),
      ({'hidden_dropout_prob': 1.0}, r'hidden_dropout_prob: expected a rate in \[0, 1\)'),
      ({'rel_pos_bins': 2}, 'rel_pos_bins: expected 0 or an even number of at least 4'),
      ({'num_hidden_layers': 'two'}, 'num_hidden_layers: expected int'))
  def test_what_cannot_be_read(self, changes, message):
    described = {**checkpoint_config(SMALL, 'BertModel'), **changes}
    with self.assertRaisesRegex(ConfigError, message):
      from_checkpoint_config(described)

  def test_a_missing_key(self):
    described = checkpoint_config(SMALL, 'BertModel')
    del described['vocab_size']
    with self.assertRaisesRegex(ConfigError, 'config.json.vocab_size: missing'):
      from_checkpoint_config(described)

  def test_lengths(self):
    self.assertEqual(PRESETS['roberta-base'].max_length, 512)
    self.assertEqual(PRESETS['bert-base-cased'].max_length, 512)


if __name__ == '__main__':
  absltest.main()
