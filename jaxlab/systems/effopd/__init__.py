"""EffOPD (arXiv 2605.11739): on-policy distillation, what it does to weights, and its acceleration.
"""
from jaxlab.systems.effopd import reproduce
from jaxlab.systems.effopd.experiment import CONFIG_KEYS, check, make_hook, make_task
from jaxlab.systems.effopd.loading import official_weights

__all__ = ['CONFIG_KEYS', 'check', 'make_hook', 'make_task', 'official_weights', 'reproduce']
