"""The protocol between client and server: sums, dropouts, and everything that must be refused."""
import hashlib
import random
from unittest import mock

import msgpack
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.config import ConfigError
from jaxlab.federated import secure_aggregation as secure
from jaxlab.federated.secure_aggregation import messages, primitives, shamir

SESSION, SIZE = bytes(range(16)), 6
CLIENTS, THRESHOLD = 5, 3
SERVER_PHASES = (messages.ROSTER, messages.INBOX, messages.SURVIVORS, messages.REQUEST)


class Party:
  """A session before its first message."""

  def __init__(self, num_clients=CLIENTS, threshold=THRESHOLD, size=SIZE, session=SESSION, seed=0,
               vectors=None, **options):
    self.settings = secure.Settings(session, num_clients, threshold, size, **options)
    self.keys, self.directory = secure.make_identities(num_clients)
    drawn = np.random.default_rng(seed).integers(0, 2**32, (num_clients, size), np.uint32)
    self.vectors = drawn if vectors is None else vectors
    self.server = secure.Server(self.settings, self.keys[secure.SERVER], self.directory)
    self.clients = [
        secure.Client(i, self.settings, vector, self.keys[i], self.directory)
        for i, vector in enumerate(self.vectors)]

  def sum_of(self, survivors):
    return self.vectors[list(survivors)].sum(0, dtype=np.uint32)

  def seal(self, sender, phase, body):
    """A message with the right signature of its sender."""
    return messages.seal(self.settings, phase, sender, body, self.keys[sender])

  def until(self, phase, lost=()):
    """Goes on until the server has ended `phase`; its answers {client: message}."""
    inbox = {}
    for current in messages.PHASES:
      outbox = [client.receive(inbox[client.index]) if inbox else client.start()
                for client in self.clients if not inbox or client.index in inbox]
      senders = sorted(inbox) if inbox else range(len(self.clients))
      for sender, data in zip(senders, outbox, strict=True):
        if (sender, current) not in lost:
          self.server.receive(data)
      inbox = self.server.advance()
      if current == phase:
        return inbox
    return None

  def body(self, data, phase):
    return messages.parse(self.settings, data, phase).body


class SumTest(parameterized.TestCase):

  @settings(max_examples=15, deadline=None)
  @given(st.dictionaries(st.integers(0, 6), st.sampled_from(messages.PHASES), max_size=3),
         st.integers(0, 99))
  def test_any_clients_drop_at_any_phase(self, lost, seed):
    party = Party(7, 4, seed=seed)
    result = secure.run_session(party.server, party.clients, lost)
    before = (messages.KEYS, messages.SHARES, messages.MASKED)
    expected = [i for i in range(7) if lost.get(i) not in before]
    self.assertEqual(list(result.survivors), expected)
    np.testing.assert_array_equal(result.total, party.sum_of(expected))

  @parameterized.parameters(*messages.PHASES)
  def test_too_few_survivors(self, phase):
    party = Party()
    with self.assertRaisesRegex(secure.TooFewSurvivors,
                                f'{phase}: 2 clients of 5 are left, and 3 are needed'):
      secure.run_session(party.server, party.clients, dict.fromkeys((0, 2, 4), phase))
    self.assertIsNone(party.server.result)

  @settings(max_examples=8, deadline=None)
  @given(st.sets(st.integers(0, 11), max_size=3), st.integers(0, 99))
  def test_graph_of_few_neighbors(self, gone, seed):
    party = Party(12, 4, seed=seed, neighbors=6)
    result = secure.run_session(party.server, party.clients, dict.fromkeys(gone, messages.MASKED))
    expected = sorted(set(range(12)) - gone)
    self.assertEqual(list(result.survivors), expected)
    np.testing.assert_array_equal(result.total, party.sum_of(expected))

  def test_a_neighborhood_that_is_lost_voids_the_round(self):
    party = Party(12, 3, neighbors=2)
    inbox = party.until(messages.CONSISTENT)
    for client in party.clients[:-1]:  # the last one's shares are missing to its neighbours
      party.server.receive(client.receive(inbox[client.index]))
    with self.assertRaisesRegex(secure.TooFewSurvivors, '2 shares of client .*3 are needed'):
      party.server.advance()

  def test_neighbors_are_mutual(self):
    settings_ = secure.Settings(SESSION, 20, 4, 1, neighbors=6)
    envelopes = [messages.Envelope(i, None, bytes([i]), b'') for i in range(20) if i != 7]
    seats = messages.ring(settings_, envelopes)
    near = {i: messages.neighbors(settings_, seats, i) for i in seats}
    self.assertEqual({len(x) for x in near.values()}, {6})
    self.assertTrue(all(i in near[j] for i in near for j in near[i]))
    other = messages.ring(settings_, [x._replace(content=b'x' + x.content) for x in envelopes])
    self.assertNotEqual(seats, other)

  @parameterized.parameters('chacha20', 'sha256', 'threefry')
  def test_streams(self, prg):
    words = primitives.PRGS[prg]
    seeds = [hashlib.sha256(bytes([i])).digest() for i in range(3)]
    drawn = np.concatenate([words(seed, 5001) for seed in seeds])
    self.assertEqual(drawn.dtype, np.uint32)
    self.assertGreater(secure.uniformity(drawn), 1e-6)
    np.testing.assert_array_equal(words(seeds[0], 5001), drawn[:5001])
    self.assertLen(set(drawn.tolist()), 15003 - np.sum(np.diff(np.sort(drawn)) == 0))
    party = Party(prg=prg)
    result = secure.run_session(party.server, party.clients, {1: messages.MASKED})
    np.testing.assert_array_equal(result.total, party.sum_of([0, 2, 3, 4]))

  def test_union(self):
    sets = [{1, 4}, {4}, set(), {0, 4, 9}]
    members = np.array([[i in items for i in range(10)] for items in sets])
    import jax
    vectors = np.stack([secure.union_words(jax.random.key(i), row)
                        for i, row in enumerate(members)])
    self.assertEqual(np.flatnonzero(secure.secure_sum(vectors)).tolist(), [0, 1, 4, 9])


