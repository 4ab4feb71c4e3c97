"""AdaSAM (arXiv 2303.00565): the brick is `jaxlab.optim.adasam`, the claims are here."""
from jaxlab.systems.adasam import reproduce

__all__ = ['reproduce']
