"""xDeepFM (arXiv 1803.05170): a compressed interaction network beside a DNN, and its baselines."""
from jaxlab.systems.xdeepfm import reproduce
from jaxlab.systems.xdeepfm.task import CONFIG_KEYS, check, file_dataset, make_task
from jaxlab.systems.xdeepfm.weights import official_weights

__all__ = ['CONFIG_KEYS', 'check', 'file_dataset', 'make_task', 'official_weights', 'reproduce']
