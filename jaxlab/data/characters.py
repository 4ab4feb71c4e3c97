"""Character vocabularies of the federated Shakespeare data sets.

Token ids: PAD 0, BOS 1, EOS 2, then the symbols in order, then one id for all other characters.
"""
import numpy as np

PAD, BOS, EOS = range(3)
_SPECIAL = 3

# LEAF's (arXiv 1812.01097): its index of a symbol plus 3 is the id.
LEAF = ("\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]"
        'abcdefghijklmnopqrstuvwxyz}')
# The TensorFlow Federated tutorial's, which FedJAX uses too.
TFF = ('dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#\'/37;?bfjnrvzBFJNRVZ"&*.26:\n'
       'aeimquyAEIMQUY]!%)-159\r')


def vocab_size(symbols):
  """Number of token ids.

  >>> vocab_size(LEAF), vocab_size(TFF)
  (84, 90)
  """
  return _SPECIAL + len(symbols) + 1


def encode(text, symbols):
  """Token ids uint8 [len(text)] of a string.

  >>> encode('Z-µ', LEAF).tolist()
  [53, 12, 83]
  """
  ids = {symbol: _SPECIAL + position for position, symbol in enumerate(symbols)}
  other = _SPECIAL + len(symbols)
  return np.array([ids.get(character, other) for character in text], np.uint8)


def decode(ids, symbols):
  """The string of token ids [T]; PAD, BOS and EOS vanish, and what was no symbol becomes '\ufffd'.

  >>> decode([1, 53, 12, 83, 2, 0], LEAF)
  'Z-\ufffd'
  """
  return ''.join((symbols + '\ufffd')[i - _SPECIAL] for i in ids if i >= _SPECIAL)
