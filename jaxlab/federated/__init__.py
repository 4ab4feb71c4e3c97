"""Federated learning: clients, algorithms, aggregators, the round, the simulation loop."""
from jaxlab.federated import aggregators
from jaxlab.federated.algorithms import (
    fedadagrad,
    fedadam,
    fedams,
    fedavg,
    fedavgm,
    fedopt,
    fedprox,
    fedsgd,
    fedyogi,
)
from jaxlab.federated.client import ClientData, client_update
from jaxlab.federated.drift import feddyn, mime, mimelite, scaffold
from jaxlab.federated.local_adaptive import fedlada, fedlalr
from jaxlab.federated.round import Cohort, RoundState, distribution, federated_round
from jaxlab.federated.simulation import FederatedState, round_bytes, simulate
from jaxlab.federated.types import Aggregator, Algorithm

__all__ = [
    'Aggregator', 'Algorithm', 'ClientData', 'Cohort', 'FederatedState', 'RoundState',
    'aggregators', 'client_update', 'distribution', 'fedadagrad', 'fedadam', 'fedams', 'fedavg',
    'fedavgm', 'feddyn', 'federated_round', 'fedlada', 'fedlalr', 'fedopt', 'fedprox', 'fedsgd',
    'fedyogi', 'mime', 'mimelite', 'round_bytes', 'scaffold', 'simulate',
]
