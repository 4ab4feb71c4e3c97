"""Reusable Flax layers."""
from jaxlab.nn.conv import PatchConv, max_pool

__all__ = ['PatchConv', 'max_pool']
