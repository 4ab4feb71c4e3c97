"""What a compiled program costs: compile seconds, FLOPs, share of the device's peak."""
import logging
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
    flops: floating-point operations of one step on one device; 0 if the backend does not say.
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


def compile_program(program, arguments, steps=1, what='step'):
  """Compiles a pmapped function for these arguments and logs compile seconds and FLOPs a step.

  With several processes the executable would want global arrays, which only the pmapped function
  itself makes of local ones; then it is left to compile at its first call, and the FLOPs are those
  before XLA's optimisations.
  """
  start = time.perf_counter()
  lowered = program.lower(*arguments)
  alone = jax.process_count() == 1
  compiled = lowered.compile() if alone else lowered
  seconds = time.perf_counter() - start
  cost = compiled.cost_analysis() or {}
  # XLA counts the body of a scan once, so the figure is that of one step whatever `steps` is.
  flops = float(cost.get('flops', 0))
  _log.info('%s in %.1f s; %.4g MFLOP a %s a device, %d %s(s) a call',
            'compiled' if alone else 'lowered', seconds, flops / 1e6, what, steps, what)
  return Compiled(compiled if alone else program, flops, seconds)
