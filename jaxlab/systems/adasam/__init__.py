"""AdaSAM (arXiv 2303.00565). The algorithm is `jaxlab.optim.adasam`; this folder measures the paper's claims."""
from jaxlab.systems.adasam import reproduce

__all__ = ['reproduce']
