"""KRED (arXiv 1910.11494): document vectors enhanced by knowledge, for five tasks of news."""
from jaxlab.systems.kred import reproduce
from jaxlab.systems.kred.task import CONFIG_KEYS, check, file_dataset, make_task, predict_input
from jaxlab.systems.kred.weights import official_weights

__all__ = ['CONFIG_KEYS', 'check', 'file_dataset', 'make_task', 'official_weights',
           'predict_input', 'reproduce']
