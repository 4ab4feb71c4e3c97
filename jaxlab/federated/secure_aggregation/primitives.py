"""What the protocol takes from the cryptography package, and the streams that masks are made of.

The package (extra [secure]) is imported when the first function needs it.
"""
import functools
import hashlib
import types

import jax
import numpy as np

from jaxlab import config as config_lib
from jaxlab.federated.secure_aggregation import codec

KEY_BYTES = 32
TAG_BYTES = 16


@functools.cache
def _library():
  try:
    from cryptography import exceptions
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
  except ImportError as error:
    raise config_lib.ConfigError(
        "secure aggregation needs: pip install 'jaxlab[secure]'") from error
  return types.SimpleNamespace(
      exceptions=exceptions, hashes=hashes, ed25519=ed25519, x25519=x25519, Cipher=Cipher,
      algorithms=algorithms, ChaCha20Poly1305=ChaCha20Poly1305, HKDF=HKDF)


def agreement_key(private):
  """The X25519 private key of 32 bytes, ready for many agreements."""
  return _library().x25519.X25519PrivateKey.from_private_bytes(private)


def agree(key, public):
  """The X25519 shared secret, 32 bytes; ValueError if `public` is a point of small order."""
  return key.exchange(_library().x25519.X25519PublicKey.from_public_bytes(public))


def pair_seed(key, public):
  """The seed of the mask that two clients share: SHA-256 of their X25519 secret."""
  return hashlib.sha256(agree(key, public)).digest()


def channel_keys(key, public, session):
  """Two keys of 32 bytes for one message each way, the lower client's first (HKDF-SHA-256)."""
  library = _library()
  derive = library.HKDF(library.hashes.SHA256(), 2 * KEY_BYTES, salt=session, info=b'shares')
  both = derive.derive(agree(key, public))
  return both[:KEY_BYTES], both[KEY_BYTES:]


# Every key encrypts one message, so the nonce may be constant.
_NONCE = bytes(12)


def encrypt(key, plaintext, associated):
  """ChaCha20-Poly1305; 16 bytes longer than `plaintext`. A key must never be used twice."""
  return _library().ChaCha20Poly1305(key).encrypt(_NONCE, plaintext, associated)


def decrypt(key, ciphertext, associated):
  """Undoes `encrypt`; None if the message, its key or `associated` is another."""
  library = _library()
  try:
    return library.ChaCha20Poly1305(key).decrypt(_NONCE, ciphertext, associated)
  except library.exceptions.InvalidTag:
    return None


def signing_key(private=None):
  """An Ed25519 private key, from 32 bytes or a fresh one."""
  kind = _library().ed25519.Ed25519PrivateKey
  return kind.generate() if private is None else kind.from_private_bytes(private)


def public_bytes(key):
  """The public half of a private key, 32 bytes."""
  return key.public_key().public_bytes_raw()


def verify(public, signature, data):
  """Whether the Ed25519 signature of `data` is right."""
  library = _library()
  try:
    library.ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
  except library.exceptions.InvalidSignature:
    return False
  return True


def chacha20_words(seed, size):
  """uint32 [size]: the ChaCha20 key stream of a 32-byte seed."""
  library = _library()
  stream = library.Cipher(library.algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
  return np.frombuffer(stream.update(bytes(4 * size)), '<u4')


def sha256_words(seed, size):
  """uint32 [size]: SHA-256(seed || big-endian uint32 counter), read as little-endian words."""
  blocks = (hashlib.sha256(seed + i.to_bytes(4, 'big')).digest() for i in range(-(-size // 8)))
  return np.frombuffer(b''.join(blocks), '<u4')[:size]


def threefry_words(seed, size):
  """uint32 [size]: what the compiled round draws for this seed. Its state is 64 bits: to simulate
  with, not to hide with."""
  return np.asarray(_threefry(np.frombuffer(seed, '<u4'), size))


@functools.partial(jax.jit, static_argnums=1)
def _threefry(seed, size):
  return jax.random.bits(codec.seed_key(seed), (size,), np.uint32)


PRGS = {'chacha20': chacha20_words, 'sha256': sha256_words, 'threefry': threefry_words}


def uniformity(words):
  """p-value of a chi-square test that the bytes of uint32 words are uniform."""
  from scipy import stats
  counts = np.bincount(np.asarray(words, '<u4').view(np.uint8).ravel(), minlength=256)
  return float(stats.chisquare(counts).pvalue)
