"""xDeepFM (arXiv 1803.05170): a compressed interaction network beside a DNN, and its baselines."""
from jaxlab.systems.xdeepfm import reproduce
from jaxlab.systems.xdeepfm.task import CONFIG_KEYS, check, file_dataset, make_task

__all__ = ['CONFIG_KEYS', 'check', 'file_dataset', 'make_task', 'reproduce']
