r"""Answers of mathematics problems: the last \boxed{...}, compared as numbers or as plain text."""
import fractions
import re

_SPACES = re.compile(r'\s+|\\[,;!: ]|\\left|\\right|\\?\$')
_FRACTION = re.compile(r'\\[dt]frac')
_TEXT = re.compile(r'\\(?:text|mathrm|mathbf)\{([^{}]*)\}')
_MIXED = re.compile(r'(?<![\d.,/])(\d+)\s+(\d+)/(\d+)')
# A quotient stands without brackets if it is alone and what it divides is no sum.
_BEFORE, _AFTER = '-+=,([{<>', re.compile(r'$|[-+=,)\]}<>%]|\\%')
_WHOLE = re.compile(r'(?:^|(?<=[-+=([{<>,]))[0-9]{1,30}$')  # of a mixed number
_NATURAL = re.compile(r'[0-9]{1,30}')
_NUMERATOR = re.compile(r'-?[^-+/,()=<>]+')
_DENOMINATOR = re.compile(r'-?[0-9]+(?:\.[0-9]+)?|[a-zA-Z]|\\[a-zA-Z]+(?:\{[^{}]*\})?')
_THOUSANDS = re.compile(r'[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?')
# Longer exponents would take all memory, longer numbers are refused by Python.
_NUMBER = re.compile(r'[-+]?(?:[0-9]{1,999}\.?[0-9]{0,999}|\.[0-9]{1,999})(?:e[-+]?[0-9]{1,3})?')


def boxed(text):
  r"""What the last \boxed{...} with balanced braces holds, or None.

  >>> boxed(r'so \boxed{1} or \boxed{\frac{1}{2}}.')
  '\\frac{1}{2}'
  """
  start = text.rfind('\\boxed{')
  while start >= 0:
    found = _group(text, start + len('\\boxed{'))
    if found is not None:
      return found
    start = text.rfind('\\boxed{', 0, start)  # this one never closes
  return None


def _group(text, begin):
  """What stands between the brace before `begin` and the one that closes it, or None."""
  depth = 1
  for end in range(begin, len(text)):
    depth += {'{': 1, '}': -1}.get(text[end], 0)
    if depth == 0:
      return text[begin:end]
  return None


def final_number(text):
  """The answer of a GSM8K solution, what follows its last '#### '; the whole text without one.

  >>> final_number('5 and 6 make 11 #### 11')
  '11'
  """
  return text.rsplit('####', 1)[-1].strip()


def normalise(answer):
  r"""An answer without spaces, dollars, \text, trailing dots, and with \frac as a quotient.

  >>> normalise(r' $\dfrac{1}{2}$. '), normalise(r'\frac{a+b}{c}'), normalise(r'1\frac{1}{2}')
  ('1/2', '(a+b)/c', '3/2')
  """
  answer = _MIXED.sub(r'\1\\frac{\2}{\3}', _TEXT.sub(r'\1', answer))
  answer = _FRACTION.sub(r'\\frac', _SPACES.sub('', answer)).rstrip('.')
  return _quotients(answer).lower()


def _quotients(text):
  r"""The text with a / b for each \frac{a}{b}, the last one first, so that operands have none."""
  limit = len(text)
  while (start := text.rfind('\\frac', 0, limit)) >= 0:
    limit = start
    numerator, middle = _operand(text, start + len('\\frac'))
    denominator, end = _operand(text, middle)
    if not numerator or not denominator:
      continue
    before, after = text[:start], text[end:]
    whole = _WHOLE.search(before[-32:])
    if whole and _NATURAL.fullmatch(numerator) and _NATURAL.fullmatch(denominator):
      numerator = str(int(whole.group()) * int(denominator) + int(numerator))
      before = before[:-len(whole.group())]
    if not _NUMERATOR.fullmatch(numerator):
      numerator = f'({numerator})'
    if not _DENOMINATOR.fullmatch(denominator):
      denominator = f'({denominator})'
    quotient = f'{numerator}/{denominator}'
    if not (before[-1:] in _BEFORE and _AFTER.match(after)):
      quotient = f'({quotient})'
    text, limit = before + quotient + after, len(before)
  return text


def _operand(text, start):
  """(what a command takes at `start`, a group or one character, where it ends)."""
  if text[start:start + 1] != '{':
    return text[start:start + 1], start + 1
  found = _group(text, start + 1)
  return found, start + 2 + len(found or '')


def same_answer(first, second):
  r"""Whether two answers are equal, as rational numbers where both are, else as normalised text.

  CHOICE: no symbolic algebra.

  >>> same_answer('0.50', r'\frac{1}{2}'), same_answer('1,000', '1000'), same_answer('x', 'y')
  (True, True, False)
  """
  first, second = normalise(first), normalise(second)
  numbers = [_rational(text) for text in (first, second)]
  if None in numbers:
    return first == second
  return numbers[0] == numbers[1]


def _rational(text):
  """The number of a decimal or a quotient of two, with or without %, or None."""
  parts = [_decimal(part) for part in text.rstrip('\\%').split('/')]
  if None in parts or len(parts) > 2 or parts[1:] == [0]:
    return None
  value = parts[0] / parts[1] if parts[1:] else parts[0]
  return value / 100 if text.endswith('%') else value


def _decimal(text):
  if _THOUSANDS.fullmatch(text):
    text = text.replace(',', '')
  return fractions.Fraction(text) if _NUMBER.fullmatch(text) else None
