"""The client's side of secure aggregation (Bonawitz et al. 2017) as a state machine."""
import hashlib
import os
from typing import NamedTuple

import numpy as np

from jaxlab.federated.secure_aggregation import messages, primitives, shamir
from jaxlab.federated.secure_aggregation.messages import (
    ProtocolError,
    TooFewSurvivors,
    expect,
)

PUBLIC = ('encryption key', 'mask key', 'commitment')


class Secrets(NamedTuple):
  """What a client draws for a session, 32 bytes each.

  Attributes:
    encryption_key: X25519 private key of the channels to other clients.
    mask_key: X25519 private key of the masks that it shares with others.
    self_seed: seed of the mask of its own.
  """
  encryption_key: bytes
  mask_key: bytes
  self_seed: bytes

  @classmethod
  def draw(cls):
    """Fresh ones from the operating system."""
    return cls(*(os.urandom(primitives.KEY_BYTES) for _ in cls._fields))


def read_keys(envelope):
  """The three public values of a key message: bytes each."""
  body, who = envelope.body, messages.name(envelope.sender)
  expect(isinstance(body, list) and len(body) == len(PUBLIC),
         f'the keys of {who}: expected {len(PUBLIC)} values')
  for value, what in zip(body, PUBLIC):
    messages.check_bytes(value, primitives.KEY_BYTES, f'the {what} of {who}')
  return body


def digest(survivors):
  """What clients sign of a list of survivors."""
  return hashlib.sha256(messages.pack(survivors)).digest()


