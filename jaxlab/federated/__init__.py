"""Federated learning: clients, algorithms, aggregators, the round, the simulation loop."""
from jaxlab.federated import aggregators
from jaxlab.federated.algorithms import fedadam, fedavg, fedopt
from jaxlab.federated.client import ClientData, client_update
from jaxlab.federated.local_adaptive import fedlada, fedlalr
from jaxlab.federated.round import Cohort, federated_round
from jaxlab.federated.simulation import FederatedState, round_bytes, simulate
from jaxlab.federated.types import Aggregator, Algorithm

__all__ = [
    'Aggregator', 'Algorithm', 'ClientData', 'Cohort', 'FederatedState', 'aggregators',
    'client_update', 'fedadam', 'fedavg', 'federated_round', 'fedlada', 'fedlalr', 'fedopt',
    'round_bytes', 'simulate'
]
