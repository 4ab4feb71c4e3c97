"""What secure aggregation costs a client and the server, in time and bytes, with dropouts.

  pip install -e .[secure]
  python -m benchmarks.secure_aggregation [--clients=10,100] [--neighbors=0] [--json=FILE]

Every session is the whole protocol between clients in this process and a server in a process of its
own: keys, shares, masked input, consistency, unmasking. The share of the clients that --dropout
says is lost when the masked vectors are due, the dearest moment: all masks that they shared are to
be found again from shares. Each client adds --size random numbers within +-CLIP, quantised to BITS
bits. There is no peer: the sum is checked against the plain one, bit for bit and within the stated
bound, and each vector that the server receives for uniform bytes. The exit status is 1 where that
fails.

With --neighbors=0 every pair of clients shares masks; with an even number k only the k neighbours
of a random regular graph do. With 1000 clients and all pairs a session takes six minutes on a core,
about 350 ms a client, more than half of which goes into checking signatures.

Times are processor seconds: a client's whole work (mean over the clients that stayed), and the
server's. Bytes are those of all messages of a client that stayed, mean over clients.
"""
import multiprocessing
import secrets
import sys
import time

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import comparison
from jaxlab.federated import secure_aggregation as secure
from jaxlab.federated.secure_aggregation import messages, primitives

CLIENTS = flags.DEFINE_list('clients', ['10', '100'], 'Numbers of clients.')
DROPOUT = flags.DEFINE_list('dropout', ['0', '0.1', '0.3'], 'Shares of clients that drop out.')
NEIGHBORS = flags.DEFINE_integer('neighbors', 0, 'Clients to share masks with; 0 for all.')
SIZE = flags.DEFINE_integer('size', 1000, 'Numbers of a vector.', lower_bound=1)

CLIP, BITS = 1.0, 16
TIMEOUT = 10.0  # seconds without a message after which a phase of the server ends
P_VALUE = 1e-7


class MeasuredClient(secure.Client):
  """A client that counts its processor seconds and bytes."""

  def __init__(self, *args):
    start = time.process_time()
    super().__init__(*args)
    self.seconds, self.sent, self.got = time.process_time() - start, 0, 0

  def _measured(self, function, *args):
    start = time.process_time()
    answer = function(*args)
    self.seconds += time.process_time() - start
    self.sent += len(answer)
    return answer

  def start(self):
    return self._measured(super().start)

  def receive(self, data):
    self.got += len(data)
    return self._measured(super().receive, data)


class ListeningServer(secure.Server):
  """A server that looks whether the vectors that it receives give anything away."""

  smallest = 1.0

  def receive(self, data):
    phase = self.phase
    super().receive(data)
    if phase == messages.MASKED:
      words = np.frombuffer(messages.parse(self._settings, data, phase).body, '<u4')
      self.smallest = min(self.smallest, secure.uniformity(words))


def server_process(connection, settings, private, directory):
  """Serves a session, and says what came out of it."""
  server = ListeningServer(settings, primitives.signing_key(private), directory)
  start = time.process_time()
  result, _ = secure.serve(connection, server, TIMEOUT)
  seconds = time.process_time() - start
  connection.send([result.total, result.survivors, seconds, server.smallest])


def measure(num_clients, dropout, neighbors, size):
  """A row of the table."""
  holders = num_clients if not neighbors else min(num_clients, neighbors + 1)
  # Two thirds of all pairs' shares must come back; of a few neighbours', more than half.
  threshold = holders // 2 + 1 if neighbors else -(-2 * num_clients // 3)
  settings = secure.Settings(secrets.token_bytes(messages.SESSION_BYTES), num_clients, threshold,
                             size, neighbors=neighbors or None)
  secure.check_capacity(num_clients, BITS)
  rng = np.random.default_rng(num_clients)
  values = rng.normal(size=(num_clients, size)).astype(np.float32) / 3
  words = np.asarray(secure.quantize(jnp.asarray(values), CLIP, BITS))
  keys, directory = secure.make_identities(num_clients)
  context = multiprocessing.get_context('spawn')
  ours, theirs = context.Pipe()
  server = context.Process(target=server_process, args=(
      theirs, settings, keys[secure.SERVER].private_bytes_raw(), directory))
  server.start()
  theirs.close()
  clients = [MeasuredClient(i, settings, x, keys[i], directory) for i, x in enumerate(words)]
  lost = rng.choice(num_clients, round(dropout * num_clients), replace=False)
  start = time.perf_counter()
  secure.run_clients(clients, secure.post_over(ours), dict.fromkeys(lost.tolist(), messages.MASKED))
  total, survivors, server_seconds, smallest = ours.recv()
  elapsed = time.perf_counter() - start
  server.join()
  here = list(survivors)
  plain = np.clip(values[here].astype(np.float64), -CLIP, CLIP).sum(0)
  error = np.abs(secure.dequantize(jnp.asarray(total), len(here), CLIP, BITS) - plain).max()
  mean = lambda name: float(np.mean([getattr(clients[i], name) for i in here]))
  return {
      'clients': num_clients, 'dropout': dropout, 'neighbors': neighbors or num_clients - 1,
      'threshold': threshold, 'survivors': len(here),
      'exact': bool((total == words[here].sum(0, dtype=np.uint32)).all()),
      'error': float(error), 'bound': secure.error_bound(len(here), CLIP, BITS),
      'client_ms': 1e3 * mean('seconds'), 'sent_kb': mean('sent') / 1e3,
      'got_kb': mean('got') / 1e3,
      'server_s': server_seconds, 'elapsed_s': elapsed, 'p_value': smallest,
  }


COLUMNS = {
    'clients': '7d', 'dropout': '7.2f', 'neighbors': '9d', 'threshold': '9d', 'survivors': '9d',
    'exact': '5', 'error': '9.2e', 'bound': '9.2e', 'client_ms': '9.1f', 'sent_kb': '8.1f',
    'got_kb': '8.1f', 'server_s': '8.2f', 'elapsed_s': '9.1f', 'p_value': '8.1e',
}


def main(_):
  rows = []
  print(f'secure sums of {SIZE.value} numbers of {BITS} bits', flush=True)
  print(' '.join(f'{name:>{spec.split(".")[0].rstrip("d")}}' for name, spec in COLUMNS.items()))
  for num_clients in map(int, CLIENTS.value):
    for dropout in map(float, DROPOUT.value):
      rows.append(measure(num_clients, dropout, NEIGHBORS.value, SIZE.value))
      print(' '.join(f'{rows[-1][name]:{spec}}' for name, spec in COLUMNS.items()), flush=True)
  comparison.write(rows)
  wrong = [row for row in rows if not row['exact'] or row['error'] > row['bound']]
  if wrong:
    sys.exit(f'sums that are not the plain ones: {wrong}')
  if min(row['p_value'] for row in rows) < P_VALUE:
    sys.exit('a vector that the server received is not uniform')


if __name__ == '__main__':
  app.run(main)
