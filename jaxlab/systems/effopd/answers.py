r"""Answers of mathematics problems: the last \boxed{...}, compared as numbers or as plain text."""
import fractions
import re

_SPACES = re.compile(r'\s+|\\[,;!: ]|\\left|\\right|\$')
_FRACTION = re.compile(r'\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}')
_TEXT = re.compile(r'\\(?:text|mathrm|mathbf)\{([^{}]*)\}')


def boxed(text):
  r"""What the last \boxed{...} with balanced braces holds, or None.

  >>> boxed(r'so \boxed{1} or \boxed{\frac{1}{2}}.')
  '\\frac{1}{2}'
  """
  start = text.rfind('\\boxed{')
  while start >= 0:
    depth, begin = 1, start + len('\\boxed{')
    for end in range(begin, len(text)):
      depth += {'{': 1, '}': -1}.get(text[end], 0)
      if depth == 0:
        return text[begin:end]
    start = text.rfind('\\boxed{', 0, start)  # this one never closes
  return None


def final_number(text):
  """The answer of a GSM8K solution, what follows its last '#### '; the whole text without one.

  >>> final_number('5 and 6 make 11 #### 11')
  '11'
  """
  return text.rsplit('####', 1)[-1].strip()


def normalise(answer):
  r"""An answer without spaces, dollars, \text, trailing dots, and with \frac as a quotient.

  >>> normalise(r' $\dfrac{1}{2}$. ')
  '1/2'
  """
  answer = _SPACES.sub('', _TEXT.sub(r'\1', answer))
  answer = _FRACTION.sub(r'\1/\2', answer)
  return answer.rstrip('.').lower()


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
  text = re.sub(r'(?<=\d),(?=\d{3})', '', text)
  percent = text.endswith(('%', '\\%'))
  try:
    value = fractions.Fraction(text.rstrip('\\%'))
  except (ValueError, ZeroDivisionError):
    return None
  return value / 100 if percent else value
