"""Parameters as files and back; every mistake is named."""
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import train
from jaxlab.config import ConfigError
from jaxlab.models import pretrained
from jaxlab.train import checkpoints, evaluation, export
from tests import toy

CONFIG = {'batch_size': 8, 'steps': 4, 'optimizer': {'name': 'sgd', 'learning_rate': 0.1}}


class ExportTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.task = toy.softmax_task()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.state = train.fit(self.task, CONFIG, workdir=self.folder / 'run')
    self.template = jax.eval_shape(self.task.init, jax.random.key(0))['params']

  def convert(self, path, directory):
    export.save_params(export.unnamed(pretrained.read_tensors(path), self.template, str(path)),
                       directory)

  @parameterized.parameters('params.npz', 'params.safetensors', 'model.safetensors')
  def test_there_and_back(self, name):
    path = self.folder / 'weights' / name
    path.parent.mkdir()
    tensors = export.named(jax.tree.map(np.asarray, self.state.params))
    self.assertEqual(sorted(tensors), ['b', 'w'])
    pretrained.write_tensors(path, tensors)
    self.convert(path.parent if name == 'model.safetensors' else path, self.folder / 'new')
    toy.assert_trees_equal(checkpoints.load_collection(self.folder / 'new', self.template),
                           jax.tree.map(np.asarray, self.state.params))
    frozen = {**CONFIG, 'steps': 1, 'optimizer': {'name': 'sgd', 'learning_rate': 0.0},
              'init_from': str(self.folder / 'new')}
    toy.assert_trees_equal(train.fit(self.task, frozen).params, self.state.params)
    self.assertEqual(
        evaluation.evaluate_workdir(self.task, CONFIG, self.folder / 'new', 'test'),
        evaluation.evaluate_workdir(self.task, CONFIG, self.folder / 'run', 'test'))

  def test_predictions_are_in_the_order_of_the_split(self):
    outputs = evaluation.predict_workdir(self.task, CONFIG, self.folder / 'run', 'test')
    columns = toy.columns(seed=1)
    w, b = (np.asarray(self.state.params[name]) for name in 'wb')
    expected = columns['x'] @ w + b
    self.assertEqual(list(outputs), ['output'])
    np.testing.assert_allclose(outputs['output'], expected, rtol=1e-5, atol=1e-5)

  @parameterized.parameters(
      ({'w': np.zeros((4, 3))}, 'b is missing'),
      ({'w': np.zeros((4, 3)), 'b': np.zeros(3), 'c': np.zeros(1)}, 'c is left over'),
      ({'w': np.zeros((3, 4)), 'b': np.zeros(3)}, r'w has shape \(3, 4\), expected \(4, 3\)'))
  def test_other_parameters(self, arrays, message):
    np.savez(self.folder / 'wrong.npz', **arrays)
    with self.assertRaisesRegex(ConfigError, message):
      self.convert(self.folder / 'wrong.npz', self.folder / 'new')
    self.assertFalse((self.folder / 'new').exists())

  def test_broken_files_and_folders(self):
    for name in ('broken.npz', 'broken.safetensors'):
      (self.folder / name).write_bytes(b'PK nothing')
    (self.folder / 'empty').mkdir()
    for name, message in {
        'broken.npz': 'broken.npz: cannot be read', 'absent.npz': 'absent.npz: cannot be read',
        'params.txt': '--input: expected a folder or a file ending in .npz or',
        'empty': 'empty: expected model.safetensors or'}.items():
      with self.assertRaisesRegex(ConfigError, message):
        pretrained.read_tensors(self.folder / name)
    with self.assertRaisesRegex(ConfigError, '--output: expected a file ending in .npz or'):
      pretrained.write_tensors(self.folder / 'params.txt', {})
    with self.assertRaisesRegex(ConfigError, '--workdir: expected a folder without checkpoints'):
      export.save_params(self.state.params, self.folder / 'run')


if __name__ == '__main__':
  absltest.main()
