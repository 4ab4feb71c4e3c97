"""Secure aggregation against its golden vectors: all of sec/, bit for bit."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxlab.federated import secure_aggregation as secure
from jaxlab.federated.secure_aggregation import messages, primitives, shamir
from tests.golden_reader import Golden

GOLDEN = Golden('efficient_fedrec')
CLIENTS, SIZE = GOLDEN['sec/x'].shape
THRESHOLD, DROPPED = int(GOLDEN['sec/threshold']), GOLDEN['sec/dropped'].ravel().tolist()
ALIVE = [i for i in range(CLIENTS) if i not in DROPPED]


def as_bytes(array):
  return np.asarray(array, np.uint8).tobytes()


def as_int(array):
  return int.from_bytes(as_bytes(array), 'big')


def agreement_keys():
  return [primitives.agreement_key(as_bytes(row)) for row in GOLDEN['sec/x25519_private']]


class RecordingServer(secure.Server):
  """A server that keeps what it receives."""

  def __init__(self, *args):
    super().__init__(*args)
    self.log = []

  def receive(self, data):
    super().receive(data)
    self.log.append(data)


class GoldenTest(absltest.TestCase):

  def test_quantized(self):
    with jax.enable_x64(True):
      ours = secure.quantize(jnp.asarray(GOLDEN['sec/x']), float(GOLDEN['sec/clip']),
                             int(GOLDEN['sec/bits']))
    self.assertEqual(ours.dtype, jnp.uint32)
    np.testing.assert_array_equal(ours, GOLDEN['sec/quantized'])

  def test_sums(self):
    alive = GOLDEN['sec/quantized'][ALIVE]
    total = jnp.asarray(alive).sum(0, dtype=jnp.uint32)
    np.testing.assert_array_equal(total, GOLDEN['sec/sum_quantized'])
    clip, bits = float(GOLDEN['sec/clip']), int(GOLDEN['sec/bits'])
    ours = secure.dequantize(total, len(ALIVE), clip, bits)
    np.testing.assert_allclose(ours, GOLDEN['sec/sum_dequantized'], rtol=1e-6, atol=1e-6)
    plain = np.clip(GOLDEN['sec/x'][ALIVE], -clip, clip).sum(0)
    self.assertLessEqual(np.abs(ours - plain).max(), secure.error_bound(len(ALIVE), clip, bits))
    masked = jnp.asarray(GOLDEN['sec/masked'][ALIVE]).sum(0, dtype=jnp.uint32)
    np.testing.assert_array_equal(masked, GOLDEN['sec/sum_masked_alive'])

  def test_keys_and_seeds(self):
    keys = agreement_keys()
    for i, key in enumerate(keys):
      public = primitives.public_bytes(key)
      self.assertEqual(public, as_bytes(GOLDEN['sec/x25519_public'][i]))
      for j in range(CLIENTS):
        expected = as_bytes(GOLDEN['sec/pair_seed'][i, j])
        ours = bytes(32) if i == j else primitives.pair_seed(
            key, as_bytes(GOLDEN['sec/x25519_public'][j]))
        self.assertEqual(ours, expected)

  def test_masks(self):
    words = lambda seed: primitives.sha256_words(as_bytes(seed), SIZE)
    own = np.stack([words(seed) for seed in GOLDEN['sec/self_seed']])
    np.testing.assert_array_equal(own, GOLDEN['sec/self_mask'])
    streams = jnp.asarray([[words(seed) for seed in row] for row in GOLDEN['sec/pair_seed']])
    for i in range(CLIENTS):
      streams = streams.at[i, i].set(own[i])
      signs = jnp.asarray([1 if i <= j else -1 for j in range(CLIENTS)])
      ours = secure.mask(jnp.asarray(GOLDEN['sec/quantized'][i]), jnp.arange(CLIENTS), signs,
                         draw=lambda j, _: streams[i, j])
      np.testing.assert_array_equal(ours, GOLDEN['sec/masked'][i])

  def test_shares(self):
    for secrets, coefficients, shares in (
        ('self_seed', 'self_seed_coef', 'self_seed_shares'),
        ('x25519_private', 'private_key_coef', 'private_key_shares')):
      for i in range(CLIENTS):
        secret = as_int(GOLDEN[f'sec/{secrets}'][i])
        powers = [secret] + [as_int(row) for row in GOLDEN[f'sec/{coefficients}'][i]]
        self.assertLen(powers, THRESHOLD)
        # The golden polynomial is in powers of x; ours wants its differences at 0.
        table = [sum(a * x**k for k, a in enumerate(powers)) for x in range(THRESHOLD)]
        newton = []
        while table:
          newton.append(table[0] % shamir.PRIME)
          table = [b - a for a, b in itertools.pairwise(table)]
        expected = [as_int(row) for row in GOLDEN[f'sec/{shares}'][i]]
        self.assertEqual(shamir.evaluate(newton, CLIENTS), expected)
        for chosen in itertools.combinations(range(CLIENTS), THRESHOLD):
          self.assertEqual(shamir.combine({k + 1: expected[k] for k in chosen}), secret)

  def test_whole_session(self):
    settings = secure.Settings(bytes(16), CLIENTS, THRESHOLD, SIZE, prg='sha256')
    keys, directory = secure.make_identities(CLIENTS)
    clients = [
        secure.Client(i, settings, GOLDEN['sec/quantized'][i], keys[i], directory,
                      secure.Secrets.draw()._replace(
                          mask_key=as_bytes(GOLDEN['sec/x25519_private'][i]),
                          self_seed=as_bytes(GOLDEN['sec/self_seed'][i])))
        for i in range(CLIENTS)]
    server = RecordingServer(settings, keys[secure.SERVER], directory)
    result = secure.run_session(server, clients, dict.fromkeys(DROPPED, messages.MASKED))
    self.assertEqual(list(result.survivors), ALIVE)
    np.testing.assert_array_equal(result.total, GOLDEN['sec/sum_quantized'])
    first = 2 * CLIENTS  # after the messages of two phases
    for i, data in zip(ALIVE, server.log[first:first + len(ALIVE)], strict=True):
      body = messages.parse(settings, data, messages.MASKED).body
      np.testing.assert_array_equal(np.frombuffer(body, '<u4'), GOLDEN['sec/masked'][i])

  def test_zz_every_array_was_compared(self):
    # The arrays outside sec/ are the model's, compared by tests/systems.
    self.assertEmpty([key for key in GOLDEN.unread() if key.startswith('sec/')])


if __name__ == '__main__':
  absltest.main()
