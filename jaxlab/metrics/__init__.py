"""Pure metrics over NumPy arrays of a whole split."""
from jaxlab.metrics.classification import accuracy, cross_entropy

__all__ = ['accuracy', 'cross_entropy']
