"""Efficient-FedRec (arXiv 2109.05446): the news encoder stays on the server."""
from jaxlab.systems.efficient_fedrec import reproduce
from jaxlab.systems.efficient_fedrec.algorithm import efficient_fedrec

__all__ = ['efficient_fedrec', 'reproduce']
