"""Scenes, the builder, and files in MoGe's format."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image, PngImagePlugin

from jaxlab.config import ConfigError
from jaxlab.data import builders
from jaxlab.systems.moge2 import data, files, geometry, scenes
from tests import conftest

assert conftest.FLAGS


def write_instance(folder, scene, index=0, labels=None):
  """A folder in MoGe's format of one of the scenes."""
  folder.mkdir(parents=True)
  Image.fromarray(scene.image[index]).save(folder / 'image.png')
  depth = scene.depth[index].copy()
  depth[0, :2] = np.nan
  files.write_depth(folder / 'depth.png', depth)
  (folder / 'meta.json').write_text(json.dumps({'intrinsics': scene.intrinsics[index].tolist()}))
  if labels is not None:
    info = PngImagePlugin.PngInfo()
    info.add_text('labels', json.dumps(labels))
    Image.fromarray(scene.segments[index]).save(folder / 'segmentation.png', pnginfo=info)
  return depth


class SceneTest(absltest.TestCase):

  def test_geometry_is_exact(self):
    made = scenes.make(4, 11, 32, 48)
    for i in range(4):
      finite = np.isfinite(made.depth[i])
      points = np.asarray(geometry.unproject(made.depth[i], made.intrinsics[i]))
      toward = (made.normal[i] * np.where(finite[..., None], points, 0)).sum(-1)
      self.assertTrue((toward[finite] < 0).all())
      np.testing.assert_allclose(np.linalg.norm(made.normal[i], axis=-1)[finite], 1, rtol=1e-5)
      self.assertTrue((made.segments[i][~finite] == scenes.SKY).all())
      # On a plane the normals that differences give are the planes' own.
      found = np.asarray(geometry.target_normals(made.depth[i], made.intrinsics[i]))
      known = np.isfinite(found).all(-1)
      agree = (found * made.normal[i]).sum(-1)[known] > .99
      self.assertGreater(agree.mean(), .75)
      # The floor is one plane: all of its points lie at one height along one normal.
      floor = made.segments[i] == scenes.FLOOR
      height = points[floor] @ made.normal[i][floor][0]
      self.assertLess(np.ptp(height), 1e-3)

  def test_scenes_do_not_depend_on_their_number(self):
    few, many = scenes.make(1, 5, 8, 8), scenes.make(2, 5, 8, 8)
    for a, b in zip(few, many):
      np.testing.assert_array_equal(a[0], b[0])
    self.assertTrue((few.depth[0] != scenes.make(1, 6, 8, 8).depth[0]).any())

  def test_builder(self):
    datasets = data.load(builder_config='tiny')
    self.assertLen(datasets['train'], 8)
    example = datasets['test'][0]
    self.assertEqual(example['image'].shape, (16, 16, 3))
    self.assertEqual(data.LABELS[example['label']], 'A')
    self.assertIn('moge_scenes', builders.BUILDERS)


class FileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.scene = scenes.make(2, 3, 24, 32)

  def test_depth_round_trip(self):
    depth = write_instance(self.folder / 'a', self.scene)
    read = files.read_depth(self.folder / 'a' / 'depth.png')
    np.testing.assert_array_equal(np.isnan(read), np.isnan(depth))
    np.testing.assert_array_equal(np.isinf(read), np.isinf(depth))
    finite = np.isfinite(depth)
    low, high = depth[finite].min(), depth[finite].max()
    np.testing.assert_allclose(read[finite], depth[finite],
                               rtol=np.log(high / low) / 2 / 65533 + 1e-6)

  @parameterized.parameters(np.nan, np.inf, 2.0)
  def test_depth_of_one_kind(self, value):
    depth = np.full((4, 5), value, np.float32)
    files.write_depth(self.folder / 'd.png', depth)
    np.testing.assert_allclose(files.read_depth(self.folder / 'd.png'), depth, rtol=1e-5)

  def test_instance(self):
    depth = write_instance(self.folder / 'a', self.scene, labels={'floor': 1})
    instance = files.read_instance(self.folder / 'a')
    np.testing.assert_array_equal(instance.image, self.scene.image[0])
    np.testing.assert_array_equal(instance.segments, self.scene.segments[0])
    self.assertEqual(instance.labels, {'floor': 1})
    view = files.center_view(instance, 16, 16)
    self.assertEqual(view.depth.shape, (16, 16))
    # A square out of the middle sees the same angle above and below, and less to the sides.
    np.testing.assert_allclose(view.intrinsics[1, 1], instance.intrinsics[1, 1], rtol=1e-5)
    np.testing.assert_allclose(view.intrinsics[0, 0], instance.intrinsics[0, 0] * 32 / 24,
                               rtol=1e-5)
    middle = view.depth[8, 8]
    np.testing.assert_allclose(middle, depth[12, 16], rtol=1e-3)

  def test_folder_as_examples(self):
    root = self.folder / 'Hypersim'
    for index in range(2):
      write_instance(root / f's{index}', self.scene, index)
    (root / 's2').mkdir()
    for name in ('image.png', 'meta.json'):
      (root / 's2' / name).write_bytes((root / 's0' / name).read_bytes())
    files.write_depth(root / 's2' / 'depth.png', np.full((24, 32), np.nan))
    (root / '.index.txt').write_text('s0\ns1\ns2\n')
    dataset = data.read_folder(root, (16, 16), data.MIXTURE['Hypersim'])
    self.assertEqual([data.LABELS[dataset[i]['label']] for i in range(3)], ['A', 'A', 'invalid'])
    self.assertTrue(dataset[0]['only_known'] and dataset[0]['metric'])
    (self.folder / 'test').symlink_to(root)
    both = data.load(name='folders', folder=str(self.folder), size=(16, 16), sources=('Hypersim',))
    self.assertEqual(both['train'][0]['image'].shape, (16, 16, 3))
    self.assertLen(both['test'], 3)

  def test_mixture(self):
    self.assertLen(data.MIXTURE, 24)
    self.assertAlmostEqual(sum(source.weight for source in data.MIXTURE.values()), 103.9, places=5)
    self.assertFalse(data.MIXTURE['MegaDepth'].metric)

  def test_errors_name_the_file(self):
    write_instance(self.folder / 'a', self.scene)
    Image.fromarray(self.scene.image[0]).save(self.folder / 'a' / 'depth.png')
    with self.assertRaisesRegex(ValueError, r'a/depth.png: expected a 16-bit grey PNG, got uint8'):
      files.read_instance(self.folder / 'a')
    level = np.zeros((24, 32), np.uint16)
    Image.fromarray(level).save(self.folder / 'a' / 'depth.png')
    with self.assertRaisesRegex(ValueError, r"depth.png: text chunk 'near': expected a positive"):
      files.read_instance(self.folder / 'a')
    files.write_depth(self.folder / 'a' / 'depth.png', np.ones((3, 3)))
    message = r'depth.png: expected the size of the image, \(24, 32\)'
    with self.assertRaisesRegex(ValueError, message):
      files.read_instance(self.folder / 'a')
    files.write_depth(self.folder / 'a' / 'depth.png', np.ones((24, 32)))
    (self.folder / 'a' / 'meta.json').write_text('{"intrinsics": [1]}')
    with self.assertRaisesRegex(ValueError, r'meta.json: expected \{"intrinsics": 3 x 3 numbers\}'):
      files.read_instance(self.folder / 'a')
    for matrix in ([[0, 0, .5], [0, 1, .5], [0, 0, 1]], [[1, 0, .5], [0, 1, 1.5], [0, 0, 1]],
                   [[1, 0, .5], [0, np.nan, .5], [0, 0, 1]]):
      (self.folder / 'a' / 'meta.json').write_text(json.dumps({'intrinsics': matrix}))
      with self.assertRaisesRegex(ValueError, r'meta.json: intrinsics: expected positive focal'):
        files.read_instance(self.folder / 'a')
    with self.assertRaisesRegex(ValueError, r'b/image.jpg: expected a picture, got none'):
      files.read_instance(self.folder / 'b')
    with self.assertRaisesRegex(ValueError, r'\.index\.txt: expected a line for each instance'):
      files.read_index(self.folder)
    (self.folder / '.index.txt').write_text('a\nnot_there\n')
    with self.assertRaisesRegex(ValueError, r'index\.txt, entry 2: expected a folder, got'):
      files.read_index(self.folder)
    Image.fromarray(self.scene.segments[0]).save(self.folder / 's.png')
    with self.assertRaisesRegex(ValueError, r"s.png: text chunk 'labels': expected JSON"):
      files.read_segments(self.folder / 's.png')
    with self.assertRaisesRegex(ValueError, 'depth: expected at least 0, got -1'):
      files.encode_depth(np.array([[-1., 2.]]))

  @parameterized.parameters({'near': '-1'}, {'near': '0'}, {'far': 'nan'}, {'far': 'inf'},
                            {'unit': 'meters'})
  def test_depth_whose_numbers_are_none(self, **change):
    (name, value), = change.items()
    info = PngImagePlugin.PngInfo()
    for key, number in {'near': '1', 'far': '2', **change}.items():
      info.add_text(key, number)
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(self.folder / 'd.png', pnginfo=info)
    message = f"d.png: text chunk '{name}': expected a positive number, got '{value}'"
    with self.assertRaisesRegex(ValueError, message):
      files.read_depth(self.folder / 'd.png')

  def test_segments_of_another_size(self):
    write_instance(self.folder / 'a', self.scene, labels={'floor': 1})
    info = PngImagePlugin.PngInfo()
    info.add_text('labels', '{}')
    Image.fromarray(np.ones((48, 64), np.uint8)).save(
        self.folder / 'a' / 'segmentation.png', pnginfo=info)
    message = r'a/segmentation.png: expected the size of the image, \(24, 32\), got \(48, 64\)'
    with self.assertRaisesRegex(ValueError, message):
      files.read_instance(self.folder / 'a')

  @parameterized.parameters(
      ({'name': 'scene'}, 'data.name: expected scenes or folders, got'),
      ({'builder_config': 'dmeo'}, "data.builder_config: .*; did you mean 'demo'"),
      ({'sources': ('Hypersin',)}, "data.sources: .*; did you mean 'Hypersim'"),
      ({'size': (518,)}, r'data.size: expected a height and a width of at least 2, got \(518,\)'),
      ({'size': (0, 64)}, 'data.size: expected a height and a width'),
      ({'name': 'folders'}, "data.folder: expected a folder of data sets in MoGe's format"))
  def test_config_errors(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      data.check(**change)


class PictureTest(absltest.TestCase):
  """Pictures as people have them."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.image = scenes.make(1, 3, 24, 32).image[0]

  def read(self, name):
    return files.read_image(self.folder / name)

  def test_a_truncated_jpeg_is_an_error(self):
    path = self.folder / 'photo.jpg'
    Image.fromarray(self.image).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    message = r'photo.jpg: expected a whole picture, got .*[Tt]runcated'
    with self.assertRaisesRegex(ValueError, message):
      self.read('photo.jpg')
    path.write_text('no picture')
    with self.assertRaisesRegex(ValueError, r'photo.jpg: expected a whole picture, got cannot'):
      self.read('photo.jpg')

  def test_one_pixel_is_an_error(self):
    Image.fromarray(self.image[:1, :1]).save(self.folder / 'dot.png')
    with self.assertRaisesRegex(ValueError, r'dot.png: expected at least 2 x 2 pixels, got 1 x 1'):
      self.read('dot.png')

  def test_transparency_is_laid_on_white(self):
    alpha = np.full((24, 32, 1), 255, np.uint8)
    alpha[:12] = 0
    Image.fromarray(np.concatenate([self.image, alpha], -1)).save(self.folder / 'a.png')
    read = self.read('a.png')
    np.testing.assert_array_equal(read[:12], 255)
    np.testing.assert_array_equal(read[12:], self.image[12:])

  def test_sixteen_bits_become_eight(self):
    grey = self.image[..., 0].astype(np.uint16) * 257
    Image.fromarray(grey).save(self.folder / 'deep.png')
    np.testing.assert_array_equal(self.read('deep.png'), np.repeat(self.image[..., :1], 3, -1))

  def test_exif_rotation(self):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is to the right
    Image.fromarray(self.image).save(self.folder / 'r.png', exif=exif)
    np.testing.assert_array_equal(self.read('r.png'), np.rot90(self.image, -1))


if __name__ == '__main__':
  absltest.main()
