"""The self-test of a platform: nothing is committed from one that computes other bits."""
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.systems.agatha import bops, consistent, lowering


class PlatformError(RuntimeError):
  """This platform's float32 cannot be made consistent."""


def stay_on_one_core():
  """Pins the process to its first core; call it before XLA makes its threads."""
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@functools.cache
def check_platform():
  """Compares XLA on the default device with NumPy: every float BOP on hard operands, a softmax, an
  ordered and an exact dot.

  Raises:
    PlatformError: a bit differs; the operation is named.
  """
  rng = np.random.default_rng(0)
  special = [0, 1, 0x7fffff, 0x800000, 0x800001, 0x3f800000, 0x3f7fffff, 0x7f7fffff, 0x7f800000,
             0x7fc00001, 0x34000000, 0x0c000000]
  special = np.array([x | sign for x in special for sign in (0, 0x80000000)], np.uint32)
  a, b = (x.reshape(-1) for x in np.meshgrid(special, special))
  a, b = (np.concatenate([x, rng.integers(0, 2**32, 512, np.uint32)]) for x in (a, b))
  floats = [name for name, bop in bops.BOPS.items() if bop.operands in ('f', 'ff')]
  results = jax.jit(lambda a, b: [
      bops.jax_bop(name, *(a, b)[:bops.BOPS[name].arity]) for name in floats])(a, b)
  for name, got in zip(floats, results):
    want = bops.numpy_bop(name, *(a, b)[:bops.BOPS[name].arity])
    if (np.asarray(got) != want).any():
      raise PlatformError(f'BOP {name!r} differs from IEEE arithmetic on this platform')
  x = rng.normal(size=(3, 5)).astype(np.float32)
  for mode in lowering.MODES:
    program = lowering.lower(lambda _, x: jax.nn.softmax(x @ x.T), {}, x, mode=mode)
    got, want = (consistent.evaluate(program, [], [x], xp) for xp in (jnp, np))
    for line, ours, theirs in zip(program.lines, got, want):
      if (np.asarray(ours) != theirs).any():
        raise PlatformError(f'{line.name!r} in mode {mode!r} differs on this platform')