class SecrecyTest(absltest.TestCase):

  def test_vectors_and_all_partial_sums_look_uniform(self):
    size = 1500
    party = Party(size=size, vectors=np.full((CLIENTS, size), 7, np.uint32))
    secure.run_session(party.server, party.clients, {4: messages.MASKED})
    masked, survivors = party.server._masked, (0, 1, 2, 3)
    self.assertLess(secure.uniformity(party.vectors[0]), 1e-6)
    # What the server knows after the session: self masks of survivors, pair masks of the dropped.
    own = [party.settings.words(party.clients[i]._secrets.self_seed) for i in survivors]
    seed = lambda i: primitives.pair_seed(party.clients[4]._mask_key, party.server._keys[i][1])
    unmasked = [masked[i] - own[i] - party.settings.words(seed(i)) for i in survivors]
    for rows in ([masked[i] for i in survivors], unmasked):
      for subset in range(1, 2**4 - 1):
        total = np.sum([rows[i] for i in survivors if subset >> i & 1], axis=0, dtype=np.uint32)
        self.assertGreater(secure.uniformity(total), 1e-6)
    np.testing.assert_array_equal(np.sum(unmasked, axis=0, dtype=np.uint32), 28)

  def test_a_vector_that_comes_late_stays_hidden(self):
    size = 1500
    party = Party(size=size, vectors=np.full((CLIENTS, size), 7, np.uint32))
    inbox = party.until(messages.SHARES)
    late = party.clients[2].receive(inbox[2])
    for i in (0, 1, 3, 4):
      party.server.receive(party.clients[i].receive(inbox[i]))
    survivors = party.server.advance()
    with self.assertRaisesRegex(secure.ProtocolError, "expected a message of phase 'consistency'"):
      party.server.receive(late)
    for _ in (messages.CONSISTENT, messages.UNMASK):
      for i, data in survivors.items():
        party.server.receive(party.clients[i].receive(data))
      survivors = party.server.advance()
    np.testing.assert_array_equal(party.server.result.total, 28)
    # All shares of the dropped client's mask key are known now; its self mask is not.
    words = np.frombuffer(party.body(late, messages.MASKED), '<u4').copy()
    for i in (0, 1, 3, 4):
      pair = party.settings.words(
          primitives.pair_seed(party.clients[2]._mask_key, party.server._keys[i][1]))
      words = words - pair if i > 2 else words + pair
    self.assertGreater(secure.uniformity(words), 1e-6)


