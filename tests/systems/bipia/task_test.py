"""Boundary tokens, the grown vocabulary, the masked loss, and the Task of the white-box defence."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import parallel, systems
from jaxlab.config import ConfigError
from jaxlab.models import decoder_lm
from jaxlab.models.decoder_config import DecoderConfig
from jaxlab.systems.bipia import defences, loading, task, toy, whitebox
from tests import conftest

assert conftest.FLAGS
DECODER = DecoderConfig(vocab_size=toy.VOCAB_SIZE, hidden_size=8, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=8, init='scaled')
MODEL = {'vocab_size': toy.VOCAB_SIZE, 'hidden_size': 8, 'num_hidden_layers': 1,
         'num_attention_heads': 2, 'intermediate_size': 8}
CONFIG = {'task': 'bipia', 'model': MODEL,
          'data': {'name': 'toy', 'questions': 16, 'base': 16, 'whitebox_rows': 16, 'test': 8}}


def init(config):
  return jax.jit(decoder_lm.DecoderLM(config).init)(
      jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']


class MarkerTest(parameterized.TestCase):

  def coder(self, template=None):
    # A tokenizer to which the tokens were added: their spelling is read as them.
    def encode(text):
      ids = []
      while text:
        marker = next((m for m in ('<data>', '</data>') if text.startswith(m)), None)
        ids.append(256 + (marker == '</data>') if marker else ord(text[0]))
        text = text[len(marker or 'x'):]
      return ids
    return whitebox.Coder(encode, None, markers=(256, 257), eos=0, template=template)

  @parameterized.parameters(
      '<data>', '</data>', 'x<data>y</data>', '<<data>data>', '</data></data>', '<da<data>ta>',
      '<data', str(defences.START), '\uf8ff0\uf8ff', '\uf8ff1\uf8ff<data>')
  def test_no_text_spells_a_boundary(self, hostile):
    template = lambda turns: 'T' + '|'.join(turn['content'] for turn in turns)
    for coder in (self.coder(), self.coder(template)):
      for content in (hostile, ('', hostile, ''), ('<da', 'ta>' + hostile)):
        ids = coder.prompt([{'role': 'user', 'content': hostile}, {'role': 'user',
                                                                   'content': content}])
        self.assertNoCommonElements(ids, (256, 257))
      ids = coder.prompt([{'role': 'system', 'content': 's'}, {
          'role': 'user', 'content': ('a', defences.START, hostile, defences.END, hostile)}])
      self.assertEqual([i for i in ids if i > 255 and i < 258], [256, 257])
      self.assertEqual(sum(map(ids.count, (256, 257))), 2)

  def test_a_plain_string_of_the_same_letters_is_no_marker(self):
    self.assertNotIsInstance(''.join(defences.START), defences.Marker)
    sample = toy.benchmark(contexts_of=1)[0]._replace(context='<data> k1 v1 </data>')
    ids = toy.coder(toy.VOCAB_SIZE + 2).prompt(defences.markers(sample))
    self.assertEqual(ids.count(toy.VOCAB_SIZE), 1)
    self.assertEqual(ids.count(toy.VOCAB_SIZE + 1), 1)

  def test_a_spelling_that_cannot_be_cut_is_refused(self):
    coder = whitebox.Coder(lambda text: [7], None, markers=(7, 8))
    with self.assertRaisesRegex(ConfigError, '^text: expected no boundary token in a text'):
      coder.prompt([{'role': 'user', 'content': 'x'}])

  def test_the_template_keeps_what_stands_around_the_contents(self):
    template = lambda turns: ''.join(f'[{t["role"][0]}:{t["content"]}]' for t in turns)
    coder = self.coder(template)
    pieces = coder.pieces([{'role': 'system', 'content': 'be'},
                           {'role': 'user', 'content': ('a', defences.START, 'b')}])
    self.assertEqual(pieces, ['[s:be][u:a', '<data>', 'b]'])
    self.assertIsInstance(pieces[1], defences.Marker)

  def test_without_boundary_tokens_the_prompt_is_vicunas_template_as_one_text(self):
    coder = self.coder()
    turn = lambda role, content: {'role': role, 'content': content}
    one = coder.pieces([turn('user', 'Hi')])
    self.assertEqual(one, [whitebox.VICUNA_SYSTEM + 'USER: Hi ASSISTANT:'])
    chat = [turn('system', 'Be brief.'), turn('user', 'Hi'), turn('assistant', 'Yes'),
            turn('user', 'Now')]
    text = 'Be brief. USER: Hi ASSISTANT: Yes</s>USER: Now ASSISTANT:'
    self.assertEqual(coder.pieces(chat), [text])
    named = [{**chat[1], 'role': 'system', 'name': 'example_user'},
             {**chat[2], 'role': 'system', 'name': 'example_assistant'}]
    self.assertEqual(coder.pieces([chat[0], *named, chat[3]]), [text])
    self.assertEqual(''.join(coder.pieces([*named, turn('user', ('Now', defences.START))])),
                     whitebox.VICUNA_SYSTEM
                     + 'USER: Hi ASSISTANT: Yes</s>USER: Now<data> ASSISTANT: ')
    for content in ('x', (defences.START, 'x')):
      with self.assertRaisesRegex(ConfigError, '^messages: expected one system turn, the first'):
        coder.pieces([chat[0], chat[0], turn('user', content)])

  def test_long_examples_are_dropped_and_not_cut(self):
    coder = self.coder()
    chat = [{'role': 'user', 'content': 'x'}]
    short = len(whitebox.example(coder, chat, 'a')[0])
    columns, dropped = whitebox.columns(coder, [(chat, 'a'), (chat, 'abc'), (chat, '')], short)
    self.assertEqual(dropped, 1)
    self.assertEqual(columns['labels'][:, -2:].tolist(), [[ord('a'), 0], [0, -100]])


class GrowTest(parameterized.TestCase):

  @parameterized.parameters((True, False), (False, True))
  def test_old_logits_stay_and_new_rows_are_means(self, tied, scanned):
    config = dataclasses.replace(DECODER, tie_word_embeddings=tied, scan_layers=scanned)
    params = init(config)
    grown = whitebox.grow(params)
    model, tokens = loading.model_of(config, params), jnp.arange(12).reshape(2, 6)
    bigger = loading.model_of(config, grown)
    apply = lambda model, params: jax.jit(model.apply)({'params': params}, tokens)[0]
    before, after = apply(model, params), apply(bigger, grown)
    np.testing.assert_allclose(after[..., :toy.VOCAB_SIZE], before, atol=1e-6)
    self.assertEqual(after.shape[-1], toy.VOCAB_SIZE + 2)
    table = grown['embed']['embedding']
    for row in table[-2:]:
      np.testing.assert_allclose(row, params['embed']['embedding'].mean(0), atol=1e-6)
    if not tied:
      for column in grown['lm_head']['kernel'].T[-2:]:
        np.testing.assert_allclose(column, params['lm_head']['kernel'].mean(1), atol=1e-6)
    wide = dataclasses.replace(config, vocab_size=toy.VOCAB_SIZE + 2)
    back = decoder_lm.params_from_torch(decoder_lm.params_to_torch(grown), wide)
    jax.tree.map(np.testing.assert_array_equal, back, grown)


class TaskTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.task = systems.make_task(CONFIG)
    self.params = whitebox.grow(jax.jit(self.task.init)(jax.random.key(0))['params'])
    rows = self.task.arms['whitebox'].dataset()
    self.batch = {**rows.take(np.arange(8, 16)), 'weight': np.ones(8, np.float32)}

  def mean(self, params, batch):
    loss = self.task.arms['whitebox'].loss({'params': params}, batch, None)
    return (loss.values * loss.weights).sum() / loss.weights.sum()

  def test_the_loss_is_the_mean_over_response_tokens(self):
    model = loading.model_of(DECODER, self.params)
    logits, _ = jax.jit(model.apply)({'params': self.params}, self.batch['ids'])
    logp, total, count = np.asarray(jax.nn.log_softmax(logits)), 0.0, 0
    for row, labels in enumerate(self.batch['labels']):
      for t in range(1, len(labels)):
        if labels[t] != -100:
          total, count = total - logp[row, t - 1, labels[t]], count + 1
    self.assertGreater(count, 16)
    np.testing.assert_allclose(jax.jit(self.mean)(self.params, self.batch), total / count,
                               rtol=1e-5)

  def test_gradients(self):
    grads = jax.jit(jax.grad(self.mean))(self.params, self.batch)
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
      self.assertTrue(np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path)
    # A label in the prompt counts for nothing: rows without a response have no gradient.
    empty = {**self.batch, 'labels': np.full_like(self.batch['labels'], -100)}
    def total(params):
      loss = self.task.arms['whitebox'].loss({'params': params}, empty, None)
      return (loss.values * loss.weights).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(self.params)):
      np.testing.assert_array_equal(leaf, 0)

  def test_a_vocabulary_that_has_not_grown(self):
    params = jax.tree.map(lambda x: x, self.params)
    params['embed'] = {'embedding': params['embed']['embedding'][:-2]}
    self.task.arms['base'].loss({'params': params}, self.batch, None)
    with self.assertRaisesRegex(ConfigError, f"^phases.surgery: expected '{task.GROW}' no later "
                                "than the arm 'whitebox', .* 38 tokens, got '36 tokens'"):
      self.task.arms['whitebox'].loss({'params': params}, self.batch, None)

  def test_padding_and_pieces_change_nothing(self):
    chunked = task.from_columns(DECODER, {'whitebox': self.batch}, chunk=5)
    one = jax.jit(self.task.loss)({'params': self.params}, self.batch, None)
    two = jax.jit(chunked.loss)({'params': self.params}, self.batch, None)
    np.testing.assert_allclose(one.values * one.weights, two.values * two.weights, atol=1e-5)
    wide = {'ids': np.pad(self.batch['ids'], ((0, 0), (0, 4)), constant_values=3),
            'labels': np.pad(self.batch['labels'], ((0, 0), (0, 4)), constant_values=-100),
            'weight': self.batch['weight']}
    np.testing.assert_allclose(jax.jit(self.mean)(self.params, wide),
                               jax.jit(self.mean)(self.params, self.batch), rtol=1e-6)

  def test_two_devices_agree(self):
    def step(params, batch):
      def part(params):
        loss = self.task.loss({'params': params}, batch, None)
        return (loss.values * loss.weights).sum() / parallel.psum(loss.weights.sum())
      return parallel.psum(jax.grad(part)(params))

    devices = jax.local_devices()[:2]
    batch = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), self.batch)
    program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, 0), devices=devices)
    both = program(self.params, batch)
    parallel.assert_replicated(both)
    one = jax.jit(jax.grad(self.mean))(self.params, self.batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), both, one)

  def test_exact_is_what_greedy_decoding_gives(self):
    out = jax.jit(self.task.predict)({'params': self.params}, self.batch, None)
    metrics = self.task.evaluate([(jax.device_get(out), self.batch)])
    self.assertEqual(metrics['exact'], float(np.mean(out['exact'])))
    self.assertAlmostEqual(metrics['loss'], float(self.mean(self.params, self.batch)), places=5)

  def test_the_mix_holds_the_users_commands(self):
    pairs = toy.whitebox_pairs(20, 0.3, 0)
    own = [response for _, response in pairs if response.startswith('c')]
    self.assertLen(own, 6)
    self.assertLen([r for _, r in toy.whitebox_pairs(20, 0.0, 0) if r.startswith('v')], 20)

  @parameterized.parameters(
      ({'data': {'name': 'tyo'}}, "data.name: unknown name 'tyo'; did you mean 'toy'"),
      ({'data': {'name': 'toy', 'bse': 1}}, "data: unknown key 'bse'; did you mean 'base'"),
      ({'data': {'name': 'toy', 'user_commands': 1.0}}, r'data.user_commands: expected a share'),
      ({'model': {**MODEL, 'vocab_size': 40}}, "model.vocab_size: expected the toy's 36 words"),
      ({'data': {'name': 'official'}}, 'data.folder: missing'),
      ({'model': {'hiden_size': 3}}, "model: unknown key 'hiden_size'; did you mean 'hidden_size'"))
  def test_mistakes(self, change, message):
    with self.assertRaisesRegex(ConfigError, f'^{message}'):
      systems.make_task({**CONFIG, **change})


if __name__ == '__main__':
  absltest.main()
