"""Attacks of malicious clients: pure functions over the stacked messages of a round."""
from jaxlab.federated.attacks.crafted import from_update
from jaxlab.federated.attacks.labels import label_flip
from jaxlab.federated.attacks.optimized import dyn_opt, stat_opt
from jaxlab.federated.attacks.quantities import QUANTITIES, enhanced
from jaxlab.federated.attacks.registry import (
    ATTACKS,
    HONEST_MESSAGES,
    make_attack,
    malicious_clients,
    poisoned,
)
from jaxlab.federated.attacks.replacement import model_replacement, replacement
from jaxlab.federated.attacks.simple import (
    gaussian,
    gaussian_moments,
    honest,
    lie,
    same_value,
    sign_flip,
    sign_std,
)

__all__ = [
    'ATTACKS', 'HONEST_MESSAGES', 'QUANTITIES', 'dyn_opt', 'enhanced', 'from_update', 'gaussian',
    'gaussian_moments', 'honest', 'label_flip', 'lie', 'make_attack', 'malicious_clients',
    'model_replacement', 'poisoned', 'replacement', 'same_value', 'sign_flip', 'sign_std',
    'stat_opt',
]
