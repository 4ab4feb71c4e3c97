"""Files of a predicted geometry: arrays, camera, pictures, a point cloud, a textured mesh.

Meshes and clouds have the axes of OpenGL and glTF: y up, z towards the viewer. Pillow and trimesh
are imported when they are used.
"""
import json
from typing import NamedTuple

import numpy as np

from jaxlab.systems.moge2 import files, geometry

_FLIP = np.array([1, -1, -1], np.float32)


class Surface(NamedTuple):
  """A mesh over the pixels of an image.

  Attributes:
    vertices: float32 [V, 3], as they are given.
    faces: int32 [F, 3], counter-clockwise from the camera in the axes of OpenGL.
    pixels: int32 [V], the flat pixel of each vertex.
  """
  vertices: np.ndarray
  faces: np.ndarray
  pixels: np.ndarray


def surface(points, keep):
  """Two triangles for each 2 x 2 pixels that are all kept; a pixel of no triangle is no vertex.

  Args:
    points: [H, W, 3].
    keep: bool [H, W].
  """
  keep = np.asarray(keep)
  quads = keep[:-1, :-1] & keep[1:, :-1] & keep[1:, 1:] & keep[:-1, 1:]
  used = np.zeros_like(keep)
  for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
    used[i:i + quads.shape[0], j:j + quads.shape[1]] |= quads
  pixels = np.flatnonzero(used)
  number = np.full(keep.size, -1, np.int32)
  number[pixels] = np.arange(len(pixels))
  number = number.reshape(keep.shape)
  a, b, c, d = number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]
  faces = np.concatenate([np.stack([x[quads], y[quads], z[quads]], axis=1)
                          for x, y, z in ((a, b, c), (a, c, d))])
  return Surface(points.reshape(-1, 3)[pixels].astype(np.float32), faces, pixels.astype(np.int32))


def kept_pixels(depth, mask, rtol):
  """Bool [H, W]: valid pixels that are not at an edge of depth."""
  filled = np.where(mask, depth, np.inf).astype(np.float32)
  return mask & ~np.asarray(geometry.depth_edges(filled, rtol=rtol))


def write_cloud(path, points, normals, colours):
  """Writes a PLY of points [N, 3] in OpenCV's axes, with normals and uint8 colours [N, 3]."""
  import trimesh
  cloud = trimesh.Trimesh(points * _FLIP, vertex_normals=normals * _FLIP,
                          vertex_colors=colours, process=False)
  path.write_bytes(trimesh.exchange.ply.export_ply(cloud, vertex_normal=True))


def write_mesh(path, mesh, image):
  """Writes a GLB of a Surface in OpenCV's axes with the image [H, W, 3] as its texture."""
  import trimesh
  from PIL import Image
  h, w = image.shape[:2]
  uv = geometry.pixel_uv(h, w).reshape(-1, 2)[mesh.pixels]
  material = trimesh.visual.material.PBRMaterial(
      baseColorTexture=Image.fromarray(image), metallicFactor=0.0, roughnessFactor=1.0)
  visual = trimesh.visual.TextureVisuals(uv=np.stack([uv[:, 0], 1 - uv[:, 1]], 1),
                                         material=material)
  path.write_bytes(trimesh.Trimesh(mesh.vertices * _FLIP, mesh.faces, visual=visual,
                                   process=False).export(file_type='glb'))


def depth_picture(depth, mask):
  """Colours uint8 [H, W, 3] of the inverse depth between its 1 and 99 % quantiles."""
  import matplotlib
  inverse = np.where(mask, 1 / np.where(mask, depth, 1.0), 0.0)
  low, high = np.quantile(inverse[mask], (.01, .99)) if mask.any() else (0.0, 1.0)
  colours = matplotlib.colormaps['turbo'](np.clip((inverse - low) / max(high - low, 1e-9), 0, 1))
  return (255 * colours[..., :3] * mask[..., None]).astype(np.uint8)


def normal_picture(normal, mask):
  """Colours uint8 [H, W, 3] of normals: x to the right red, y up green, to the camera blue."""
  return ((normal * _FLIP * .5 + .5) * 255 * mask[..., None]).clip(0, 255).astype(np.uint8)


def write_all(folder, image, found, *, edge_rtol):
  """Writes everything about one image.

  Args:
    folder: pathlib.Path; it is made.
    image: uint8 [H, W, 3].
    found: recovery.Geometry of the image, without a batch axis, NumPy.
    edge_rtol: relative depth step that cuts the mesh.

  Returns:
    Names of the files.
  """
  from PIL import Image
  folder.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(folder / 'geometry.npz', points=found.points, depth=found.depth,
                      mask=found.mask, intrinsics=found.intrinsics, normal=found.normal)
  files.write_depth(folder / 'depth.png', found.depth)
  camera = {'intrinsics': np.round(found.intrinsics.astype(float), 8).tolist(),
            'fov_x': round(float(geometry.fov_of(found.intrinsics)), 4)}
  (folder / 'camera.json').write_text(json.dumps(camera, indent=1) + '\n', encoding='utf-8')
  pictures = {'depth_picture': depth_picture(found.depth, found.mask),
              'normal': normal_picture(found.normal, found.mask),
              'mask': np.repeat((255 * found.mask).astype(np.uint8)[..., None], 3, -1)}
  for name, picture in pictures.items():
    Image.fromarray(picture).save(folder / f'{name}.png')
  grid = np.concatenate([image, *pictures.values()], axis=0 if image.shape[1] > image.shape[0]
                        else 1)
  Image.fromarray(grid).save(folder / 'figure.png')
  keep = kept_pixels(found.depth, found.mask, edge_rtol)
  mesh = surface(np.where(found.mask[..., None], found.points, 0), keep)
  if len(mesh.faces):
    flat = lambda x: x.reshape(-1, 3)[mesh.pixels]
    write_cloud(folder / 'points.ply', mesh.vertices, flat(found.normal), flat(image))
    write_mesh(folder / 'mesh.glb', mesh, image)
  return sorted(path.name for path in folder.iterdir())
