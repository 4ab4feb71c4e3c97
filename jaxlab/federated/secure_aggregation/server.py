"""The server's side of secure aggregation (Bonawitz et al. 2017) as a state machine."""
import hashlib
from typing import NamedTuple

import numpy as np

from jaxlab.federated.secure_aggregation import messages, primitives, shamir
from jaxlab.federated.secure_aggregation.client import digest, read_keys
from jaxlab.federated.secure_aggregation.messages import ProtocolError, TooFewSurvivors, expect


class Result(NamedTuple):
  """What a session yields.

  Attributes:
    total: uint32 [size], the sum of the survivors' vectors modulo 2^32.
    survivors: their numbers, ascending.
  """
  total: np.ndarray
  survivors: tuple[int, ...]


class Server:
  """The server of one session; it never learns a client's secrets or vector.

  Whoever drives it hands it messages, decides when to wait no longer, and delivers what `advance`
  returns: phase after phase, until `result` is there.

  Args:
    settings: Settings.
    signing_key: its Ed25519 private key.
    directory: {client or SERVER: Ed25519 public key of 32 bytes}.
  """

  def __init__(self, settings, signing_key, directory):
    self._settings, self._signing_key, self._directory = settings, signing_key, directory
    self._phase = 0
    self._expected = set(range(settings.num_clients))
    self._received = {}  # sender -> checked body of this phase
    self._raw = {}  # sender -> message of this phase
    self._keys = {}  # client -> its public values
    self._neighbors = {}  # client -> those who share masks with it
    self._sharers = set()  # clients whose shares have been passed on
    self._survivors = []
    self._masked = {}
    self._result = None

  @property
  def phase(self):
    """The phase whose messages it takes; None at the end."""
    return None if self._result else messages.PHASES[self._phase]

  @property
  def waiting(self):
    """Clients that it has not heard from in this phase."""
    return self._expected - set(self._received)

  @property
  def result(self):
    """Result, or None before the end."""
    return self._result

  @property
  def dropped(self):
    """Clients that took part in the masks and sent no vector."""
    return sorted(self._sharers - set(self._survivors))

  def receive(self, data):
    """Takes a client's message.

    Raises:
      ProtocolError: the message is not what the protocol allows now; it is forgotten.
    """
    phase = self.phase
    expect(phase is not None, 'the session is over')
    envelope = messages.parse(self._settings, data, phase)
    sender = envelope.sender
    messages.check_signature(envelope, self._directory)
    expect(sender in self._expected, f'{messages.name(sender)} has no part in {phase!r}')
    expect(sender not in self._received, f'{messages.name(sender)} has sent {phase!r} before')
    self._received[sender] = {
        messages.KEYS: read_keys, messages.SHARES: self._read_shares,
        messages.MASKED: self._read_masked, messages.CONSISTENT: self._read_consistent,
        messages.UNMASK: self._read_unmask
    }[phase](envelope)
    self._raw[sender] = data

  def advance(self):
    """Ends the phase: whoever has not been heard from has dropped out.

    Returns:
      {client: message} to deliver; nothing after the last phase.

    Raises:
      TooFewSurvivors: too few have been heard from. The phase stays open.
      ProtocolError: shares do not give what their owner committed to.
    """
    expect(self._result is None, 'the session is over')
    heard, settings = sorted(self._received), self._settings
    if len(heard) < settings.quorum:
      raise TooFewSurvivors(f'{self.phase}: {len(heard)} clients of {settings.num_clients} are '
                            f'left, and {settings.quorum} are needed')
    outgoing = {
        messages.KEYS: self._make_roster, messages.SHARES: self._pass_shares,
        messages.MASKED: self._list_survivors, messages.CONSISTENT: self._ask,
        messages.UNMASK: self._finish
    }[self.phase](heard)
    self._phase += 1
    self._expected, self._received, self._raw = set(outgoing), {}, {}
    return outgoing

  def _seal(self, phase, body):
    return messages.seal(self._settings, phase, messages.SERVER, body, self._signing_key)

  def _make_roster(self, heard):
    self._keys = {client: self._received[client] for client in heard}
    roster = [self._raw[client] for client in heard]
    envelopes = [messages.parse(self._settings, data, messages.KEYS) for data in roster]
    seats = messages.ring(self._settings, envelopes)
    self._neighbors = {client: messages.neighbors(self._settings, seats, client)
                       for client in heard}
    return dict.fromkeys(heard, self._seal(messages.ROSTER, roster))

  def _read_shares(self, envelope):
    near, what = self._neighbors[envelope.sender], f'shares of client {envelope.sender}'
    table = messages.check_table(envelope.body, set(near),
                                 2 * shamir.SHARE_BYTES + primitives.TAG_BYTES, what)
    expect(list(table) == near, f'{what}: expected one for each of {len(near)} neighbours')
    return table

  def _pass_shares(self, heard):
    self._sharers = set(heard)
    inbox = lambda client: [[other, self._received[other][client]]
                            for other in self._neighbors[client] if other in self._sharers]
    return {client: self._seal(messages.INBOX, inbox(client)) for client in heard}

  def _read_masked(self, envelope):
    messages.check_bytes(envelope.body, 4 * self._settings.size,
                         f'the vector of client {envelope.sender}')
    return np.frombuffer(envelope.body, '<u4')

  def _list_survivors(self, heard):
    self._masked, self._survivors = dict(self._received), heard
    return dict.fromkeys(heard, self._seal(messages.SURVIVORS, heard))

  def _read_consistent(self, envelope):
    expect(envelope.body == digest(self._survivors),
           f'client {envelope.sender} has signed another list of survivors')

  def _ask(self, heard):
    signatures = [self._raw[client] for client in heard[:self._settings.quorum]]
    request = self._seal(messages.REQUEST, [self._survivors, self.dropped, signatures])
    return dict.fromkeys(heard, request)

  def _read_unmask(self, envelope):
    sender, body = envelope.sender, envelope.body
    expect(isinstance(body, list) and len(body) == 2,
           f'shares of client {sender}: expected those of survivors and of dropped clients')
    holds = {sender, *(set(self._neighbors[sender]) & self._sharers)}
    tables = []
    for value, owners in zip(body, (self._survivors, self.dropped)):
      what = f'shares from client {sender}'
      table = messages.check_table(value, holds, shamir.SHARE_BYTES, what)
      expect(set(table) == holds & set(owners), f'{what}: not those that were asked for')
      tables.append({owner: messages.check_share(x, what) for owner, x in table.items()})
    return tables

  def _finish(self, heard):
    settings, survivors, dropped = self._settings, self._survivors, self.dropped
    seeds = {client: self._combine(heard, client, 0) for client in survivors}
    keys = {client: self._combine(heard, client, 1) for client in dropped}
    total = np.zeros(settings.size, np.uint32)
    for client in survivors:
      committed = hashlib.sha256(seeds[client]).digest() == self._keys[client][2]
      expect(committed, f'the shares of client {client} do not give the seed that it committed to')
      total += self._masked[client]
      total -= settings.words(seeds[client])
    for client in dropped:
      key = primitives.agreement_key(keys[client])
      expect(primitives.public_bytes(key) == self._keys[client][1],
             f'the shares of client {client} do not give the key that it published')
      for other in set(self._neighbors[client]) & set(survivors):
        words = settings.words(primitives.pair_seed(key, self._keys[other][1]))
        if other < client:  # `other` has added the mask
          total -= words
        else:
          total += words
    self._result = Result(total, tuple(survivors))
    return {}

  def _combine(self, heard, owner, part):
    """The secret of `owner`, 32 bytes, from the first `threshold` shares."""
    threshold = self._settings.threshold
    holders = [x for x in heard if owner in self._received[x][part]]
    if len(holders) < threshold:
      raise TooFewSurvivors(f'{messages.UNMASK}: {len(holders)} shares of client {owner} are left, '
                            f'and {threshold} are needed')
    secret = shamir.combine({x + 1: self._received[x][part][owner] for x in holders[:threshold]})
    if secret >= 2**(8 * primitives.KEY_BYTES):
      raise ProtocolError(f'the shares of client {owner} give no secret')
    return secret.to_bytes(primitives.KEY_BYTES, 'big')
