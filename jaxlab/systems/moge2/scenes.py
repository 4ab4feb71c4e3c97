"""Ray-traced rooms with exact geometry in meters: closed-form intersections, no files.

A camera with a random field of view looks over a floor (a checker of half a meter, the cue of
metric scale) with two to four balls and cubes on it, in some scenes before a wall.
"""
from typing import NamedTuple

import numpy as np

SKY, FLOOR, WALL, FIRST_OBJECT = 0, 1, 2, 3  # ids in `Scene.segments`
FAR = 30.0  # meters, where the floor ends
CHECKER = 0.5
_LIGHT = np.array([0.4, -0.8, -0.45]) / np.linalg.norm([0.4, -0.8, -0.45])  # towards the light
_AMBIENT, _NOISE = 0.35, 0.01


class Scene(NamedTuple):
  """An image and what is true of it.

  Attributes:
    image: uint8 [H, W, 3].
    depth: float32 [H, W] in meters, inf in the sky.
    normal: float32 [H, W, 3] in the camera's frame, towards the camera; 0 in the sky.
    intrinsics: float32 [3, 3], normalised.
    segments: uint8 [H, W].
  """
  image: np.ndarray
  depth: np.ndarray
  normal: np.ndarray
  intrinsics: np.ndarray
  segments: np.ndarray


def _sphere(direction, center, radius):
  """(distance [H, W], inf where missed; outer normals [H, W, 3]) of rays from the origin."""
  a = np.sum(direction**2, -1)
  b = direction @ center
  root = b * b - a * (center @ center - radius**2)
  t = (b - np.sqrt(np.maximum(root, 0))) / a
  t = np.where((root > 0) & (t > 0), t, np.inf)
  point = direction * np.where(np.isfinite(t), t, 0)[..., None]
  return t, (point - center) / radius


def _box(direction, center, half):
  """As `_sphere` for an axis-aligned box."""
  with np.errstate(divide='ignore', invalid='ignore'):
    first, second = ((center + side * half) / direction for side in (-1, 1))
  enter, leave = np.minimum(first, second), np.maximum(first, second)
  axis = enter.argmax(-1)
  t = enter.max(-1)
  t = np.where((t <= leave.min(-1)) & (t > 0), t, np.inf)
  normal = -np.eye(3)[axis] * np.sign(direction)
  return t, normal


def render(rng, height=64, width=64):
  """Draws and renders a scene.

  Args:
    rng: numpy.random.Generator.
    height: pixels.
    width: pixels.
  """
  fov, pitch = np.deg2rad(rng.uniform(45, 85)), np.deg2rad(rng.uniform(-5, 15))
  above = rng.uniform(1, 2)
  fx = 0.5 / np.tan(fov / 2)
  fy = fx * width / height
  u, v = np.meshgrid((np.arange(width) + .5) / width, (np.arange(height) + .5) / height)
  rays = np.stack([(u - .5) / fx, (v - .5) / fy, np.ones_like(u)], -1)
  cos, sin = np.cos(pitch), np.sin(pitch)
  turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])  # camera to world, y down
  direction = rays @ turn.T

  colour = lambda: rng.uniform(.2, .9, 3)
  with np.errstate(divide='ignore', invalid='ignore'):
    floor = above / direction[..., 1]
  floor = np.where((direction[..., 1] > 0) & (floor < FAR), floor, np.inf)
  surfaces = [(floor, np.broadcast_to([0., -1, 0], rays.shape), (colour(), colour()), FLOOR)]
  if rng.random() < .6:
    wall = rng.uniform(5, 10) / direction[..., 2]
    above_floor = wall * direction[..., 1] < above
    surfaces.append((np.where((wall > 0) & above_floor, wall, np.inf),
                     np.broadcast_to([0., 0, -1], rays.shape), (colour(),), WALL))
  for number in range(rng.integers(2, 5)):
    z, half = rng.uniform(2, 6), rng.uniform(.2, .7)
    x = rng.uniform(-.8, .8) * z * np.tan(fov / 2)
    shape = _sphere if rng.random() < .5 else _box
    t, normal = shape(direction, np.array([x, above - half, z]), half)
    surfaces.append((t, normal, (colour(),), FIRST_OBJECT + number))

  nearest = np.argmin([t for t, *_ in surfaces], axis=0)
  depth = np.min([t for t, *_ in surfaces], axis=0)
  hit = np.isfinite(depth)
  point = direction * np.where(hit, depth, 0)[..., None]
  normal, albedo = np.zeros_like(rays), np.zeros_like(rays)
  segments = np.full(depth.shape, SKY, np.uint8)
  checker = (np.floor(point[..., 0] / CHECKER) + np.floor(point[..., 2] / CHECKER)) % 2
  for index, (_, n, colours, number) in enumerate(surfaces):
    here = hit & (nearest == index)
    normal[here] = n[here]
    albedo[here] = np.stack(colours)[checker[here].astype(int) % len(colours)]
    segments[here] = number
  shade = _AMBIENT + (1 - _AMBIENT) * np.maximum(normal @ _LIGHT, 0)
  sky = np.array([.5, .7, .95]) * (1 - .4 * v[..., None])
  image = np.where(hit[..., None], albedo * shade[..., None], sky)
  image = np.clip(image + rng.normal(0, _NOISE, image.shape), 0, 1)
  intrinsics = np.array([[fx, 0, .5], [0, fy, .5], [0, 0, 1]], np.float32)
  return Scene((255 * image + .5).astype(np.uint8), depth.astype(np.float32),
               (normal @ turn).astype(np.float32), intrinsics, segments)


def make(count, seed, height=64, width=64):
  """`count` scenes stacked into one Scene; scene i depends on `seed` and i alone."""
  made = [render(np.random.default_rng([seed, 0x5CE7E, i]), height, width) for i in range(count)]
  return Scene(*(np.stack(leaves) for leaves in zip(*made)))
