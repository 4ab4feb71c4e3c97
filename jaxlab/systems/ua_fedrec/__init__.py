"""UA-FedRec (arXiv 2202.06701): an untargeted attack on federated news recommendation."""
from jaxlab.systems.ua_fedrec import reproduce
from jaxlab.systems.ua_fedrec.attack import Strength, own_clients, ua_fedrec
from jaxlab.systems.ua_fedrec.task import CONFIG_KEYS, check, federated_config, make_task

__all__ = ['CONFIG_KEYS', 'Strength', 'check', 'federated_config', 'make_task', 'own_clients',
           'reproduce', 'ua_fedrec']
