"""Aggregators: what becomes of the clients' messages. Each is a pure function over their stack.

>>> import jax.numpy as jnp
>>> from jaxlab.federated import aggregators
>>> updates = jnp.array([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [9.0, -9.0]])
>>> sizes = jnp.array([10.0, 20.0, 30.0, 1000.0])
>>> aggregate, _, info = aggregators.fedra().apply((), updates, sizes, None)
>>> info['keep'].tolist()
[True, True, True, False]
"""
from jaxlab.federated.aggregators.centers import centered_clip, rfa
from jaxlab.federated.aggregators.distance import bulyan, krum, multi_krum
from jaxlab.federated.aggregators.means import (
    by_part,
    clipped_gaussian,
    from_stream,
    maximum,
    norm_bound,
    uniform_mean,
    weighted_mean,
)
from jaxlab.federated.aggregators.order import median, trimmed_mean
from jaxlab.federated.aggregators.quantities import truncated
from jaxlab.federated.aggregators.quantity_aware import fedra
from jaxlab.federated.aggregators.registry import (
    AGGREGATORS,
    MODEL_SHAPED,
    WHOLE_MODEL,
    make_aggregator,
)
from jaxlab.federated.aggregators.residuals import residual
from jaxlab.federated.aggregators.similarity import fltrust, foolsgold
from jaxlab.federated.aggregators.spectral import dnc
from jaxlab.federated.aggregators.stack import from_rule, screen

__all__ = [
    'AGGREGATORS', 'MODEL_SHAPED', 'WHOLE_MODEL', 'bulyan', 'by_part', 'centered_clip',
    'clipped_gaussian', 'dnc', 'fedra', 'fltrust', 'foolsgold', 'from_rule', 'from_stream', 'krum',
    'make_aggregator', 'maximum', 'median', 'multi_krum', 'norm_bound', 'residual', 'rfa', 'screen',
    'trimmed_mean', 'truncated', 'uniform_mean', 'weighted_mean',
]
