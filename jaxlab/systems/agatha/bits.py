"""Prints a digest of the bits of models' outputs, each evaluated in several ways, as JSON.

  python -m jaxlab.systems.agatha.bits '{"evaluator": "consistent", "one_core": false, "cases": {}}'

`reproduce` runs it under different flags and on different numbers of cores: the digests must agree.
'native' evaluates by plain jit and op by op, which they do not.
"""
import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.systems.agatha import consistent, lowering, platform, play


def digest(array):
  """A short hash of an array's bits."""
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _native(function, variables, inputs):
  with jax.disable_jit():
    eager = function(variables, *inputs)
  return {'op by op': digest(eager), 'jit': digest(jax.jit(function)(variables, *inputs))}


def _consistent(function, variables, inputs, mode):
  found, devices = {}, jax.local_devices()
  if len(devices) > 1:  # once is enough: these programs hold one line each
    program = lowering.lower(function, variables, *inputs, mode=mode)
    lines = consistent.evaluate(program, jax.tree.leaves(variables), inputs, jnp)
    found = {'op by op': digest(consistent.outputs_of(program, lines))}
  # One program for all devices: each computes the whole result for itself.
  everywhere = jax.pmap(lambda _, *args: consistent.consistent(function, mode)(*args),
                        in_axes=(0, *(None,) * (1 + len(inputs))))(
                            np.zeros(len(devices)), variables, *inputs)
  for i, result in enumerate(np.asarray(everywhere)):
    found[f'jit on device {i}'] = digest(result)
  return found


def run(evaluator, cases, one_core):
  """{case: {way: digest}}; `one_core` pins the process before XLA makes its threads."""
  if one_core:
    platform.stay_on_one_core()
  found = {}
  for name, config in cases.items():
    function, variables, inputs = play.make_model(config)
    found[name] = _native(function, variables, inputs) if evaluator == 'native' else _consistent(
        function, variables, inputs, config['mode'])
  return found


if __name__ == '__main__':
  print(json.dumps(run(**json.loads(sys.argv[1]))))
