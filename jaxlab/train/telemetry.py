"""What a compiled program costs: compile seconds, FLOPs, share of the device's peak."""
import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

_log = logging.getLogger(__name__)

# Dense bf16 FLOP/s of one device by a part of its `device_kind`, from the makers' data sheets.
PEAK_FLOPS = {
    'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'TPU v4': 275e12, 'TPU v5 lite': 197e12,
    'TPU v5p': 459e12, 'TPU v6': 918e12
}


class Compiled(NamedTuple):
  """An ahead-of-time compiled program of `steps` steps a call, and its cost.

  Attributes:
    run: the executable, called with the arguments of the program.
    flops: `matmul_flops` of one step on one device.
    seconds: time to compile it.
  """
  run: Callable
  flops: float
  seconds: float

  def speed(self, steps_per_second, batch_size=0):
    """{'steps_per_s', 'examples_per_s', and 'mfu' (share of peak, 0..1) on known accelerators}."""
    values = {'steps_per_s': steps_per_second}
    if batch_size:
      values['examples_per_s'] = steps_per_second * batch_size
    kind = jax.local_devices()[0].device_kind
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in kind), None)
    if peak and self.flops:
      values['mfu'] = self.flops * steps_per_second / peak
    return values


def matmul_flops(jaxpr):
  """Floating-point operations of the matrix products and convolutions of a jaxpr.

  A scan counts as often as it runs: microbatches, layers, local steps and clients may be scans. A
  `while` loop, whose turns are not known, counts once, and of a `cond` the most expensive branch.
  Everything else is left out: elementwise operations, reductions, lookups, kernels of libraries.

  >>> import jax.numpy as jnp
  >>> square = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=3)[0]
  >>> matmul_flops(jax.make_jaxpr(square)(jnp.ones((4, 4))).jaxpr)
  384
  """
  return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation):
  name, params = equation.primitive.name, equation.params
  if name in ('dot_general', 'conv_general_dilated'):
    left, right = (operand.aval.shape for operand in equation.invars)
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      depth = math.prod(left[axis] for axis in contracted)
    else:
      depth = math.prod(right) // right[params['dimension_numbers'].rhs_spec[0]]
    return 2 * equation.outvars[0].aval.size * depth
  inner = []
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      part = getattr(part, 'jaxpr', part)
      if hasattr(part, 'eqns'):
        inner.append(matmul_flops(part))
  if name == 'cond':
    return max(inner)
  return sum(inner) * (params['length'] if name == 'scan' else 1)


def compile_program(program, arguments, steps=1, what='step'):
  """Compiles a pmapped function for these arguments and logs compile seconds and FLOPs a step.

  With several processes the executable would want global arrays, which only the pmapped function
  itself makes of local ones; then it is left to compile at its first call.
  """
  start = time.perf_counter()
  lowered = program.lower(*arguments)
  alone = jax.process_count() == 1
  compiled = lowered.compile() if alone else lowered
  seconds = time.perf_counter() - start
  # Not XLA's own count, which takes the body of a loop once.
  flops = matmul_flops(jax.make_jaxpr(program)(*arguments).jaxpr) / steps
  _log.info('%s in %.1f s; %.4g MFLOP a %s a device, %d %s(s) a call',
            'compiled' if alone else 'lowered', seconds, flops / 1e6, what, steps, what)
  return Compiled(compiled if alone else program, flops, seconds)
