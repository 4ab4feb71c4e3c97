"""Pages as a TFDS data set of a folder, and as pieces of ids."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxlab import systems
from jaxlab.config import ConfigError
from jaxlab.data import builders, text
from jaxlab.systems.deepqse import data, formats
from tests import conftest

assert conftest.FLAGS
EXAMPLES = [formats.Example('two words', 'a title', ('One.', 'Two words here.', 'Three.'), 1),
            formats.Example('drei', 'Titel', ('Eins.', 'Zwei.', 'Drei.'), 2, 'de')]


class DataTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    for file in data.FILES.values():
      formats.write_pages(self.folder / file, EXAMPLES)

  def config(self, **options):
    return data.DataConfig(folder=str(self.folder), max_query=3, max_title=2, max_sentence=4,
                           vocab_size=60, **options)

  def test_a_folder(self):
    self.assertEqual(data.read(self.config())['validation'], EXAMPLES)
    with self.assertLogs(level='WARNING') as logs:
      self.assertEqual([e.label for e in data.read(self.config(max_sentences=2))['train']], [1])
    self.assertIn('dropped 1 with late label', logs.output[0])
    with self.assertRaisesRegex(ConfigError, 'examples with a gold sentence among the first 1'):
      data.read(self.config(max_sentences=1))
    with self.assertRaisesRegex(ConfigError, "data: no split 'trian'"):
      data.read(self.config(train='trian'))
    formats.write_pages(self.folder / 'train.tsv', EXAMPLES[:1])  # another data set now
    self.assertEqual(data.read(self.config())['train'], EXAMPLES[:1])
    (self.folder / 'train.tsv').write_bytes(b'a\tb\n')
    with self.assertRaisesRegex(ValueError, 'train.tsv: line 1: expected 8 columns'):
      data.read(self.config())

  def test_the_task(self):
    config = {'task': 'deepqse', 'model': {'name': 'bert-tiny', 'kind': 'joint'},
              'data': {'folder': str(self.folder), 'max_sentences': 4, 'vocab_size': 60}}
    task = systems.make_task(config)
    row = task.dataset('train')[1]
    self.assertEqual((row['label'], row['lang']), (2, 0))  # 'de' before 'en'
    self.assertEqual(row['sentences'].shape, (4, 65))

  def test_pieces(self):
    tokenizer = data.make_tokenizer(self.config(), None, EXAMPLES)
    columns = data.columns(tokenizer, self.config(max_sentences=4), EXAMPLES, ('de', 'en'))
    self.assertEqual(columns['query'].shape, (2, 4))
    self.assertEqual(columns['sentences'].shape, (2, 4, 5))
    np.testing.assert_array_equal(columns['lang'], [1, 0])
    np.testing.assert_array_equal((columns['sentences'] > 0).any(-1), [[1, 1, 1, 0]] * 2)
    separator = tokenizer.token_to_id('[SEP]')
    np.testing.assert_array_equal((columns['sentences'] == separator).sum(-1), [[1, 1, 1, 0]] * 2)
    self.assertNotIn(data.cls_id(tokenizer), columns['sentences'])
    self.assertEqual(data.piece(tokenizer, [''], 3).tolist(),
                     [[separator] + [text.pad_id(tokenizer)] * 3])

  def test_the_demo_is_registered(self):
    self.assertIn('snippets', builders.BUILDERS)
    self.assertIn('demo', data.Snippets.builder_configs)


if __name__ == '__main__':
  absltest.main()
