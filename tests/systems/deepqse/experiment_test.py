"""The small models: their start, what a blank query does, worlds, the claims' verdicts."""
import functools
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.systems.deepqse import experiment, formats, frozen, reproduce, small
from jaxlab.train import claims

PAGES = [tuple(f'word{7 * p + i} and some more word{p + i}' for i in range(6)) for p in range(3)]


def encode(texts, length):
  """A vector a word, by its spelling."""
  tokens = np.zeros((len(texts), length, 12), np.float32)
  mask = np.zeros((len(texts), length), bool)
  for i, text in enumerate(texts):
    for j, word in enumerate(text.split()[:length]):
      seed = int.from_bytes(word.encode(), 'big') % 2**32
      tokens[i, j], mask[i, j] = np.random.default_rng(seed).standard_normal(12), True
  vectors = tokens.sum(1)
  return frozen.Encoded(tokens, mask, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@functools.cache
def world():
  splits = {split: [formats.Example(page[i], 't', page, i) for page in PAGES[:2] for i in range(4)]
            for split in ('train', 'dev', 'test')}
  with mock.patch.multiple(experiment, QUERY=5, SENTENCE=6, PSEUDO=8):
    return experiment.build(frozen.Frozen('spelling', encode), splits, 0)


class WorldTest(absltest.TestCase):

  def test_build(self):
    arrays, w = world().arrays, world()
    self.assertEqual(arrays['page'].shape, (8 + 24, 6))
    self.assertEqual(len(w.pseudo) + len(w.train), 16)
    gold = arrays['page'][np.arange(32), arrays['label']]
    self.assertTrue((arrays['page'][np.arange(32)[:, None], arrays['hard']] != gold[:, None]).all())
    test = w.parts['test']  # a query that is its sentence
    np.testing.assert_allclose(arrays['cosine'][test, arrays['label'][test]], 1, atol=1e-3)
    self.assertEqual(w.overlap['BM25'].shape, (32, 6))
    wrong = np.take_along_axis(arrays['cosine'], arrays['hard'], 1)
    self.assertTrue((np.diff(wrong, axis=1) <= 0).all())


class SmallTest(parameterized.TestCase):

  @parameterized.parameters('joint', 'fine')
  @mock.patch.object(small, 'LAYERS', 1)  # to compile fast
  def test_gradients_start_and_blank_queries(self, arm):
    with mock.patch.object(experiment, 'QUERY', 5):
      batches = [experiment.gather(world().arrays, world().parts['test'][[0, 1]],
                                   np.arange(6)[None].repeat(2, 0), blank)
                 for blank in (False, True)]
    task = small.make_task(small.Small(arm, 7), batches[0])
    params = jax.jit(task.init)(jax.random.key(0))['params']

    @jax.jit
    def run(params, batch):
      loss = lambda params: task.loss({'params': params}, batch, None).values.sum()
      return jax.grad(loss)(params), task.predict({'params': params}, batch, None)

    gradient, seen = run(params, batches[0])
    _, blank = run(params, batches[1])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      # The fine model ends with its towers' keys and values; nothing is read behind these.
      unread = arm == 'fine' and 'sentence_tower' in name and f'layers_{small.LAYERS - 1}' in name
      if not unread and "'key']['bias']" not in name and "'scorer_out']['bias']" not in name:
        self.assertTrue(np.any(leaf), name)
    # Two questions on one page: without them it is ranked once.
    self.assertGreater(np.abs(seen[0] - seen[1]).max(), 1e-2)
    np.testing.assert_allclose(blank[0], blank[1], atol=1e-5)
    attention = params['tower']['layers_0']['attention']
    np.testing.assert_array_equal(attention['query']['kernel'], attention['key']['kernel'])
    self.assertFalse(np.any(attention['key']['kernel'][-small.SEGMENT:]))
    if arm == 'fine':
      coarse = {name: params[name] for name in ('tower', 'ranker', 'prior')}
      started = small.start_from(coarse, params)
      self.assertIs(started['sentence_tower'], params['tower'])
      self.assertIs(small.start_from({}, params)['sentence_tower'], params['sentence_tower'])


class ClaimsTest(absltest.TestCase):

  def judge(self, ablate=False, **change):
    hit = {'DeepQSE': 0.73, 'coarse alone': 0.71, 'Efficient-DeepQSE': 0.70,
           'DeepQSE, blank query': 0.05, **change}
    hit = {name: np.full(reproduce.RUNS, value) + [0.01, 0, -0.01] for name, value in hit.items()}
    overlap = {'frozen cosine': 0.72, 'BM25': 0.78, 'TF-IDF': 0.7, 'cosine + .05 BM25': 0.83,
               'first sentences in order': 0.09}
    seconds = {'joint': 0.07, 'cache': 0.03, 'two stages': 0.01}
    table = reproduce._table(hit, overlap, np.full(reproduce.RUNS, 0.96), seconds, 'x', ablate)
    return [claim.status for claim in table]

  def test_verdicts(self):
    holds, fails = claims.HOLDS, claims.FAILS
    self.assertEqual(self.judge()[:3], [holds, holds, holds])
    self.assertEqual(self.judge(DeepQSE=0.69)[:2], [fails, holds])
    self.assertEqual(self.judge(**{'Efficient-DeepQSE': 0.68})[:2], [holds, fails])
    self.assertEqual(set(self.judge()[3:]), {claims.NOT_JUDGED})
    self.assertEqual(self.judge(ablate=True, **{'Efficient-DeepQSE': 0.06})[:3], [fails] * 3)

  def test_kept(self):
    scores = np.array([[[1.0, 3.0, 3.0, 9.0] + [0.0] * 8]])
    kept = reproduce.keep(scores, np.array([[1, 1, 1, 0] + [1] * 8]))
    self.assertEqual(kept[0, 0].tolist(), [1, 2, 0, 4, 5, 6, 7, 8])


if __name__ == '__main__':
  absltest.main()
