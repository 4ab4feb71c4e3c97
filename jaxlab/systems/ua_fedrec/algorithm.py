"""FedSGD whose server steps by Adam, the federated training of UA-FedRec's official code."""
import optax

from jaxlab import federated
from jaxlab.federated.algorithms import ServerState, server_step


def fedsgd_adam(gradient, learning_rate, weighting='examples'):
  """FedSGD (arXiv 1602.05629) with Adam (b1 .9, b2 .999, eps 1e-8) at the server.

  Args:
    gradient: (params, batch, key) -> (gradient, {metric: (sum, weight)}).
    learning_rate: of the server.
    weighting: 'examples' or 'uniform'.
  """
  optimizer = optax.adam(learning_rate)
  server = lambda state, aux, aggregate, participants, key: server_step(state, aggregate, optimizer)
  plain = federated.fedsgd(gradient, server_learning_rate=learning_rate, weighting=weighting)
  return plain._replace(init=lambda params: ServerState(params, optimizer.init(params)),
                        server=server)
