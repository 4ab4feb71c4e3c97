"""GraphFormers (arXiv 2105.02605): transformers nested with graph attention for linked texts."""
from jaxlab.systems.graphformers import reproduce
from jaxlab.systems.graphformers.inference import encode_graph
from jaxlab.systems.graphformers.model import Cascade, GraphFormer, TextOnly
from jaxlab.systems.graphformers.task import (
  CONFIG_KEYS,
  check,
  make_task,
  official_weights,
  predict_input,
)
from jaxlab.systems.graphformers.weights import params_from_torch, params_to_torch

__all__ = ['CONFIG_KEYS', 'Cascade', 'GraphFormer', 'TextOnly', 'check', 'encode_graph',
           'make_task', 'official_weights', 'params_from_torch', 'params_to_torch',
           'predict_input', 'reproduce']
