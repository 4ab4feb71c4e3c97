"""FedRA (arXiv 2205.10848): the brick is `jaxlab.federated.aggregators.fedra`; the claims here."""
from jaxlab.systems.fedra import reproduce

__all__ = ['reproduce']
