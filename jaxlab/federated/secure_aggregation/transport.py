"""Drivers: a session in one process, and a server that is a process of its own."""
import collections
import logging
import secrets
import time

import numpy as np

from jaxlab.federated.secure_aggregation import messages
from jaxlab.federated.secure_aggregation.client import Client
from jaxlab.federated.secure_aggregation.messages import ProtocolError
from jaxlab.federated.secure_aggregation.server import Server

_log = logging.getLogger(__name__)


def run_clients(clients, post, lost=None):
  """Takes clients through all phases of a session.

  Args:
    clients: Clients.
    post: (phase, iterator of the clients' messages) -> {client: the server's message}. The messages
      are computed one by one, as they are asked for.
    lost: {client: phase}, the message from which on nothing of a client arrives.
  """
  by_index, lost = {client.index: client for client in clients}, lost or {}
  outbox = ((index, client.start()) for index, client in by_index.items())
  for phase in messages.PHASES:
    inbox = post(phase, (data for index, data in outbox if lost.get(index) != phase))
    outbox = ((index, by_index[index].receive(data)) for index, data in inbox.items())


def run_session(server, clients, lost=None):
  """Runs a session to its end in this process.

  Args:
    server: Server.
    clients: Clients.
    lost: see `run_clients`.

  Returns:
    The server's Result.

  Raises:
    TooFewSurvivors: too few clients are left.
  """
  def post(phase, outbox):
    del phase
    for data in outbox:
      server.receive(data)
    return server.advance()

  run_clients(clients, post, lost)
  return server.result


def post_over(connection):
  """The `post` of `run_clients` to a server behind `serve`; EOFError if it gave up."""
  def post(phase, outbox):
    sent = 0
    for data in outbox:
      connection.send_bytes(data)
      sent += 1
    replies = 0 if phase == messages.UNMASK else sent
    return dict(messages.unpack(connection.recv_bytes(), 'a delivery') for _ in range(replies))
  return post


def secure_sum(vectors, threshold=None, **settings):
  """The sum modulo 2^32 of the clients' vectors, by a whole session with fresh keys.

  Args:
    vectors: uint32 [n, size].
    threshold: two thirds of the clients, rounded up, by default.
    **settings: others of Settings.
  """
  vectors = np.asarray(vectors)
  num_clients, size = vectors.shape
  threshold = threshold or -(-2 * num_clients // 3)
  agreed = messages.Settings(secrets.token_bytes(messages.SESSION_BYTES), num_clients, threshold,
                             size, **settings)
  keys, directory = messages.make_identities(num_clients)
  clients = [Client(i, agreed, vector, keys[i], directory) for i, vector in enumerate(vectors)]
  return run_session(Server(agreed, keys[messages.SERVER], directory), clients).total


def serve(connection, server, timeout):
  """Drives the server over a `multiprocessing.connection.Connection`, in a process of its own.

  Messages of clients come in as they are; out goes msgpack of [client, message]. What is malformed,
  altered or replayed is counted, logged and forgotten. A phase ends when all clients have been
  heard from, or when nothing right has come for `timeout` seconds.

  Args:
    connection: the wire.
    server: Server.
    timeout: seconds.

  Returns:
    (Result, {error: how often} of the messages that were refused).

  Raises:
    TooFewSurvivors: too few clients are left.
    EOFError: the wire is cut.
  """
  refused = collections.Counter()
  while server.result is None:
    deadline = time.monotonic() + timeout
    while server.waiting and connection.poll(max(0, deadline - time.monotonic())):
      try:
        server.receive(connection.recv_bytes())
        deadline = time.monotonic() + timeout
      except ProtocolError as error:
        refused[str(error)] += 1
        _log.warning('refused: %s', error)
    for client, message in server.advance().items():
      connection.send_bytes(messages.pack([client, message]))
  return server.result, dict(refused)
