"""VLA-JEPA (arXiv 2602.10098): a vision-language-action policy with a latent world model."""
from jaxlab.systems.vla_jepa import evaluate, reproduce
from jaxlab.systems.vla_jepa.experiment import CONFIG_KEYS
from jaxlab.systems.vla_jepa.task import check, make_task
from jaxlab.systems.vla_jepa.weights import official_weights

__all__ = ['CONFIG_KEYS', 'check', 'evaluate', 'make_task', 'official_weights', 'reproduce']
