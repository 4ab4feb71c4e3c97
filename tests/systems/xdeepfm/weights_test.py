"""`official_weights`: DeepCTR's names for a run on a file of named columns."""
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import systems
from jaxlab.config import ConfigError
from jaxlab.systems import xdeepfm
from jaxlab.systems.xdeepfm import formats

CIN = {'layer_sizes': (4, 2), 'use_bias': True}


def make_config(file, model=None, **data):
  return {'data': {'name': 'criteo', 'file': str(file), 'min_count': 2, **data}, 'model': {
      'name': 'xdeepfm', 'dim': 3, 'cin': CIN, 'dnn': {'features': (5,)}, **(model or {})}}


class OfficialWeightsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.file = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory())) / 'log.txt'
    rng = np.random.default_rng(0)
    pool = ['05db9164', '68fd1e64', 'deadbeef', '']
    cls.file.write_text(''.join('\t'.join(
        [str(i % 2), *(str(x) for x in rng.integers(-1, 9, 13)), *rng.choice(pool, 26)]) + '\n'
                                for i in range(60)))

  @parameterized.parameters({}, {'integers': 'dense'}, {'integers': 'dense', 'buckets': 4})
  def test_round_trip(self, **data):
    config = make_config(self.file, **data)
    problem = xdeepfm.make_task(config)
    params = problem.init(jax.random.key(0))['params']
    params = jax.tree.map(lambda x: np.asarray(x) + np.float32(.5), params)
    for part in ('cin', 'dnn'):
      params[part]['out']['bias'] *= 0
    to_params, to_tensors = xdeepfm.official_weights(
        config, jax.eval_shape(problem.init, jax.random.key(0))['params'])
    state = to_tensors(params)
    dense = data.get('integers') == 'dense'
    names = formats.CATEGORIES if dense else formats.CRITEO
    self.assertEqual({name for name in state if name.startswith('embedding_dict')},
                     {f'embedding_dict.{name}.weight' for name in names})
    # Each field has the rows of its own ids, in the order of ours.
    columns = next(iter(problem.dataset('train').batch(40)))
    ids = columns['ids']
    field = len(names) - 2
    start = sum(len(state[f'embedding_dict.{name}.weight']) for name in names[:field])
    table = state[f'embedding_dict.{names[field]}.weight']
    self.assertTrue(((ids[:, field] >= start) & (ids[:, field] < start + len(table))).all())
    np.testing.assert_array_equal(
        params['embedding']['table']['embedding'][ids[:, field]], table[ids[:, field] - start])
    self.assertEqual('linear_model.weight' in state, dense)
    jax.tree.map(np.testing.assert_array_equal, to_params(state), params)
    with self.assertRaisesRegex(ConfigError, 'out.bias is missing'):
      to_params({name: x for name, x in state.items() if name != 'out.bias'})

  @parameterized.parameters(
      ({'data': {'integers': 'vector'}}, "data.integers: expected 'bucket' or 'dense'"),
      ({'model': {'cin': {'layer_sizes': (4,)}}}, 'model.cin.use_bias: expected True, got False'),
      ({'model': {'name': 'deepfm', 'cin': None}}, 'model.parts: expected linear, cin and dnn'))
  def test_what_has_no_official_names(self, change, message):
    model = {**CIN_MODEL, **change.get('model', {})}
    config = make_config(self.file, **change.get('data', {}))
    config['model'] = {key: value for key, value in model.items() if value is not None}
    template = jax.eval_shape(xdeepfm.make_task(config).init, jax.random.key(0))['params']
    with self.assertRaisesRegex(ConfigError, message):
      xdeepfm.official_weights(config, template)

  def test_columns_without_names(self):
    with self.assertRaisesRegex(ConfigError, 'data.name: expected criteo or avazu'):
      xdeepfm.official_weights({'data': {'name': 'libffm'}}, {})

  def test_the_command_finds_them(self):
    self.assertIs(systems.load('xdeepfm').official_weights, xdeepfm.official_weights)


CIN_MODEL = make_config('')['model']


if __name__ == '__main__':
  absltest.main()
