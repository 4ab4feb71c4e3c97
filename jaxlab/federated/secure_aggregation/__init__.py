"""Secure aggregation: the server learns the sum of the clients' vectors and nothing else.

Two faces of one protocol (Bonawitz et al. 2017, "Practical Secure Aggregation for
Privacy-Preserving Machine Learning"): `codec` simulates it inside a compiled
round, in pure JAX; `Client` and `Server` are the real parties, with the cryptography package (extra
[secure]): keys, shares, masked input, consistency, unmasking, as messages of bytes between
processes.

What it hides: with masks between all pairs, a server that lies, together with fewer than
2 * threshold - num_clients clients, learns the sum over at least `threshold` clients and no more.
What it does not: the sum itself may tell much of few clients; a client may send any vector it
likes; and who is who is up to whoever handed out the signing keys.

>>> import numpy as np
>>> from jaxlab.federated import secure_aggregation
>>> secure_aggregation.secure_sum(np.array([[1, 2], [3, 4], [5, 6]], np.uint32)).tolist()
[9, 12]
"""
from jaxlab.federated.secure_aggregation.client import Client, Secrets
from jaxlab.federated.secure_aggregation.codec import (
    Codec,
    check_capacity,
    check_weights,
    dequantize,
    error_bound,
    make_codec,
    mask,
    quantize,
    secure_mean,
    seed_key,
    union_words,
)
from jaxlab.federated.secure_aggregation.messages import (
    SERVER,
    ProtocolError,
    Settings,
    TooFewSurvivors,
    make_identities,
)
from jaxlab.federated.secure_aggregation.primitives import uniformity
from jaxlab.federated.secure_aggregation.server import Result, Server
from jaxlab.federated.secure_aggregation.transport import (
    post_over,
    run_clients,
    run_session,
    secure_sum,
    serve,
)

__all__ = [
    'SERVER', 'Client', 'Codec', 'ProtocolError', 'Result', 'Secrets', 'Server', 'Settings',
    'TooFewSurvivors', 'check_capacity', 'check_weights', 'dequantize', 'error_bound', 'make_codec',
    'make_identities', 'mask', 'post_over', 'quantize', 'run_clients', 'run_session',
    'secure_mean', 'secure_sum', 'seed_key', 'serve', 'uniformity', 'union_words',
]
