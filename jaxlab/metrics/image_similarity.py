"""Similarity of images: PSNR, SSIM, relative L2. NumPy, one value an image."""
import numpy as np


def relative_l2(x, reference):
  """||x - reference|| / ||reference|| of each row: [B, ...] -> [B]."""
  flat = lambda a: np.asarray(a, np.float64).reshape(len(a), -1)
  return (np.linalg.norm(flat(x) - flat(reference), axis=1) /
          np.linalg.norm(flat(reference), axis=1))


def psnr(x, reference, data_range):
  """Peak signal-to-noise ratio in dB of each image, infinite for equal ones: [B, ...] -> [B].

  Args:
    x: images.
    reference: likewise.
    data_range: largest minus smallest possible pixel.
  """
  error = np.asarray(x, np.float64) - np.asarray(reference, np.float64)
  mse = np.mean(np.square(error).reshape(len(error), -1), axis=1)
  with np.errstate(divide='ignore'):
    return 10 * np.log10(data_range**2 / mse)


def ssim(x, reference, data_range, window=7):
  """Structural similarity of each image (Wang et al. 2004), uniform windows: [B, H, W, ...] -> [B].

  Means, variances and covariances are those of all windows inside the image, with the constants
  (.01 range)^2 and (.03 range)^2; channels are averaged.

  Args:
    x: images.
    reference: likewise.
    data_range: largest minus smallest possible pixel.
    window: side of a window, at most H and W.

  Raises:
    ValueError: the window is larger than the image.
  """
  x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
  if window > min(x.shape[1:3]):
    raise ValueError(f'window: expected at most {min(x.shape[1:3])}, got {window}')

  def mean(a):
    views = np.lib.stride_tricks.sliding_window_view(a, (window, window), axis=(1, 2))
    return views.mean((-2, -1))

  unbias = window**2 / (window**2 - 1)
  mx, my = mean(x), mean(reference)
  vx, vy = (unbias * (mean(a * a) - m * m) for a, m in ((x, mx), (reference, my)))
  covariance = unbias * (mean(x * reference) - mx * my)
  c1, c2 = (0.01 * data_range)**2, (0.03 * data_range)**2
  values = ((2 * mx * my + c1) * (2 * covariance + c2) /
            ((mx**2 + my**2 + c1) * (vx + vy + c2)))
  return values.reshape(len(x), -1).mean(1)
