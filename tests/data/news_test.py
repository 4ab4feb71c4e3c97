"""Words, padding, samples and popularity of news data."""
import doctest
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import news, partition
from tests.golden_reader import Golden

GOLDEN = Golden('mind_dataset')
HISTORIES = news.Ragged.of([np.array([1, 2, 3]), np.array([], int), np.array([4])], np.int32)


def impressions(rows):
  """Impressions of (user, history, candidates, labels) rows."""
  return news.collect({'impression': i, 'user': u, 'time': 0, 'history': h, 'candidates': c,
                       'labels': y} for i, (u, h, c, y) in enumerate(rows))


SPLIT = impressions([(7, [1, 2, 3], [4, 5, 6, 1], [0, 1, 0, 1]), (2, [], [5, 4], [1, 0]),
                     (7, [1, 2, 3], [6], [1]), (3, [2], [1, 2], [0, 0])])


class WordsTest(parameterized.TestCase):

  def test_golden_tokens(self):
    for title, tokens in zip(GOLDEN['titles'], GOLDEN['title_tokens']):
      self.assertEqual(news.tokenize(str(title)), [t for t in tokens.tolist() if t])

  def test_vocabulary(self):
    vocabulary = news.make_vocabulary(['b a b', 'A c!', 'a b c'], 2)
    self.assertEqual(vocabulary, {'b': 1, 'a': 2, 'c': 3})
    self.assertEqual(news.encode(['a x b a', '', 'c'], vocabulary, 3).tolist(),
                     [[2, 0, 1], [0, 0, 0], [3, 0, 0]])

  def test_table(self):
    columns = {'title': ['a a', 'b'], 'abstract': ['b b b', ''], 'category': ['x', ''],
               'subcategory': ['p', 'q']}
    table = news.make_table(columns, title_length=2, abstract_length=3, min_count=2)
    self.assertEqual(table.features['title'].tolist(), [[0, 0], [1, 1], [2, 0]])
    self.assertEqual(table.features['abstract'].tolist(), [[0] * 3, [2] * 3, [0] * 3])
    self.assertEqual(table.features['category'].tolist(), [0, 1, 0])
    self.assertEqual((table.vocab_size, table.num_categories, table.num_subcategories), (3, 2, 3))
    self.assertNotIn('abstract', news.make_table(columns, min_count=1).features)

  def test_words_of_test_titles_are_not_known(self):
    columns = {'title': ['a a b', 'c c a', 'b d d'], 'category': [''] * 3, 'subcategory': [''] * 3,
               'split': ['train', 'test', 'dev']}
    table = news.make_table(columns, title_length=3, min_count=2)
    self.assertEqual(table.vocabulary, {'a': 1, 'b': 2, 'd': 3})
    self.assertEqual(table.features['title'].tolist(), [[0] * 3, [1, 1, 2], [0, 0, 1], [2, 3, 3]])

  def test_word_pieces(self):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    coder = Tokenizer(models.WordLevel({'[UNK]': 0, '[CLS]': 1, 'a': 2, 'b': 3}, '[UNK]'))
    coder.pre_tokenizer = pre_tokenizers.Whitespace()
    coder.post_processor = processors.TemplateProcessing('[CLS] $A', special_tokens=[('[CLS]', 1)])
    path = f'{self.enterContext(tempfile.TemporaryDirectory())}/tokenizer.json'
    coder.save(path)
    ids, mask = news.encode_pieces(['a', 'b a b'], path, 3)
    self.assertEqual((ids.tolist(), mask.tolist()), ([[1, 2, 0], [1, 3, 2]], [[1, 1, 0], [1] * 3]))

  def test_doctests(self):
    self.assertEqual(doctest.testmod(news).failed, 0)


class RaggedTest(parameterized.TestCase):

  @parameterized.parameters(
      ('back', 'first', [[1, 2], [0, 0], [4, 0]]), ('back', 'last', [[2, 3], [0, 0], [4, 0]]),
      ('front', 'last', [[2, 3], [0, 0], [0, 4]]))
  def test_padded(self, side, keep, expected):
    self.assertEqual(HISTORIES.padded(2, side=side, keep=keep).tolist(), expected)

  def test_padding_beyond_all_lists(self):
    self.assertEqual(HISTORIES.padded(4, side='front', value=-1)[2].tolist(), [-1, -1, -1, 4])
    empty = news.Ragged.of([np.array([], int)], np.int32)
    self.assertEqual(empty.padded(2).tolist(), [[0, 0]])


class SamplesTest(absltest.TestCase):

  def test_one_a_click(self):
    columns = news.click_samples(SPLIT, history_length=2, pad_side='front', min_pool=3)
    self.assertEqual(columns['row'].tolist(), [0, 1, 2, 3])
    self.assertEqual(columns['user'].tolist(), [7, 7, 2, 7])
    self.assertEqual(columns['click'].tolist(), [5, 1, 5, 6])
    self.assertEqual(columns['pool'].tolist(), [[4, 6, 0], [4, 6, 0], [4, 0, 0], [0, 0, 0]])
    self.assertEqual(columns['pool_size'].tolist(), [2, 2, 1, 0])
    self.assertEqual(columns['history'].tolist(), [[2, 3], [2, 3], [0, 0], [2, 3]])

  def test_clients_cover_each_click_once_and_users_without_clicks_are_none(self):
    users = news.click_samples(SPLIT, history_length=2, pad_side='back', min_pool=1)['user']
    parts = partition.make_partition({'name': 'by_user'}, users, 2, 0, users=users)
    self.assertEqual(sorted(np.concatenate(parts)), list(range((SPLIT.labels.values == 1).sum())))
    with self.assertRaisesRegex(ConfigError, 'num_clients: expected the 2 users'):
      partition.make_partition({'name': 'by_user'}, users, 3, 0, users=users)

  def test_impressions(self):
    columns = news.impression_rows(SPLIT, history_length=2, pad_side='back')
    self.assertEqual(columns['candidates'][1].tolist(), [5, 4, 0, 0])
    self.assertEqual(columns['labels'][1].tolist(), [1, 0, -1, -1])
    self.assertEqual(columns['count'].tolist(), [4, 2, 1, 2])


class PopularityTest(absltest.TestCase):

  def test_rates_and_classes(self):
    split = impressions([(0, [], list(range(1, 21)), [1] * 20)] + [
        (0, [], list(range(n, 21)), [0] * (21 - n)) for n in range(2, 21)] + [
            (0, [], [0], [1])])  # a click on a news that is not known counts for none
    rate, classes = news.popularity(split, 22)
    np.testing.assert_allclose(rate[1:21], 1 / np.arange(1, 21))
    self.assertEqual(classes[1:].tolist(), [0] * 2 + [1] * 7 + [2] * 11 + [-1] * 2)
    self.assertEqual((rate[22], classes[0]), (0, -1))


class ZzTest(absltest.TestCase):

  def test_every_array_was_compared(self):
    for title in ('titles', 'title_tokens'):
      self.assertNotIn(title, GOLDEN.unread())  # the metrics are compared by tests/metrics


if __name__ == '__main__':
  absltest.main()
