"""The server as a process of its own, and what it gets to see."""
import multiprocessing
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxlab.federated import secure_aggregation as secure
from jaxlab.federated.secure_aggregation import messages, primitives

SIZE, CLIENTS, THRESHOLD = 1500, 6, 4


class RecordingServer(secure.Server):
  """A server that keeps the masked vectors that it receives."""

  def __init__(self, *args):
    super().__init__(*args)
    self.vectors = {}

  def receive(self, data):
    phase = self.phase
    super().receive(data)
    if phase == messages.MASKED:
      envelope = messages.parse(self._settings, data, phase)
      self.vectors[envelope.sender] = np.frombuffer(envelope.body, '<u4')


def server_process(connection, settings, private, directory, file):
  """Serves a session and writes what happened to `file`."""
  server = RecordingServer(settings, primitives.signing_key(private), directory)
  result, refused = secure.serve(connection, server, timeout=1.0)
  np.savez(file, total=result.total, survivors=result.survivors, senders=list(server.vectors),
           vectors=np.stack(list(server.vectors.values())), refused=sum(refused.values()))


class ProcessTest(absltest.TestCase):

  def session(self, lost, disturb=()):
    """(exit status, clients' vectors, what the server wrote)."""
    settings = secure.Settings(bytes(16), CLIENTS, THRESHOLD, SIZE)
    keys, directory = secure.make_identities(CLIENTS)
    vectors = np.full((CLIENTS, SIZE), 3, np.uint32)
    vectors[:, 0] = range(CLIENTS)
    clients = [secure.Client(i, settings, x, keys[i], directory) for i, x in enumerate(vectors)]
    ours, theirs = multiprocessing.get_context('spawn').Pipe()
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder) / 'server.npz'
      process = multiprocessing.get_context('spawn').Process(
          target=server_process,
          args=(theirs, settings, keys[secure.SERVER].private_bytes_raw(), directory, file))
      process.start()
      theirs.close()
      for data in disturb:
        ours.send_bytes(data)
      try:
        secure.run_clients(clients, secure.post_over(ours), lost)
      except EOFError:  # the server gave up
        pass
      process.join(timeout=60)
      if not file.exists():
        return process.exitcode, vectors, None
      with np.load(file) as arrays:
        return process.exitcode, vectors, dict(arrays)

  def test_what_it_receives_looks_uniform_and_adds_up(self):
    status, vectors, seen = self.session(
        {1: messages.MASKED, 4: messages.UNMASK}, disturb=[b'', b'noise' * 9])
    self.assertEqual(status, 0)
    self.assertEqual(seen['survivors'].tolist(), [0, 2, 3, 4, 5])
    np.testing.assert_array_equal(seen['total'], vectors[seen['survivors']].sum(0))
    self.assertEqual(seen['refused'], 2)
    self.assertEqual(sorted(seen['senders']), [0, 2, 3, 4, 5])
    self.assertLess(secure.uniformity(vectors[0]), 1e-6)
    for subset in range(1, 2**5):
      rows = [i for i in range(5) if subset >> i & 1]
      total = seen['vectors'][rows].sum(0, dtype=np.uint32)
      self.assertGreater(secure.uniformity(total), 1e-6)

  def test_it_gives_up_when_too_few_are_left(self):
    status, _, seen = self.session(dict.fromkeys((0, 2, 3), messages.CONSISTENT))
    self.assertEqual(status, 1)
    self.assertIsNone(seen)


if __name__ == '__main__':
  absltest.main()
