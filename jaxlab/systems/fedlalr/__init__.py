"""FedLALR (arXiv 2309.09719). The algorithm is `jaxlab.federated.fedlalr`; this folder measures the paper's claims."""
from jaxlab.systems.fedlalr import reproduce

__all__ = ['reproduce']
