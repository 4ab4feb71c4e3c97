"""The endpoint's retries and cache against a scripted server; replays; no other network."""
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.models.decoder_config import DecoderConfig
from jaxlab.models.decoder_lm import DecoderLM
from jaxlab.systems.bipia import defences, responders, toy, whitebox
from tests.systems.bipia.stub import Stub


def chats(count):
  return [[{'role': 'user', 'content': f'question {i}'}] for i in range(count)]


class EndpointTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def make(self, stub, **settings):
    made = responders.Endpoint(stub.url, 'model', cache=self.folder, backoff=0.001, timeout=0.3,
                               **settings)
    self.addCleanup(made.close)
    return made

  @parameterized.parameters(1, 3)
  def test_calls_are_those_needed_and_the_retries(self, concurrency):
    script = [429, 'ok', 500, 'garbage', 'slow', 'nothing', 'empty', 'ok', 503]
    bad = len(script) - 2
    with Stub(script) as stub:
      ask = self.make(stub, concurrency=concurrency, attempts=10)
      wanted = [f'echo question {i}' for i in range(5)]
      self.assertEqual(ask(chats(5)), wanted)
      self.assertEqual((ask.calls, ask.retries, ask.hits), (5 + bad, bad, 0))
      self.assertLen(stub.bodies, ask.calls)
      self.assertEqual(ask(chats(6)), [*wanted, 'echo question 5'])
      self.assertEqual((ask.calls, ask.hits), (6 + bad, 5))
      body = stub.bodies[0]
      self.assertEqual((body['model'], body['temperature']), ('model', 0))

  def test_another_model_is_another_answer(self):
    with Stub() as stub:
      self.make(stub)(chats(1))
      other = self.make(stub, max_tokens=7)
      other(chats(1))
      self.assertEqual((other.calls, other.hits), (1, 0))

  def test_gives_up_without_writing(self):
    with Stub(3 * [500]) as stub:
      ask = self.make(stub, concurrency=1, attempts=3)
      self.assertEqual(ask(chats(1)), [None])
      self.assertEqual((ask.calls, ask.retries), (3, 2))
      self.assertEmpty(list(self.folder.iterdir()))
      self.assertEqual(ask(chats(1)), ['echo question 0'])

  def test_a_refusal_is_no_reason_to_try_again(self):
    with Stub([401]) as stub:
      ask = self.make(stub)
      with self.assertRaisesRegex(ConfigError, '^endpoint: expected an answer, got .status 401'):
        ask(chats(1))
      self.assertEqual(ask.calls, 1)

  def test_bad_settings(self):
    with self.assertRaisesRegex(ConfigError, '^attempts: expected at least 1, got 0'):
      responders.endpoint(url='http://nowhere', model='m', attempts=0)


class ReplayTest(absltest.TestCase):

  def test_reads_what_was_recorded(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    chat = [{'role': 'user', 'content': ('see ', defences.START, 'x', defences.END)}]
    rows = [{'message': responders.plain(chat), 'response': 'marked'},
            {'message': chats(1)[0], 'response': 'plain'}]
    (folder / 'r.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    respond = responders.replay(folder / 'r.jsonl')
    self.assertEqual(respond([chat, *chats(2)]), ['marked', 'plain', None])
    (folder / 'bad.jsonl').write_text(json.dumps(rows[0]) + '\n{"message": []}\n')
    with self.assertRaisesRegex(ValueError, "bad.jsonl: line 2: expected 'message' and a string"):
      responders.replay(folder / 'bad.jsonl')
    with self.assertRaisesRegex(ConfigError, '^replay: expected a file'):
      responders.replay(folder / 'nowhere')


class LocalTest(absltest.TestCase):

  def test_a_checkpoint_answers_alone_as_in_a_batch(self):
    config = DecoderConfig(vocab_size=toy.VOCAB_SIZE + 2, hidden_size=8, num_hidden_layers=1,
                           num_attention_heads=2, intermediate_size=8, init='scaled')
    model = DecoderLM(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
    respond = responders.local(model, params, toy.coder(toy.VOCAB_SIZE + 2), max_new=3,
                               batch_size=4)
    some = [toy.benchmark(contexts_of=2)[i] for i in (0, 40, 77)]
    marked = [defences.markers(sample, reminder=False) for sample in some]
    together = respond(marked)
    self.assertEqual(together, [respond([chat])[0] for chat in marked])
    self.assertTrue(any(together))
    with self.assertRaisesRegex(ConfigError, 'expected a model with boundary tokens'):
      whitebox.Coder(str.encode, bytes.decode).prompt(marked[0])


if __name__ == '__main__':
  absltest.main()
