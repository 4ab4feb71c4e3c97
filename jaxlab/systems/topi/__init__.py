"""ToPi (arXiv 2602.01609): token pruning for in-context generation in diffusion transformers."""
from jaxlab.systems.topi import calibration, generate, reproduce
from jaxlab.systems.topi.generate import check as check_verb
from jaxlab.systems.topi.task import CONFIG_KEYS, check, make_task, official_weights

__all__ = ['CONFIG_KEYS', 'calibration', 'check', 'check_verb', 'generate', 'make_task',
           'official_weights', 'reproduce']
