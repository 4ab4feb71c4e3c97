"""Efficient-FedRec (arXiv 2109.05446): the news encoder stays on the server."""
from jaxlab.systems.efficient_fedrec import reproduce
from jaxlab.systems.efficient_fedrec.algorithm import efficient_fedrec
from jaxlab.systems.efficient_fedrec.task import CONFIG_KEYS, check, federated_config, make_task

__all__ = ['CONFIG_KEYS', 'check', 'efficient_fedrec', 'federated_config', 'make_task', 'reproduce']
