"""A corpus: windows, surfaces, and positives that are rows of it, by every rule."""
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import text
from jaxlab.data.documents import Document
from jaxlab.systems.infocse import corpus as corpus_lib
from jaxlab.systems.infocse import world
from jaxlab.systems.infocse.positives import Picker, Positives

SENTENCES = ['a b c d', 'a b c e', 'c b a d', 'a b c d', 'x y', 'z', 'y x w']
DOCUMENTS = [Document('1', tuple(SENTENCES)), Document('2', ('a b c d',)),
             Document('3', ('x', 'y'))]


def corpus(max_sentences=4):
  tokenizer = text.train_wordpiece(SENTENCES, 40)
  return corpus_lib.make_corpus(DOCUMENTS, tokenizer, max_length=8, max_sentences=max_sentences)


class CorpusTest(absltest.TestCase):

  def test_windows(self):
    made = corpus()
    np.testing.assert_array_equal(made.windows, [[0, 1, 2, 3], [4, 5, 6, -1], [7, -1, -1, -1],
                                                 [8, 9, -1, -1]])
    np.testing.assert_array_equal(made.document, [0] * 7 + [1] + [2] * 2)
    self.assertEqual(made.ids.shape[0], 10)

  def test_surfaces(self):
    similar, duplicate = corpus_lib.surfaces(corpus(), 0.5)
    # Jaccard of 'a b c d' and 'a b c e' is 3 / 5, that of any order of the same words 1.
    np.testing.assert_array_equal(similar[0], np.ones((4, 4)))
    np.testing.assert_array_equal(np.argwhere(duplicate[0] & ~np.eye(4, dtype=bool)),
                                  [[0, 3], [3, 0]])
    self.assertFalse(similar[1, 0, 1])
    self.assertFalse(similar[1, 3].any())  # padding is like nothing
    similar, _ = corpus_lib.surfaces(corpus(), 0.7)
    np.testing.assert_array_equal(similar[0, 0], [True, False, True, True])

  def test_the_demo_is_there(self):
    pairs = corpus_lib.demo_pairs()
    self.assertGreater(len(pairs), 100)
    self.assertTrue(all(a != b for a, b in pairs))
    self.assertTrue(all(len(d.sentences) > 1 for d in corpus_lib.demo_documents()))


class PickerTest(parameterized.TestCase):

  @parameterized.parameters('annotated', 'neighbour', 'random')
  def test_rules(self, name):
    made = corpus()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(10, 6)).astype(np.float32) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    picker = Picker(Positives(name, hard_negatives=name == 'annotated', min_cosine=0.0), made)
    found = [picker(vectors if name == 'annotated' else None, jax.random.key(seed))
             for seed in range(6)]
    for aux, cosine in found:
      positive = aux['positive']
      has = np.flatnonzero(positive >= 0)
      self.assertTrue(len(has))
      self.assertEqual(positive[7], -1)  # alone in its document
      window = np.array([np.argwhere(made.windows == row)[0, 0] for row in range(10)])
      np.testing.assert_array_equal(window[positive[has]], window[has])
      self.assertTrue((positive[has] != has).all())
      self.assertFalse({(0, 3), (3, 0)} & set(zip(has, positive[has])))  # duplicates
      if name == 'neighbour':
        np.testing.assert_array_equal(np.abs(positive[has] - has), 1)
        np.testing.assert_array_equal(has, np.delete(np.arange(10), 7))
      if name == 'annotated':
        np.testing.assert_allclose(cosine[has], (vectors[has] * vectors[positive[has]]).sum(1),
                                   atol=1e-5)
        self.assertTrue((aux['hard'] != aux['positive'])[aux['hard'] >= 0].all())
        self.assertEqual(aux['hard'][7], -1)
      else:
        self.assertNotIn('hard', aux)
    self.assertGreater(len({aux['positive'].tobytes() for aux, _ in found}), 1)

  def test_the_same_however_cut_into_chunks(self):
    place = world.make(0)
    ids = place.ids.reshape(-1, place.ids.shape[-1])[:240]
    made = corpus_lib.from_tokens(ids, np.ones_like(ids), np.repeat(np.arange(20), 12),
                                  max_sentences=12, ends=False)
    vectors = np.random.default_rng(0).normal(size=(240, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole, _ = Picker(Positives(), made)(vectors, jax.random.key(0))
    with mock.patch('jaxlab.systems.infocse.positives._CHUNK', 8):
      parts, _ = Picker(Positives(), made)(vectors, jax.random.key(0))
    np.testing.assert_array_equal(whole['positive'], parts['positive'])

  @parameterized.parameters(
      ({'per_cluster': 0}, 'per_cluster: expected at least 1'),
      ({'min_cosine': 1.5}, 'min_cosine: expected a cosine'),
      ({'temperature': 0.0}, 'temperature: expected more than 0'),
      ({'max_jaccard': 2.0}, 'max_jaccard: expected a number 0 to 1'),
      ({'name': 'random', 'hard_negatives': True}, 'hard_negatives: expected False'))
  def test_bad_settings(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      Positives(**change)


class WorldTest(absltest.TestCase):

  def test_kinds(self):
    place = world.make(3)
    kind = place.kind
    np.testing.assert_array_equal(kind, np.swapaxes(kind, 1, 2))
    np.testing.assert_array_equal(kind[:, np.arange(12), np.arange(12)], world.TRIVIAL)
    same = place.meaning[:, :, None] == place.meaning[:, None]
    self.assertTrue(same[(kind == world.RIGHT)].all())
    self.assertFalse(same[(kind == world.COARSE) | (kind == world.FALSE)].any())
    self.assertAlmostEqual((kind == world.RIGHT).sum() / (12 * 11 * 150), 2 / 11, delta=0.002)
    d, a, b = np.argwhere(kind == world.COARSE)[0]
    self.assertEqual(place.ids[d, a, 3], place.ids[d, b, 3])
    self.assertLess(place.ids.max(), world.VOCABULARY)
    self.assertFalse((world.make(4).ids == place.ids).all())


if __name__ == '__main__':
  absltest.main()