class Client:
  """One client of one session.

  `start()` gives its first message; `receive(message of the server)` gives the next one, four
  times. An error leaves the client as it was, so that a forged message does no harm.

  Args:
    index: its number.
    settings: Settings.
    vector: uint32 [size], what it adds to the sum.
    signing_key: its Ed25519 private key.
    directory: {client or SERVER: Ed25519 public key of 32 bytes}.
    secrets: Secrets, fresh ones by default. Those of another session must never be used again.
  """

  def __init__(self, index, settings, vector, signing_key, directory, secrets=None):
    vector = np.asarray(vector)
    if vector.dtype != np.uint32 or vector.shape != (settings.size,):
      raise ValueError(f'vector: expected uint32 [{settings.size}], got {vector.dtype} '
                       f'{list(vector.shape)}')
    self.index, self._settings, self._vector = index, settings, vector
    self._signing_key, self._directory = signing_key, directory
    self._secrets = secrets or Secrets.draw()
    self._encryption_key, self._mask_key = map(primitives.agreement_key, self._secrets[:2])
    self._public = [*map(primitives.public_bytes, (self._encryption_key, self._mask_key)),
                    hashlib.sha256(self._secrets.self_seed).digest()]
    self._expected = None
    self._roster = {}  # client -> its public values
    self._neighbors = []
    self._channels = {}  # neighbour -> (key to it, key from it)
    self._held = {}  # owner -> (share of its self seed, share of its mask key)
    self._survivors = None

  @property
  def expected(self):
    """The phase of the message that it waits for, None before `start` and after the last."""
    return self._expected

  def start(self):
    """The message with its public keys, and a commitment to its self seed."""
    expect(self._expected is None and not self._roster,
           f'client {self.index} has started before')
    self._expected = messages.ROSTER
    return self._seal(messages.KEYS, self._public)

  def receive(self, data):
    """The answer to a message of the server.

    Raises:
      ProtocolError: the message is not what the protocol allows now.
      TooFewSurvivors: too few clients are left to go on.
    """
    expect(self._expected is not None, f'client {self.index} expects no message')
    envelope = messages.parse(self._settings, data, self._expected)
    expect(envelope.sender == messages.SERVER,
           f'expected a message of the server, got one of {messages.name(envelope.sender)}')
    messages.check_signature(envelope, self._directory)
    return {
        messages.ROSTER: self._share_keys, messages.INBOX: self._mask_input,
        messages.SURVIVORS: self._sign_survivors, messages.REQUEST: self._unmask
    }[self._expected](envelope.body)

  def _seal(self, phase, body):
    return messages.seal(self._settings, phase, self.index, body, self._signing_key)

  def _share_keys(self, body):
    """Roster -> shares of both secrets, encrypted for each neighbour."""
    settings = self._settings
    expect(isinstance(body, list) and all(isinstance(x, bytes) for x in body),
           'roster: expected a list of messages')
    envelopes = [messages.parse(settings, data, messages.KEYS) for data in body]
    messages.check_ids([x.sender for x in envelopes], range(settings.num_clients), 'roster')
    if len(envelopes) < settings.quorum:
      raise TooFewSurvivors(f'{len(envelopes)} clients in the roster, and {settings.quorum} are '
                            'needed')
    roster = {envelope.sender: read_keys(envelope) for envelope in envelopes}
    expect(roster.get(self.index) == self._public,
           f'roster: without the keys of client {self.index}')
    near = messages.neighbors(settings, messages.ring(settings, envelopes), self.index)
    for envelope in envelopes:
      if envelope.sender in near:
        messages.check_signature(envelope, self._directory)
    channels = {other: self._channel(other, roster[other][0]) for other in near}
    shares = [[x.to_bytes(shamir.SHARE_BYTES, 'big') for x in shamir.split(
        int.from_bytes(secret, 'big'), settings.threshold, settings.num_clients)]
              for secret in (self._secrets.self_seed, self._secrets.mask_key)]
    sealed = [[other, primitives.encrypt(channels[other][0], shares[0][other] + shares[1][other],
                                         self._route(self.index, other))] for other in near]
    self._roster, self._neighbors, self._channels = roster, near, channels
    self._held = {self.index: (shares[0][self.index], shares[1][self.index])}
    self._expected = messages.INBOX
    return self._seal(messages.SHARES, sealed)

  def _channel(self, other, public):
    """(key of the message to `other`, key of the one from it)."""
    try:
      keys = primitives.channel_keys(self._encryption_key, public, self._settings.session)
    except ValueError as error:
      raise ProtocolError(f'the encryption key of client {other}: {error}') from error
    return keys if self.index < other else keys[::-1]

  def _route(self, sender, recipient):
    return messages.pack([self._settings.session, sender, recipient])

  def _mask_input(self, body):
    """Encrypted shares of others -> the masked vector."""
    settings = self._settings
    length = 2 * shamir.SHARE_BYTES + primitives.TAG_BYTES
    inbox = messages.check_table(body, set(self._neighbors), length, 'shares')
    if len(inbox) + 1 < settings.threshold:
      raise TooFewSurvivors(f'shares of {len(inbox) + 1} clients, and {settings.threshold} are '
                            'needed')
    held = {}
    for other, ciphertext in inbox.items():
      plain = primitives.decrypt(self._channels[other][1], ciphertext,
                                 self._route(other, self.index))
      expect(plain is not None, f'the shares of client {other} were altered')
      held[other] = plain[:shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES:]
    masked = self._vector + settings.words(self._secrets.self_seed)
    for other in held:
      try:
        seed = primitives.pair_seed(self._mask_key, self._roster[other][1])
      except ValueError as error:
        raise ProtocolError(f'the mask key of client {other}: {error}') from error
      if self.index < other:
        masked += settings.words(seed)
      else:
        masked -= settings.words(seed)
    self._held |= held
    self._channels = {}  # their keys have done their work
    self._expected = messages.SURVIVORS
    return self._seal(messages.MASKED, masked.astype('<u4').tobytes())

  def _sign_survivors(self, body):
    """List of survivors -> its digest, signed."""
    messages.check_ids(body, self._roster, 'survivors')
    if len(body) < self._settings.quorum:
      raise TooFewSurvivors(f'{len(body)} survivors, and {self._settings.quorum} are needed')
    expect(self.index in body, f'survivors: without client {self.index}')
    unknown = set(body) & set(self._neighbors) - set(self._held)
    expect(not unknown, f'survivors: with clients {sorted(unknown)}, whose shares never came')
    self._survivors = body
    self._expected = messages.REQUEST
    return self._seal(messages.CONSISTENT, digest(body))

  def _unmask(self, body):
    """Request -> one share of each neighbour: of its self seed or of its mask key, never both."""
    expect(isinstance(body, list) and len(body) == 3,
           'request: expected survivors, dropped clients and signatures')
    survivors, dropped, signatures = body
    messages.check_ids(survivors, self._roster, 'survivors')
    messages.check_ids(dropped, self._roster, 'dropped clients')
    both = sorted(set(survivors) & set(dropped))
    expect(not both, f'refused: the server asks for both shares of clients {both}')
    expect(survivors == self._survivors,
           'refused: the survivors are not those that this client has signed')
    near = {*self._neighbors, self.index}
    missing = sorted(near & set(self._held) - set(survivors) - set(dropped))
    expect(not missing, f'request: clients {missing} are neither survivors nor dropped')
    unknown = sorted(near & set(dropped) - set(self._held))
    expect(not unknown, f'request: no shares of clients {unknown} are held here')
    self._check_agreement(signatures)
    reveal = lambda owners, part: [[owner, self._held[owner][part]] for owner in owners
                                   if owner in self._held]
    answer = [reveal(survivors, 0), reveal(dropped, 1)]
    self._expected = None
    return self._seal(messages.UNMASK, answer)

  def _check_agreement(self, signatures):
    expect(isinstance(signatures, list) and all(isinstance(x, bytes) for x in signatures),
           'signatures: expected a list of messages')
    envelopes = [messages.parse(self._settings, x, messages.CONSISTENT) for x in signatures]
    messages.check_ids([x.sender for x in envelopes], set(self._survivors), 'signatures')
    if len(envelopes) < self._settings.quorum:
      raise TooFewSurvivors(f'{len(envelopes)} clients have signed the survivors, and '
                            f'{self._settings.quorum} are needed')
    expected = digest(self._survivors)
    for envelope in envelopes:
      expect(envelope.body == expected,
             f'refused: client {envelope.sender} has signed another list of survivors')
      messages.check_signature(envelope, self._directory)
