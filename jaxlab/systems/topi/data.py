"""In-context generation on handwritten digits: a reference canvas, an instruction, a target digit.

Drawn on the device, one example a key: the 8 x 8 digit is pasted into a canvas at an even offset,
and the target is the digit, transformed as the instruction says. 2 x 2 patches are the tokens.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models import dit_tokens
from jaxlab.models.dit_sampler import Conditions, Prompt

SIDE, PATCH = 8, 2
GRID = SIDE // PATCH
N_TARGET = GRID**2
CHANNELS = PATCH**2
INSTRUCTIONS = {
    'copy': lambda x: x,
    'invert': lambda x: -x,
    'mirror': lambda x: x[:, ::-1],
    'flip': lambda x: x[::-1],
}


class Canvas(NamedTuple):
  """Where the digit lies.

  Attributes:
    side: of the canvas in pixels, even.
    grating: a random grating around the digit; otherwise -1.
    aligned: the target's positions are those of the digit in the canvas, as in the editing of a
      region; otherwise they start at 0, and the digit has to be found by its content.
  """
  side: int
  grating: bool
  aligned: bool


VARIANTS = {'aligned': Canvas(12, True, True), 'search': Canvas(12, False, False),
            'whole': Canvas(8, True, True)}


class Example(NamedTuple):
  """One example, or a batch of them.

  Attributes:
    target: clean target tokens [16, 4], pixels in [-1, 1].
    reference: tokens of the canvas [n_c, 4].
    img_ids: positions of target and reference [16 + n_c, 3].
    instruction: one-hot [number of instructions].
    informative: bool [n_c], whether a token carries a part of the digit.
  """
  target: jax.Array
  reference: jax.Array
  img_ids: jax.Array
  instruction: jax.Array
  informative: jax.Array


def compose(image, key, variant, instructions):
  """Draws an example around a digit.

  Args:
    image: [8, 8], values 0..16.
    key: PRNG key of the offset, the grating and the instruction.
    variant: a key of `VARIANTS`.
    instructions: keys of `INSTRUCTIONS`.
  """
  canvas = VARIANTS[variant]
  offset_key, rate_key, phase_key, instruction_key = jax.random.split(key, 4)
  digit = image.astype(jnp.float32) / 8 - 1
  cells = (canvas.side - SIDE) // PATCH + 1
  offset = jax.random.randint(offset_key, (2,), 0, cells)  # in tokens
  background = -jnp.ones((canvas.side,) * 2)
  if canvas.grating:
    rate = jax.random.uniform(rate_key, (2,), minval=-2.0, maxval=2.0)
    phase = jax.random.uniform(phase_key, maxval=2 * np.pi)
    y, x = jnp.meshgrid(*(jnp.arange(canvas.side),) * 2, indexing='ij')
    background = jnp.sin(rate[0] * y + rate[1] * x + phase)
  picture = jax.lax.dynamic_update_slice(background, digit, tuple(PATCH * offset))
  number = jax.random.randint(instruction_key, (), 0, len(instructions))
  target = jnp.stack([INSTRUCTIONS[name](digit) for name in instructions])[number]
  ids, _ = dit_tokens.flux_ids([(GRID, GRID), (canvas.side // PATCH,) * 2], 0)
  place = ids[N_TARGET:, 1:]
  inside = ((place >= offset) & (place < offset + GRID)).all(-1)
  moved = jnp.concatenate([jnp.zeros(1), offset * canvas.aligned])
  img_ids = jnp.concatenate([ids[:N_TARGET] + moved, ids[N_TARGET:]])
  return Example(tokens(target[None])[0], tokens(picture[None])[0], img_ids,
                 jax.nn.one_hot(number, len(instructions)), inside)


def compose_numbered(images, numbers, variant, instructions, seed):
  """Examples whose drawing depends on their number alone: (Example [B, ...], keys [B])."""
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), numbers)
  draw, rest = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  return jax.vmap(compose, in_axes=(0, 0, None, None))(images, draw, variant, instructions), rest


def tokens(images):
  """Tokens [B, n, 4] of images [B, H, W]."""
  return dit_tokens.pack(images[:, None], PATCH)


def pixels(tokens_):
  """Images [B, H, W] of square token grids [B, n, 4]."""
  side = PATCH * round(tokens_.shape[-2]**0.5)
  return dit_tokens.unpack(tokens_, side, side, PATCH)[:, 0]


def conditions(example):
  """The Conditions of a batch of examples: one text token and a pooled text, both one-hot.

  The network's own text layers turn these into a learned token and a term of the time embedding.
  """
  prompt = Prompt(example.instruction[:, None], example.instruction)
  return Conditions(prompt, example.reference, example.img_ids, jnp.zeros((1, 3)))
