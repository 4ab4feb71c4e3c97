"""What travels between clients and server: signed bytes, read strictly.

A message is msgpack of [content, signature], content being msgpack of [session, phase, sender,
body]. Whatever differs from what a right sender packed, in a bit or in form, ends in ProtocolError.
"""
import dataclasses
import hashlib
from typing import Any, NamedTuple

from jaxlab import config as config_lib
from jaxlab.federated.secure_aggregation import primitives, shamir

SERVER = -1  # the sender of the server's messages

# Phases: a client sends those of the left column, the server answers with those of the right.
KEYS, ROSTER = 'keys', 'roster'
SHARES, INBOX = 'shares', 'inbox'
MASKED, SURVIVORS = 'masked input', 'survivors'
CONSISTENT, REQUEST = 'consistency', 'request'
UNMASK = 'unmasking'
PHASES = (KEYS, SHARES, MASKED, CONSISTENT, UNMASK)

_DOMAIN = b'jaxlab secure aggregation 1\0'
_SIGNATURE_BYTES = 64
SESSION_BYTES = 16


class ProtocolError(ValueError):
  """A message or an order of events that the protocol forbids; the receiver stays as it was."""


class TooFewSurvivors(ProtocolError):
  """Fewer clients than the threshold are left: the round is void and nobody's input is shown."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What all parties of a session agree on beforehand.

  Attributes:
    session: 16 bytes that no other session has.
    num_clients: clients are numbered 0 ... num_clients - 1.
    threshold: shares that give a client's secret away; more than half of its holders, or a server
      that tells clients different lists of survivors could have both secrets of a client.
    size: words of a client's vector.
    neighbors: even number of clients that a client shares masks and secrets with; None for all. A
      random regular graph of a few neighbours (Bell et al. 2020) makes the cost of a client grow
      slower than the number of clients, for a server that follows the protocol but is curious: one
      that leaves clients out of the roster at will can choose among graphs.
    prg: 'chacha20'; or 'sha256', a counter mode; or 'threefry', that of the compiled round.
  """
  session: bytes
  num_clients: int
  threshold: int
  size: int
  neighbors: int | None = None
  prg: str = 'chacha20'

  def __post_init__(self):
    config_lib.require(len(self.session) == SESSION_BYTES, 'session', f'{SESSION_BYTES} bytes',
                       self.session)
    config_lib.require(self.num_clients >= 2, 'num_clients', 'at least 2', self.num_clients)
    config_lib.require(self.size >= 1, 'size', 'at least 1', self.size)
    config_lib.require(
        self.neighbors is None or self.neighbors >= 2 and self.neighbors % 2 == 0, 'neighbors',
        'None or an even number of at least 2', self.neighbors)
    config_lib.choose(self.prg, primitives.PRGS, 'prg')
    holders = self.num_clients
    if self.neighbors is not None:
      holders = min(holders, self.neighbors + 1)
    config_lib.require(holders < 2 * self.threshold and self.threshold <= holders, 'threshold',
                       f'more than half and at most all of the {holders} who hold shares of a '
                       'secret', self.threshold)

  @property
  def quorum(self):
    """Clients that must be left at every stage: the threshold, and more than half of all."""
    return max(self.threshold, self.num_clients // 2 + 1)

  def words(self, seed):
    """The mask of a seed: uint32 [size]."""
    return primitives.PRGS[self.prg](seed, self.size)


class Envelope(NamedTuple):
  """A message taken apart.

  Attributes:
    sender: who claims to have sent it.
    body: lists, integers, bytes.
    content: what is signed.
    signature: 64 bytes.
  """
  sender: int
  body: Any
  content: bytes
  signature: bytes


def expect(condition, message):
  """Raises ProtocolError with `message` unless `condition` holds."""
  if not condition:
    raise ProtocolError(message)


def unpack(data, what):
  """The value that packs to exactly `data`."""
  import msgpack
  try:
    value = msgpack.unpackb(data)
    exact = pack(value) == data
  except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
    raise ProtocolError(f'{what}: not a message ({error})') from error
  expect(exact, f'{what}: not packed as it should be')
  return value


def pack(value):
  """Lists, integers, strings and bytes as bytes (msgpack)."""
  import msgpack
  return msgpack.packb(value)


def seal(settings, phase, sender, body, key):
  """Packs and signs a message.

  Args:
    settings: Settings.
    phase: what kind of message.
    sender: client or SERVER.
    body: lists, integers, bytes.
    key: the sender's Ed25519 private key.
  """
  content = pack([settings.session, phase, sender, body])
  return pack([content, key.sign(_DOMAIN + content)])


def parse(settings, data, phase):
  """Takes a message of `phase` apart; `check_signature` says whether to believe it.

  Returns:
    Envelope.

  Raises:
    ProtocolError: not a message, or one of another session or phase.
  """
  what = f'a message of phase {phase!r}'
  outer = unpack(data, what)
  expect(isinstance(outer, list) and [type(x) for x in outer] == [bytes, bytes],
         f'{what}: expected [content, signature]')
  content, signature = outer
  inner = unpack(content, what)
  expect(isinstance(inner, list) and len(inner) == 4 and
         [type(x) for x in inner[:3]] == [bytes, str, int],
         f'{what}: expected [session, phase, sender, body]')
  session, its_phase, sender, body = inner
  expect(session == settings.session, f'{what}: it belongs to another session (replayed?)')
  expect(its_phase == phase, f'expected {what}, got {its_phase!r} from {name(sender)}')
  expect(len(signature) == _SIGNATURE_BYTES, f'{what}: expected a signature of 64 bytes')
  return Envelope(sender, body, content, signature)


def check_signature(envelope, directory):
  """Raises ProtocolError unless its sender, one of `directory`, has signed the message."""
  expect(envelope.sender in directory, f'{name(envelope.sender)} is not known')
  public = directory[envelope.sender]
  expect(primitives.verify(public, envelope.signature, _DOMAIN + envelope.content),
         f'the signature is not that of {name(envelope.sender)}: the message was altered')


def name(sender):
  """How errors call a party."""
  return 'the server' if sender == SERVER else f'client {sender}'


def check_ids(value, allowed, what):
  """Raises ProtocolError unless `value` is a list of ascending client numbers of `allowed`."""
  expect(isinstance(value, list) and all(type(x) is int and x in allowed for x in value) and
         all(a < b for a, b in zip(value, value[1:])),
         f'{what}: expected an ascending list of clients of this round')


def check_table(value, allowed, length, what):
  """The dict of a list of [client, bytes of `length`], ascending; raises ProtocolError."""
  expect(isinstance(value, list) and all(isinstance(x, list) and len(x) == 2 for x in value),
         f'{what}: expected a list of [client, bytes]')
  check_ids([x[0] for x in value], allowed, what)
  for client, data in value:
    check_bytes(data, length, f'{what} of client {client}')
  return dict(value)


def check_bytes(value, length, what):
  """Raises ProtocolError unless `value` is `length` bytes."""
  expect(isinstance(value, bytes) and len(value) == length, f'{what}: expected {length} bytes')


def check_share(data, what):
  """The integer of a share; raises ProtocolError if it is none of the field."""
  share = int.from_bytes(data, 'big')
  expect(share < shamir.PRIME, f'{what}: expected a number below 2^521 - 1')
  return share


def ring(settings, envelopes):
  """The clients of a roster in the order in which they sit, a hash of the whole roster."""
  clients = [envelope.sender for envelope in envelopes]
  if settings.neighbors is None:
    return clients
  roster = hashlib.sha256(b''.join(envelope.content for envelope in envelopes)).digest()
  seat = lambda client: hashlib.sha256(roster + client.to_bytes(8, 'big')).digest()
  return sorted(clients, key=seat)


def neighbors(settings, seats, client):
  """The clients, ascending, that share masks and secrets with `client`; see `ring`."""
  count = len(seats)
  if settings.neighbors is None or settings.neighbors >= count - 1:
    return sorted(set(seats) - {client})
  place, half = seats.index(client), settings.neighbors // 2
  return sorted(seats[(place + i) % count] for i in range(-half, half + 1) if i)


def make_identities(num_clients):
  """Fresh signing keys, as a trusted party would hand them out.

  Returns:
    (private keys {client or SERVER: Ed25519 key}, directory {client or SERVER: 32 public bytes}). A
    party keeps its own private key and the directory.
  """
  keys = {party: primitives.signing_key() for party in (SERVER, *range(num_clients))}
  return keys, {party: primitives.public_bytes(key) for party, key in keys.items()}
