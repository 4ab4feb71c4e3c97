"""PSNR, SSIM and relative L2 of images."""
import numpy as np
from absl.testing import absltest

from jaxlab.metrics import image_similarity


class ImageSimilarityTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.x = np.random.default_rng(0).uniform(-1, 1, (3, 9, 10))

  def test_equal_images(self):
    self.assertTrue(np.isinf(image_similarity.psnr(self.x, self.x, 2)).all())
    np.testing.assert_allclose(image_similarity.ssim(self.x, self.x, 2), 1)
    np.testing.assert_array_equal(image_similarity.relative_l2(self.x, self.x), 0)

  def test_closed_forms(self):
    np.testing.assert_allclose(image_similarity.psnr(self.x + .2, self.x, 2), 20)
    np.testing.assert_allclose(image_similarity.relative_l2(1.5 * self.x, self.x), .5)
    # One window, constant images: only the term of the means is left.
    a, b, c1 = .2, .6, .02**2
    value = image_similarity.ssim(np.full((1, 7, 7), a), np.full((1, 7, 7), b), 2)
    np.testing.assert_allclose(value, (2 * a * b + c1) / (a * a + b * b + c1))

  def test_ssim_against_loops(self):
    y = np.random.default_rng(1).uniform(-1, 1, self.x.shape)
    values = []
    for i in range(9 - 4):
      for j in range(10 - 4):
        p, q = self.x[0, i:i + 5, j:j + 5].ravel(), y[0, i:i + 5, j:j + 5].ravel()
        c = np.cov(p, q)
        c1, c2 = .02**2, .06**2
        values.append((2 * p.mean() * q.mean() + c1) * (2 * c[0, 1] + c2) /
                      ((p.mean()**2 + q.mean()**2 + c1) * (c[0, 0] + c[1, 1] + c2)))
    self.assertAlmostEqual(image_similarity.ssim(self.x, y, 2, 5)[0], np.mean(values))

  def test_a_window_beyond_the_image(self):
    with self.assertRaisesRegex(ValueError, 'window: expected at most 9, got 11'):
      image_similarity.ssim(self.x, self.x, 2, 11)


if __name__ == '__main__':
  absltest.main()
