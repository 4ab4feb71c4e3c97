"""Well-known architectures that several systems share."""
from jaxlab.models.cnn import CNN
from jaxlab.models.lstm_lm import LSTMLM
from jaxlab.models.mlp import MLP
from jaxlab.models.resnet_gn import ResNetGN

__all__ = ['CNN', 'LSTMLM', 'MLP', 'ResNetGN']
