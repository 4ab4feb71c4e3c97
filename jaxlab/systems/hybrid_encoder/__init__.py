"""Hybrid Encoder (arXiv 2104.10925): ads by siamese retrieval and cached, hybrid ranking."""
from jaxlab.systems.hybrid_encoder import reproduce
from jaxlab.systems.hybrid_encoder.serving import predict_input
from jaxlab.systems.hybrid_encoder.task import CONFIG_KEYS, check, make_task

__all__ = ['CONFIG_KEYS', 'check', 'make_task', 'predict_input', 'reproduce']
