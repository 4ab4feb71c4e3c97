"""Shamir's secret sharing over the integers modulo 2^521 - 1 (Shamir 1979).

A secret is the value at 0 of a random polynomial of degree threshold - 1; the share of holder k is
its value at x = k + 1. Any `threshold` shares give the secret, fewer say nothing about it.
"""
import functools
import secrets

PRIME = 2**521 - 1
SHARE_BYTES = 66
_SLOT = 8 * SHARE_BYTES
_SPARE = _SLOT - 521  # bits of a slot above the prime's


def evaluate(coefficients, holders):
  """Values at x = 1 ... holders of f(x) = sum_k coefficients[k] * C(x, k) mod PRIME.

  In Newton's form f(0) is the first coefficient, and uniform others make a uniform polynomial, as
  in powers of x. Moving from x to x + 1 adds to each difference the next higher one. The
  differences are slots of one long integer, so that a move is one shift and one addition, and PRIME
  is one less than a power of two, so that reducing all slots is a mask and another addition.

  Args:
    coefficients: integers in [0, PRIME).
    holders: how many values.

  Returns:
    A list of integers in [0, PRIME).
  """
  count = len(coefficients)
  slots = lambda value: int.from_bytes(value.to_bytes(SHARE_BYTES, 'little') * count, 'little')
  low, high = slots(PRIME), slots(2**_SPARE - 1)
  table = int.from_bytes(b''.join(a.to_bytes(SHARE_BYTES, 'little') for a in coefficients),
                         'little')
  values = []
  for x in range(1, holders + 1):
    table += table >> _SLOT
    if x % (_SPARE - 1) == 0:  # each move doubles a slot at most
      table = (table & low) + ((table >> 521) & high)
    values.append((table & (2**_SLOT - 1)) % PRIME)
  return values


def split(secret, threshold, holders):
  """Shares of `secret` (an integer in [0, PRIME)): a list of `holders` integers."""
  return evaluate([secret] + [secrets.randbits(521) % PRIME for _ in range(threshold - 1)], holders)


@functools.lru_cache(maxsize=1024)
def _weights(points):
  """Lagrange's weights at 0 for distinct points x."""
  product = 1
  for x in points:
    product = product * x % PRIME
  weights = []
  for x in points:
    below = x
    for other in points:
      if other != x:
        below = below * (other - x) % PRIME
    weights.append(product * pow(below, -1, PRIME) % PRIME)
  return weights


def combine(shares):
  """The secret of {x: share}, from as many shares as the threshold that it was split with.

  >>> shares = split(1186, threshold=2, holders=3)
  >>> combine({1: shares[0], 3: shares[2]})
  1186
  """
  weights = _weights(tuple(shares))
  return sum(weight * value for weight, value in zip(weights, shares.values())) % PRIME
