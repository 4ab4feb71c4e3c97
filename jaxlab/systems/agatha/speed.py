"""Times every evaluator of a model and prints the seconds as JSON.

  python -m jaxlab.systems.agatha.speed '{"config": {}, "one_core": true, "vm_too": false}'

A process of its own, so that `reproduce` can give it one core: how XLA cuts small kernels into
parts for two cores, and what the cores do meanwhile, says little about the evaluators.
"""
import json
import sys
import time

import jax
import numpy as np

from jaxlab.systems.agatha import consistent, lowering, platform, play, vm

REPEATS = 20


def medians(functions):
  """Median seconds of each function, called in turns after a warm-up."""
  times = {name: [] for name in functions}
  for repeat in range(REPEATS + 1):
    for name, function in functions.items():
      seconds = once(function)
      if repeat:
        times[name].append(seconds)
  return {name: float(np.median(values)) for name, values in times.items()}


def once(function):
  """Seconds of one call."""
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


def run(config, one_core, vm_too):
  """{evaluator: seconds} of a model's config (see `play.make_model`).

  Args:
    config: of the model.
    one_core: pins the process before XLA makes its threads.
    vm_too: whether the interpreter of scalar operations and its compiled loop run too, once.
  """
  if one_core:
    platform.stay_on_one_core()
  function, variables, inputs = play.make_model(config)
  place = lambda tree: jax.tree.map(jax.device_put, tree)
  variables, inputs = place(variables), place(inputs)
  native = jax.jit(function)
  runs = {'native': lambda: native(variables, *inputs)}
  for mode in lowering.MODES:
    program = lowering.lower(function, variables, *inputs, mode=mode)
    prepared = consistent.prepare(program, jax.tree.leaves(variables))
    jitted = jax.jit(lambda prepared, *inputs, program=program: consistent.run_prepared(
        program, prepared, inputs))
    runs[mode] = lambda jitted=jitted, prepared=prepared: jitted(prepared, *inputs)
  found = medians(runs)
  if vm_too:
    program = lowering.lower(function, variables, *inputs)
    machine = vm.instructions(program, jax.tree.leaves(variables), inputs)
    loop = vm.compiled(machine)
    loop()
    found['compiled scalar'] = once(loop)
    found['vm'] = once(lambda: vm.interpret(machine))
  return found


if __name__ == '__main__':
  print(json.dumps(run(**json.loads(sys.argv[1]))))
