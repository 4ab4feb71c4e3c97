"""MoGe-2 (arXiv 2507.02546): a metric point map, normals and the camera from one image."""
from jaxlab.systems.moge2 import reproduce
from jaxlab.systems.moge2.predict import predict_input
from jaxlab.systems.moge2.task import CONFIG_KEYS, check, make_task
from jaxlab.systems.moge2.weights import official_weights

__all__ = ['CONFIG_KEYS', 'check', 'make_task', 'official_weights', 'predict_input', 'reproduce']
