"""Predicting pictures: files of any aspect, meshes without bridges, clear errors."""
import functools
import json
import pathlib
import tempfile

import jax
import numpy as np
import trimesh
from absl.testing import absltest
from PIL import Image

from jaxlab.config import ConfigError
from jaxlab.systems.moge2 import export, files, geometry, predict, recovery, scenes, task
from tests import conftest
from tests.systems.moge2.task_test import CONFIG

assert conftest.FLAGS


@functools.cache
def params():
  model = task.check(CONFIG)[0]
  image = np.zeros((1, 8, 8, 3), np.float32)
  made = jax.jit(functools.partial(model.init, num_tokens=1))(jax.random.key(0), image)['params']
  # A mask that is on, and noise that bends the plane.
  made['mask_head']['output']['bias'] = np.full(1, 5, np.float32)
  return made


class PredictTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_a_folder_of_sizes(self):
    for name, (h, w) in {'a.png': (16, 24), 'b.jpg': (20, 12), 'c.png': (16, 24),
                         'a.jpg': (16, 24)}.items():
      Image.fromarray(scenes.make(1, 3, h, w).image[0]).save(self.folder / name)
    (self.folder / 'notes.txt').write_text('no picture')
    config = {**CONFIG, 'predict': {**CONFIG['predict'], 'batch_size': 2, 'fov_x': 60.0}}
    written = predict.predict_input(config, params(), self.folder, self.folder / 'out')
    self.assertEqual({pathlib.Path(path).name for path in written},
                     {'a.png', 'a.jpg', 'b', 'c'})
    for path, names in written.items():
      self.assertContainsSubset(['camera.json', 'depth.png', 'depth_picture.png', 'figure.png',
                                 'geometry.npz', 'mask.png', 'mesh.glb', 'normal.png',
                                 'points.ply'], names)
      camera = json.loads(pathlib.Path(path, 'camera.json').read_text())
      self.assertAlmostEqual(camera['fov_x'], 60, places=2)
    out = self.folder / 'out' / 'b'
    found = np.load(out / 'geometry.npz')
    self.assertEqual(found['depth'].shape, (20, 12))
    np.testing.assert_allclose(files.read_depth(out / 'depth.png')[found['mask']],
                               found['depth'][found['mask']], rtol=1e-3)
    mesh = trimesh.load(out / 'mesh.glb', force='mesh', process=False)
    cloud = trimesh.load(out / 'points.ply', process=False)
    np.testing.assert_allclose(mesh.bounds, cloud.bounds, atol=1e-5)
    self.assertIsNotNone(mesh.visual.material.baseColorTexture)
    # Seen from the camera, faces are in front and turn towards it.
    self.assertTrue((mesh.vertices[:, 2] < 0).all())
    centers = mesh.triangles_center
    self.assertGreater(((mesh.face_normals * centers).sum(1) < 0).mean(), .99)

  def test_mistakes(self):
    with self.assertRaisesRegex(ConfigError, r'--input=.*: no picture there \(.bmp, '):
      predict.pictures(self.folder)
    with self.assertRaisesRegex(ConfigError, '--input=.*nothing.png: no such file'):
      predict.pictures(self.folder / 'nothing.png')

    (self.folder / 'broken.jpg').write_text('no picture')
    with self.assertRaisesRegex(ConfigError, '--input: .*broken.jpg: expected a whole picture'):
      predict.predict_input(CONFIG, params(), self.folder / 'broken.jpg', self.folder / 'out')

  def test_long_images_are_shrunk(self):
    image = np.zeros((30, 100, 3), np.uint8)
    self.assertEqual(predict.shrunk(image, 50).shape, (15, 50, 3))
    self.assertIs(predict.shrunk(image, 0), image)


class ExportTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def found(self, depth, mask):
    intrinsics = np.asarray(geometry.camera_matrix(.8, .8))
    points = np.asarray(geometry.unproject(depth, intrinsics))
    normal = np.asarray(geometry.normals_from_points(points, mask)[0])
    return recovery.Geometry(points, depth, mask, intrinsics, normal)

  def test_no_triangle_bridges_an_edge(self):
    depth = np.full((10, 12), 4., np.float32)
    depth[3:7, 4:9] = 2.
    keep = export.kept_pixels(depth, np.ones(depth.shape, bool), .04)
    points = np.asarray(geometry.unproject(depth, geometry.camera_matrix(.8, .8)))
    mesh = export.surface(points, keep)
    np.testing.assert_array_equal(np.unique(mesh.faces), np.arange(len(mesh.vertices)))
    corner = mesh.vertices[mesh.faces][..., 2]
    np.testing.assert_array_equal(corner.max(1), corner.min(1))
    self.assertEqual(set(np.unique(corner)), {2., 4.})
    whole = export.surface(points, np.ones(depth.shape, bool))
    self.assertLen(whole.faces, 2 * 9 * 11)
    corner = whole.vertices[whole.faces][..., 2]
    self.assertTrue((corner.max(1) != corner.min(1)).any())

  def test_an_empty_mask_leaves_no_mesh(self):
    depth = np.full((6, 8), np.inf, np.float32)
    names = export.write_all(self.folder / 'x', np.zeros((6, 8, 3), np.uint8),
                             self.found(depth, np.zeros((6, 8), bool)), edge_rtol=.04)
    self.assertNotIn('mesh.glb', names)
    self.assertNotIn('points.ply', names)
    self.assertTrue(np.isposinf(files.read_depth(self.folder / 'x' / 'depth.png')).all())

  def test_what_is_written_is_read_back(self):
    scene = scenes.make(1, 4, 24, 32)
    depth, mask = scene.depth[0], np.isfinite(scene.depth[0])
    found = self.found(depth, mask)._replace(intrinsics=scene.intrinsics[0])
    export.write_all(self.folder / 'y', scene.image[0], found, edge_rtol=.2)
    cloud = trimesh.load(self.folder / 'y' / 'points.ply', process=False)
    mesh = trimesh.load(self.folder / 'y' / 'mesh.glb', force='mesh', process=False)
    np.testing.assert_allclose(mesh.bounds, cloud.bounds, rtol=1e-5)
    written = export.surface(found.points, export.kept_pixels(depth, mask, .2))
    keep = np.isin(np.arange(depth.size), written.pixels).reshape(depth.shape)
    np.testing.assert_allclose(cloud.vertices, found.points[keep] * [1, -1, -1], rtol=1e-5)
    np.testing.assert_array_equal(cloud.visual.vertex_colors[:, :3], scene.image[0][keep])
    facing = (found.normal[keep] * found.points[keep]).sum(-1) < 0
    self.assertGreater(facing.mean(), .99)
    raw = cloud.metadata['_ply_raw']['vertex']['data']
    normals = np.stack([raw[name] for name in ('nx', 'ny', 'nz')], -1)
    np.testing.assert_allclose(normals, found.normal[keep] * [1, -1, -1], atol=1e-3)


if __name__ == '__main__':
  absltest.main()
