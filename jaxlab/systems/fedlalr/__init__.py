"""FedLALR (arXiv 2309.09719): the brick is `jaxlab.federated.fedlalr`, the claims are here."""
from jaxlab.systems.fedlalr import reproduce

__all__ = ['reproduce']
