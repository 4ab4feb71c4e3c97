"""Federated learning: clients, algorithms, aggregators, the round, the simulation loop."""
from jaxlab.federated import aggregators, attacks
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
from jaxlab.federated.round import (
    Cohort,
    RoundState,
    Threat,
    distribution,
    federated_round,
)
from jaxlab.federated.simulation import FederatedState, round_bytes, simulate
from jaxlab.federated.types import Aggregator, Algorithm, Attack

__all__ = [
    'Aggregator', 'Algorithm', 'Attack', 'ClientData', 'Cohort', 'FederatedState', 'RoundState',
    'Threat', 'aggregators', 'attacks', 'client_update', 'distribution', 'fedadagrad', 'fedadam',
    'fedams', 'fedavg',
    'fedavgm', 'feddyn', 'federated_round', 'fedlada', 'fedlalr', 'fedopt', 'fedprox', 'fedsgd',
    'fedyogi', 'mime', 'mimelite', 'round_bytes', 'scaffold', 'simulate',
]
