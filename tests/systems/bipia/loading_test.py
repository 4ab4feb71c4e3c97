"""A public checkpoint's folder: hardening data from the official files, training, measuring."""
import json
import pathlib
import random
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab import systems, train
from jaxlab.config import ConfigError
from jaxlab.models import decoder_lm, pretrained
from jaxlab.models.decoder_config import from_checkpoint_config
from jaxlab.systems import bipia
from jaxlab.systems.bipia import benchmark, evaluation, loading, task, whitebox
from tests.systems.bipia.benchmark_test import official, write

SHAPE = {'model_type': 'llama', 'architectures': ['LlamaForCausalLM'], 'hidden_size': 8,
         'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 8,
         'rms_norm_eps': 1e-6, 'tie_word_embeddings': False}


def checkpoint(folder):
  """A tiny Llama with a byte tokenizer and no chat template; returns its vocabulary's size."""
  import tokenizers
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: i for i, token in enumerate([*alphabet, '<s>', '</s>'])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(['<s>', '</s>'])
  shape = {**SHAPE, 'vocab_size': len(vocabulary)}
  config = from_checkpoint_config(shape)
  params = jax.jit(decoder_lm.DecoderLM(config).init)(
      jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  pretrained.write_safetensors_folder(folder, decoder_lm.params_to_torch(params), shape,
                                      tokenizer_from=tokenizer)
  (folder / 'tokenizer_config.json').write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
  return len(vocabulary)


class OfficialTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    official(self.folder)
    self.weights = self.folder / 'weights'
    self.size = checkpoint(self.weights)
    (self.folder / 'own.jsonl').write_text('{"instruction": "Say a.", "response": "a"}\n')
    self.config = {
        'task': 'bipia', 'model': {'weights': str(self.weights)}, 'seed': 0, 'batch_size': 4,
        'data': {'name': 'official', 'folder': str(self.folder), 'tasks': ('email', 'code'),
                 'examples': 10, 'test': 4, 'commands': str(self.folder / 'own.jsonl')},
        'phases': ({'steps': 1, 'arms': ('whitebox',),
                    'surgery': 'jaxlab.systems.bipia.whitebox:grow'},),
        'optimizer': {'name': 'adamw', 'learning_rate': 1e-3}, 'log_every': 1,
        'eval_splits': ()}

  def test_from_official_files_to_a_measured_checkpoint(self):
    made = systems.make_task(self.config)
    rows = made.arms['whitebox'].dataset()
    self.assertLen(rows, 10)
    commands = [row for row in (rows[i] for i in range(10)) if self.size not in row['ids']]
    self.assertLen(commands, 3)
    workdir = self.folder / 'run'
    state = train.fit(made, self.config, workdir=workdir)
    self.assertEqual(state.params['embed']['embedding'].shape[0], self.size + 2)
    model, params, coder, _ = loading.checkpoint(workdir)
    self.assertEqual(model.config.vocab_size, self.size + 2)
    self.assertEqual(coder.markers, (self.size, self.size + 1))
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(state.params))
    ids = coder.prompt([{'role': 'user', 'content': '<data>x</data> </s>'}])
    self.assertNoCommonElements(ids, coder.markers)
    self.assertEqual(ids[:1], list(coder.bos))
    self.assertStartsWith(coder.decode(ids), whitebox.VICUNA_SYSTEM + 'USER: <data>x</data>')
    self.assertEndsWith(coder.decode(ids), ' ASSISTANT:')
    inject = {'system': 'bipia', 'clean': True,
              'data': {'name': 'official', 'folder': str(self.folder), 'tasks': ('email',),
                       'max_attacks': 1, 'max_contexts': 1},
              'models': ({'name': 'local', 'checkpoint': str(workdir), 'max_new': 3,
                          'batch_size': 2},),
              'defences': ({'name': 'markers'},)}
    with mock.patch.object(evaluation, 'append', wraps=evaluation.append) as append:
      summaries, _ = bipia.inject(inject, self.folder / 'report')
    self.assertLen(summaries, 1)
    self.assertEqual([len(call.args[1]) for call in append.mock_calls[:2]], [2, 2])
    # The model's own answers to clean prompts are the next run's training responses.
    records = self.folder / 'report/local/markers/responses.jsonl'
    kept = [json.loads(line) for line in records.read_text().splitlines()]
    self.assertEqual([row['position'] for row in kept], ['end', 'start', 'middle', 'none'])
    data = {**self.config['data'], 'tasks': ('email',), 'responses': str(records), 'examples': 2}
    with self.assertRaisesRegex(ConfigError, 'data.responses: expected a response to the clean'):
      systems.make_task({**self.config, 'data': {**data, 'examples': 24}})

  def test_recorded_responses_meet_their_prompts(self):
    rows = [{'context': f'c{i}.', 'question': 'q', 'ideal': f'i{i}'} for i in range(6)]
    write(self.folder, 'email_train.jsonl', rows)
    whole = benchmark.load(self.folder, 'train', tasks=('email',))
    some = benchmark.subset(whole, max_contexts=4).clean()  # answered as `launch.inject` would
    write(self.folder, 'r.jsonl', [
        {'task': s.task, 'position': s.position, 'number': s.number, 'response': f'to {s.context}'}
        for s in some])
    answered = {sample.number for sample in some}
    self.assertNotEqual(answered, set(range(4)))
    seed = next(seed for seed in range(100) if {
        whole[i].number for i in random.Random(seed).sample(range(len(whole)), 3)} <= answered)
    found = task.official_data(
        folder=str(self.folder), tasks=('email',), examples=3, test=1, seed=seed,
        responses=str(self.folder / 'r.jsonl'), model={'weights': str(self.weights)})['whitebox']
    coder, _ = loading.public_coder(self.weights, self.size, self.size + 2)
    for ids in found['ids']:
      text = coder.decode([i for i in ids.tolist() if i < self.size])
      response = text.rpartition('ASSISTANT: to ')[2].partition('.')[0]
      self.assertIn(f'{response}.', text.partition(' ASSISTANT')[0])

  def test_dropped_examples_are_counted(self):
    write(self.folder, 'email_train.jsonl', [
        {'context': context, 'question': 'q', 'ideal': 'i'} for context in ('a.', 'a ' * 900)])
    with self.assertLogs('jaxlab', 'WARNING') as logs:
      found = task.official_data(folder=str(self.folder), tasks=('email',), examples=100, test=4,
                                 max_length=1000, model={'weights': str(self.weights)})
    self.assertLen(found['whitebox']['ids'], 9)
    self.assertLen(logs.output, 1)
    self.assertIn('whitebox: 9 of 18 examples are longer than 1000 tokens and dropped',
                  logs.output[0])

  def test_a_folder_that_is_neither(self):
    (self.folder / 'config.json').write_text('{"task": "other"}')
    with self.assertRaisesRegex(ConfigError, '^checkpoint: expected a public checkpoint, or a run'):
      loading.checkpoint(self.folder)


if __name__ == '__main__':
  absltest.main()