class RefusalTest(parameterized.TestCase):

  def refuse(self, receiver, data, message, kind=secure.ProtocolError):
    """`receiver` refuses the message and stays as it was."""
    before = repr(receiver.__dict__)
    with self.assertRaisesRegex(kind, message):
      receiver.receive(data)
    self.assertEqual(repr(receiver.__dict__), before)

  def test_both_shares_of_a_client(self):
    party = Party()
    inbox = party.until(messages.CONSISTENT)
    survivors, dropped, signatures = party.body(inbox[0], messages.REQUEST)
    self.assertEqual((survivors, dropped), ([0, 1, 2, 3, 4], []))
    for asked in ([3], [0], [0, 1, 2, 3, 4]):
      request = party.seal(secure.SERVER, messages.REQUEST, [survivors, asked, signatures])
      self.refuse(party.clients[0], request,
                  r'refused: the server asks for both shares of clients \[' + str(asked[0]))
    request = party.seal(secure.SERVER, messages.REQUEST, [[0, 1, 2, 4], [3], signatures])
    self.refuse(party.clients[0], request, 'not those that this client has signed')
    answer = party.clients[0].receive(inbox[0])
    revealed = party.body(answer, messages.UNMASK)
    self.assertEqual([[owner for owner, _ in part] for part in revealed], [[0, 1, 2, 3, 4], []])
    with self.assertRaisesRegex(secure.ProtocolError, 'expects no message'):
      party.clients[0].receive(inbox[0])

  def test_two_lists_of_survivors(self):
    party = Party()
    party.until(messages.MASKED)
    lists = {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [0, 1, 2, 4], 3: [0, 1, 2, 3], 4: [0, 1, 2, 4]}
    signed = {i: party.clients[i].receive(party.seal(secure.SERVER, messages.SURVIVORS, x))
              for i, x in lists.items()}
    ask = lambda i, who: party.seal(secure.SERVER, messages.REQUEST, [
        lists[i], sorted({3, 4} - set(lists[i])), [signed[j] for j in who]])
    self.refuse(party.clients[2], ask(2, (2, 4)), '2 clients have signed', secure.TooFewSurvivors)
    self.refuse(party.clients[2], ask(2, (0, 1, 2)), 'client 0 has signed another list')
    self.refuse(party.clients[2], ask(2, (2, 2, 4)), 'ascending')
    party.clients[0].receive(ask(0, (0, 1, 3)))

  @parameterized.parameters(
      (messages.SURVIVORS, [1, 2, 3, 4], 'without client 0'),
      (messages.SURVIVORS, [0, 1, 2, 9], 'survivors: expected an ascending list'),
      (messages.SURVIVORS, [0, 2, 1, 3], 'survivors: expected an ascending list'),
      (messages.SURVIVORS, [0, 1, 1, 2], 'survivors: expected an ascending list'),
      (messages.SURVIVORS, 'all', 'survivors: expected an ascending list'),
      (messages.INBOX, [[1, b'x' * 148]] * 2, 'shares: expected an ascending list'),
      (messages.INBOX, [[0, b'x' * 148]], 'shares: expected an ascending list'),
      (messages.INBOX, [[1, b'x' * 147]], 'shares of client 1: expected 148 bytes'),
      (messages.INBOX, [[1, b'x' * 148], [2, b'x' * 148]], 'shares of client 1 were altered'),
      (messages.INBOX, [1, 2], r'shares: expected a list of \[client, bytes\]'),
      (messages.ROSTER, [b'', b''], 'not a message'), (messages.ROSTER, 3, 'list of messages'),
      (messages.REQUEST, [[0, 1, 2, 3, 4], []], 'request: expected'),
      (messages.REQUEST, [[0, 1, 2, 3, 4], [], b''], 'signatures: expected'))
  def test_a_server_that_sends_nonsense(self, phase, body, message):
    party = Party()
    steps = dict(zip(SERVER_PHASES, (None, *messages.PHASES)))
    if steps[phase]:
      inbox = party.until(steps[phase])
      party.clients[0].receive(inbox[0])
    else:
      party.clients[0].start()
    self.refuse(party.clients[0], party.seal(secure.SERVER, phase, body), message)

  def test_too_few_in_what_the_server_says(self):
    party = Party()
    roster = party.body(party.until(messages.KEYS)[0], messages.ROSTER)
    short = party.seal(secure.SERVER, messages.ROSTER, roster[:2])
    self.refuse(party.clients[0], short, '2 clients in the roster', secure.TooFewSurvivors)
    absent = party.seal(secure.SERVER, messages.ROSTER, roster[1:])
    self.refuse(party.clients[0], absent, 'without the keys of client 0')
    party = Party()
    inbox = party.body(party.until(messages.SHARES)[0], messages.INBOX)
    short = party.seal(secure.SERVER, messages.INBOX, inbox[:1])
    self.refuse(party.clients[0], short, 'shares of 2 clients', secure.TooFewSurvivors)
    party = Party()
    party.until(messages.MASKED)
    short = party.seal(secure.SERVER, messages.SURVIVORS, [0, 1])
    self.refuse(party.clients[0], short, '2 survivors', secure.TooFewSurvivors)

  def test_replayed_messages(self):
    party, other = Party(), Party(session=bytes(16))
    other.keys, other.directory = party.keys, party.directory  # the same identities
    old = messages.seal(other.settings, messages.KEYS, 1, [bytes(32)] * 3, party.keys[1])
    self.refuse(party.server, old, 'another session')
    first = party.clients[1].start()
    party.server.receive(first)
    self.refuse(party.server, first, "client 1 has sent 'keys' before")
    for i in (0, 2, 3, 4):
      party.server.receive(party.clients[i].start())
    inbox = party.server.advance()
    self.refuse(party.server, first, "expected a message of phase 'shares', got 'keys'")
    party.clients[1].receive(inbox[1])
    self.refuse(party.clients[1], inbox[1], "phase 'shares'|phase 'inbox', got 'roster'")

  def test_a_message_in_the_name_of_another(self):
    party = Party()
    forged = messages.seal(party.settings, messages.KEYS, 1, [bytes(32)] * 3, party.keys[2])
    self.refuse(party.server, forged, 'the signature is not that of client 1')
    stranger = messages.seal(party.settings, messages.KEYS, 17, [bytes(32)] * 3, party.keys[2])
    self.refuse(party.server, stranger, 'client 17 is not known')
    server = messages.seal(party.settings, messages.KEYS, secure.SERVER, [bytes(32)] * 3,
                           party.keys[secure.SERVER])
    self.refuse(party.server, server, 'the server has no part')
    client = party.clients[0]
    client.start()
    self.refuse(client, party.seal(3, messages.ROSTER, []), 'expected a message of the server')

  def test_altered_keys_in_the_roster(self):
    party = Party()
    inbox = party.until(messages.KEYS)
    roster = party.body(inbox[0], messages.ROSTER)
    roster[2] = messages.seal(party.settings, messages.KEYS, 2, [bytes(range(32))] * 3,
                              party.keys[secure.SERVER])
    man_in_the_middle = party.seal(secure.SERVER, messages.ROSTER, roster)
    self.refuse(party.clients[0], man_in_the_middle, 'the signature is not that of client 2')

  def test_keys_of_small_order(self):
    party = Party()
    for key, phase, message in ((0, messages.ROSTER, 'the encryption key of client 1'),
                                (1, messages.INBOX, 'the mask key of client 1')):
      party = Party()
      for client in party.clients:
        if client.index == 1:
          client._public[key] = bytes(32)
        party.server.receive(client.start())
      inbox = party.server.advance()
      if phase == messages.INBOX:
        for i, data in inbox.items():
          party.server.receive(party.clients[i].receive(data))
        inbox = party.server.advance()
      self.refuse(party.clients[0], inbox[0], message)

  @parameterized.parameters((0, 'client 2 do not give the seed'),
                            (1, 'client 2 do not give the key'))
  def test_a_client_that_lies_about_shares(self, part, message):
    party = Party()
    lost = [(2, messages.MASKED)] if part else []
    inbox = party.until(messages.CONSISTENT, lost)
    for i, data in inbox.items():
      answer = party.body(party.clients[i].receive(data), messages.UNMASK)
      if i == 0:
        table = dict(answer[part])
        table[2] = (int.from_bytes(table[2], 'big') ^ 1).to_bytes(66, 'big')
        answer[part] = sorted(map(list, table.items()))
      party.server.receive(party.seal(i, messages.UNMASK, answer))
    with self.assertRaisesRegex(secure.ProtocolError, f'{message}|client 2 give no secret'):
      party.server.advance()
    self.assertIsNone(party.server.result)

  @parameterized.parameters(
      (messages.KEYS, [b'x'] * 3, 'encryption key of client 0: expected 32 bytes'),
      (messages.KEYS, [bytes(32)] * 2, 'the keys of client 0: expected 3 values'),
      (messages.SHARES, [[1, bytes(148)]], 'expected one for each of 4 neighbours'),
      (messages.SHARES, [[0, bytes(148)]], 'shares of client 0: expected an ascending list'),
      (messages.MASKED, bytes(4 * SIZE - 1), 'the vector of client 0: expected 24 bytes'),
      (messages.MASKED, [0] * SIZE, 'the vector of client 0: expected 24 bytes'),
      (messages.CONSISTENT, bytes(32), 'client 0 has signed another list'),
      (messages.UNMASK, [[], []], 'not those that were asked for'),
      (messages.UNMASK, [[[i, b'\xff' * 66] for i in range(5)], []], 'a number below 2'),
      (messages.UNMASK, [], 'shares of client 0: expected those of survivors'))
  def test_a_client_that_sends_nonsense(self, phase, body, message):
    party = Party()
    before = messages.PHASES.index(phase) - 1
    if before >= 0:
      party.until(messages.PHASES[before])
    self.refuse(party.server, party.seal(0, phase, body), message)

  def test_out_of_turn(self):
    party = Party()
    with self.assertRaisesRegex(secure.ProtocolError, 'expects no message'):
      party.clients[0].receive(b'')
    party.until(messages.UNMASK)
    with self.assertRaisesRegex(secure.ProtocolError, 'started before'):
      party.clients[0].start()
    with self.assertRaisesRegex(secure.ProtocolError, 'the session is over'):
      party.server.receive(b'')
    with self.assertRaisesRegex(secure.ProtocolError, 'the session is over'):
      party.server.advance()

  @parameterized.parameters(
      ({'session': b'short'}, 'session: expected 16 bytes'),
      ({'threshold': 2}, 'threshold: expected more than half'),
      ({'threshold': 6}, 'threshold: expected more than half'),
      ({'num_clients': 1}, 'num_clients: expected at least 2'), ({'size': 0}, 'size: expected'),
      ({'neighbors': 3}, 'neighbors: expected None or an even'),
      ({'neighbors': 2, 'threshold': 4}, 'at most all of the 3 who hold'),
      ({'prg': 'chacha'}, "prg: unknown name 'chacha'; did you mean 'chacha20'"))
  def test_settings(self, changes, message):
    arguments = {'session': SESSION, 'num_clients': 5, 'threshold': 3, 'size': 4, **changes}
    with self.assertRaisesRegex(ConfigError, message):
      secure.Settings(**arguments)

  def test_vectors_of_another_kind(self):
    party = Party()
    for vector in (np.zeros(SIZE, np.int32), np.zeros(SIZE + 1, np.uint32)):
      with self.assertRaisesRegex(ValueError, r'vector: expected uint32 \[6\]'):
        secure.Client(0, party.settings, vector, party.keys[0], party.directory)

  def test_without_the_extra(self):
    primitives._library.cache_clear()
    with mock.patch.dict('sys.modules', {'cryptography': None}):
      with self.assertRaisesRegex(ConfigError, r"pip install 'jaxlab\[secure\]'"):
        secure.make_identities(2)


