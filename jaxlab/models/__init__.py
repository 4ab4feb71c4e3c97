"""Well-known architectures that several systems share."""
from jaxlab.models.cnn import CNN
from jaxlab.models.mlp import MLP

__all__ = ['CNN', 'MLP']
