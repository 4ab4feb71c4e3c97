"""Greedy generation against transformers.generate on the same random checkpoints.

  python -m benchmarks.decoder_generate [--json=FILE] [--only=tiny]

Both read one folder of safetensors. Checks first that the greedy tokens are equal, then times
prefill (a call that samples one token) and decoding (the rest) apart, in turns. The peer is
transformers in eager mode and, where it compiles, with a static cache under torch.compile. The exit
status is 1 if a bar is missed: 3 times as fast on the tiny model, ahead at 100 M parameters.
"""
import functools
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from benchmarks import comparison
from jaxlab.models import pretrained
from jaxlab.models.decoder_config import from_checkpoint_config
from jaxlab.models.decoder_lm import DecoderLM, params_from_torch, params_to_torch
from jaxlab.models.generate import generate

ONLY = flags.DEFINE_string('only', '', 'Part of the name of the models to measure.')
REPETITIONS = flags.DEFINE_integer('repetitions', 5, 'Timed calls of each program.', lower_bound=1)
COMPILED = flags.DEFINE_bool('compiled', True, 'Whether to try a static cache and torch.compile.')

_COMMON = {'model_type': 'qwen3', 'architectures': ['Qwen3ForCausalLM'], 'rms_norm_eps': 1e-6,
           'rope_theta': 1e6, 'tie_word_embeddings': True, 'hidden_act': 'silu',
           'max_position_embeddings': 1024, 'attention_bias': False, 'use_sliding_window': False,
           'sliding_window': None}
# name -> (config.json, batch, prompt, new tokens, bar: the least ratio of peer to ours)
MODELS = {
    'tiny': ({**_COMMON, 'vocab_size': 256, 'hidden_size': 64, 'intermediate_size': 128,
              'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2,
              'head_dim': 16}, 8, 32, 64, 3.0),
    '100 M': ({**_COMMON, 'vocab_size': 32000, 'hidden_size': 768, 'intermediate_size': 2048,
               'num_hidden_layers': 12, 'num_attention_heads': 12, 'num_key_value_heads': 4,
               'head_dim': 64}, 8, 128, 128, 1.0),
}


def make_checkpoint(config, folder):
  """Writes a random checkpoint whose next-token distributions are not flat; our (model, params)."""
  shape = from_checkpoint_config(config, init='scaled', scan_layers=False)
  model = DecoderLM(shape)
  params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  tensors = {name: np.asarray(x) for name, x in params_to_torch(params).items()}
  pretrained.write_safetensors_folder(folder, tensors, config)
  again = pretrained.read_safetensors_folder(folder)
  return model, jax.device_put(params_from_torch(again, shape))


def peers(folder, prompt, mask):
  """name -> (number of tokens -> tokens [B, number])."""
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  model.eval()
  arguments = {'input_ids': torch.tensor(prompt, dtype=torch.long),
               'attention_mask': torch.tensor(mask, dtype=torch.long), 'do_sample': False,
               'pad_token_id': 0, 'eos_token_id': None}

  def run(number, **more):
    with torch.inference_mode():
      out = model.generate(**arguments, max_new_tokens=number, min_new_tokens=number, **more)
    return out[:, prompt.shape[1]:].numpy()

  found = {'eager': run}
  if COMPILED.value:
    def compiled(number):
      return run(number, cache_implementation='static')
    try:
      eager_forward = model.forward
      model.forward = torch.compile(model.forward)
      compiled(2)
      fast_forward = model.forward

      def switch(forward, function):
        def call(number):
          model.forward = forward
          return function(number)
        return call

      found = {'eager': switch(eager_forward, run),
               'static cache, compiled': switch(fast_forward, compiled)}
    except Exception as error:  # pylint: disable=broad-except  (torch.compile fails in many ways)
      model.forward = eager_forward
      print(f'torch.compile does not run here: {str(error).splitlines()[0]}')
  return found


def measure(name):
  """Rows of the table for a model."""
  config, rows, length, new, bar = MODELS[name]
  rng = np.random.default_rng(0)
  prompt = rng.integers(1, config['vocab_size'], (rows, length)).astype(np.int32)
  mask = np.arange(length) >= rng.integers(0, length // 2, (rows, 1))
  prompt = np.where(mask, prompt, 0)
  with tempfile.TemporaryDirectory() as folder:
    model, params = make_checkpoint(config, folder)
    theirs = peers(folder, prompt, mask)
  millions = sum(x.size for x in jax.tree.leaves(params)) / 1e6

  @functools.lru_cache
  def program(number):
    return jax.jit(functools.partial(generate, model, max_new=number, temperature=0))

  def ours(number):
    return np.asarray(program(number)(params, prompt, mask, jax.random.key(0)).tokens)

  expected = ours(new)
  for peer, run in theirs.items():
    np.testing.assert_array_equal(run(new), expected, err_msg=f'{name}: {peer}')
  print(f'{name}: {millions:.1f} M parameters, {rows} x ({length} + {new}) tokens, greedy tokens '
        'equal')
  calls = {(who, number): functools.partial(run, number)
           for who, run in {'ours': ours, **theirs}.items() for number in (1, new)}
  times = comparison.medians(calls, REPETITIONS.value)
  medians = {key: 1e3 * value for key, value in times.items()}
  result = []
  for peer in theirs:
    for part, value in (('prefill', lambda who: medians[who, 1]),
                        ('decode', lambda who: medians[who, new] - medians[who, 1]),
                        ('all', lambda who: medians[who, new])):
      a, b = value('ours'), value(peer)
      result.append({'name': f'{name}, {part}: {peer}', 'ours': a, 'peer': b, 'unit': 'ms',
                     'ratio': b / a, 'bar': bar if part == 'all' else None})
  return result


def main(_):
  rows = [row for name in MODELS if ONLY.value in name for row in measure(name)]
  comparison.show(rows, 'model, part: peer')
  missed = [f'{row["name"]}: {row["ratio"]:.2f} times, the bar is {row["bar"]}' for row in rows
            if row['bar'] and row['ratio'] < row['bar']]
  if missed:
    sys.exit('\n'.join(missed))


if __name__ == '__main__':
  app.run(main)