class FuzzTest(absltest.TestCase):

  def mutations(self, rng, data, others):
    """Altered, cut, lengthened, foreign and invented messages."""
    flipped = bytearray(data)
    flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(1, 40))
    return [
        bytes(flipped), data[:rng.randrange(len(data))], data + rng.randbytes(rng.randrange(1, 9)),
        data[:start] + rng.randbytes(end - start + 1) + data[end:], data[:start] + data[end:],
        rng.randbytes(rng.randrange(200)), rng.choice(others),
    ]

  def nonsense(self, rng, depth=0):
    """A random value of any type that msgpack knows."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind >= 6:
      values = [self.nonsense(rng, depth + 1) for _ in range(rng.randrange(4))]
      return values if kind == 6 else {str(i): value for i, value in enumerate(values)}
    return (None, rng.random(), rng.randrange(-9, 9), rng.randrange(2**64), 'text',
            rng.randbytes(rng.choice((0, 3, 32, 66, 148))))[kind]

  def test_every_message_ends_in_a_clear_error(self):
    rng, party = random.Random(1186), Party()
    refused = kept = 0

    def attack(receiver, good, sender, phase, others):
      nonlocal refused, kept
      bad = [x for _ in range(3) for x in self.mutations(rng, good, others)]
      signed = [self.nonsense(rng) for _ in range(6)]
      body = party.body(good, phase)
      if isinstance(body, list) and body:  # a right body with one wrong part
        for _ in range(6):
          changed = list(body)
          changed[rng.randrange(len(body))] = self.nonsense(rng)
          signed.append(changed)
      bad += [party.seal(sender, phase, value) for value in signed if value != body]
      for data in bad:
        if data == good:
          continue
        state = repr(receiver.__dict__)
        with self.assertRaises(secure.ProtocolError) as caught:
          receiver.receive(data)
        self.assertGreater(len(str(caught.exception)), 10)
        refused += 1
        kept += repr(receiver.__dict__) == state

    old = Party(session=bytes(16))
    history = [old.clients[0].start()]
    outbox = {client.index: client.start() for client in party.clients}
    for phase, answer in zip(messages.PHASES, (*SERVER_PHASES, None)):
      for sender, data in outbox.items():
        attack(party.server, data, sender, phase, history)
        party.server.receive(data)
      history += outbox.values()
      inbox = party.server.advance()
      outbox = {}
      for client, data in inbox.items():
        attack(party.clients[client], data, secure.SERVER, answer, history)
        outbox[client] = party.clients[client].receive(data)
      history += inbox.values()
    print(f'{refused} fuzzed messages refused')
    self.assertGreaterEqual(refused, 500)
    self.assertEqual(kept, refused)
    # None of them did any harm.
    np.testing.assert_array_equal(party.server.result.total, party.sum_of(range(CLIENTS)))

  def test_deep_nesting_and_strange_types(self):
    party = Party()
    for data in (b'\x91' * 5000, msgpack.packb([b'x', b'y']), msgpack.packb(msgpack.Timestamp(1)),
                 b'\xc1', b'\xdd\xff\xff\xff\xff', b'\x81\x90\x90', b'\xd9\x01\xff',
                 msgpack.packb([b'\x91' * 900 + b'\x90', bytes(64)]), b''):
      with self.assertRaises(secure.ProtocolError):
        party.server.receive(data)


class ShamirTest(absltest.TestCase):

  @settings(max_examples=30, deadline=None)
  @given(st.integers(0, shamir.PRIME - 1), st.integers(1, 9), st.integers(0, 9), st.randoms())
  def test_any_threshold_shares_give_the_secret(self, secret, threshold, more, rng):
    holders = threshold + more
    shares = shamir.split(secret, threshold, holders)
    chosen = rng.sample(range(holders), threshold)
    self.assertEqual(shamir.combine({i + 1: shares[i] for i in chosen}), secret)

  def test_many_holders(self):
    largest = [shamir.PRIME - 1] * 60  # every slot as full as it gets
    values = shamir.evaluate(largest, 200)
    self.assertEqual(shamir.combine({x: values[x - 1] for x in range(100, 160)}),
                     shamir.PRIME - 1)

  def test_fewer_shares_fit_every_secret(self):
    # With two of three shares, for any secret there is the third share that gives it.
    shares = shamir.split(5, 3, 5)
    for secret in (6, 0, shamir.PRIME - 1):
      base = shamir.combine({1: shares[0], 2: shares[1], 3: 0})
      weight = shamir.combine({1: 0, 2: 0, 3: 1})
      third = (secret - base) * pow(weight, -1, shamir.PRIME) % shamir.PRIME
      self.assertEqual(shamir.combine({1: shares[0], 2: shares[1], 3: third}), secret)
    self.assertNotEqual(shamir.combine({1: shares[0], 2: shares[1]}), 5)


if __name__ == '__main__':
  absltest.main()
