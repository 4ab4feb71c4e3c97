"""Pages from HTML and text files: title, sentences, and which words of a sentence to highlight."""
import html.parser
import pathlib
import re
from typing import NamedTuple

from jaxlab.config import require
from jaxlab.systems.deepqse.baselines import words

ENDINGS = ('.html', '.htm', '.txt', '.md')
_SILENT = {'script', 'style', 'noscript', 'template', 'svg', 'head', 'nav', 'select', 'button'}
_INLINE = {'a', 'abbr', 'b', 'bdi', 'bdo', 'cite', 'code', 'em', 'font', 'i', 'kbd', 'mark', 'q',
           's', 'samp', 'small', 'span', 'strong', 'sub', 'sup', 'time', 'tt', 'u', 'var', 'wbr'}
TERMINAL, PLAIN = ('\033[1m', '\033[0m'), ('**', '**')  # around a highlighted word


class Page(NamedTuple):
  """A page.

  Attributes:
    title: text, '' where it has none.
    sentences: in order.
  """
  title: str
  sentences: tuple[str, ...]


class _Text(html.parser.HTMLParser):
  """Collects the title and the blocks of visible text."""

  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.title, self.blocks, self._silent, self._in_title = '', [''], [], False

  def handle_starttag(self, tag, attrs):
    if tag == 'title' and not self.title:
      self._in_title = True
    elif tag in _SILENT:
      self._silent.append(tag)
    elif tag == 'body':
      self._silent = []  # whatever was left open before it
    if tag not in _INLINE:
      self.blocks.append('')

  def handle_endtag(self, tag):
    if tag == 'title':
      self._in_title = False
    elif tag in self._silent:
      del self._silent[self._silent.index(tag):]
    if tag not in _INLINE:
      self.blocks.append('')

  def handle_data(self, data):
    if self._in_title:
      self.title += data
    elif not self._silent:
      self.blocks[-1] += data


def read(path):
  """The Page of a UTF-8 file: HTML by its ending, else text whose first line is the title.

  Raises:
    ConfigError: no such file, or another ending.
    ValueError: bytes that are no UTF-8, with line and column, or a page without sentences.
  """
  path = pathlib.Path(path)
  require(path.suffix.lower() in ENDINGS and path.is_file(), '--input',
          f'a page, a file ending in {", ".join(ENDINGS)}, or a folder of them', str(path))
  content = path.read_bytes()
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    before = error.object[:error.start]
    line, column = before.count(b'\n') + 1, error.start - before.rfind(b'\n')
    raise ValueError(f'{path}: line {line}, column {column}: expected UTF-8, got byte '
                     f'{error.object[error.start]:#04x}') from error
  page = from_html(text) if path.suffix.lower() in ('.html', '.htm') else from_text(text)
  if not page.sentences:
    raise ValueError(f'{path}: expected a page with text, found no sentence')
  return page


def files(path):
  """[path] of a file, or the pages of a folder by name; ConfigError if there is none."""
  path = pathlib.Path(path)
  if not path.is_dir():
    return [path]
  found = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
  require(found, '--input', f'a folder with files ending in {", ".join(ENDINGS)}', str(path))
  return found


def from_html(text):
  """The Page of HTML; scripts, styles, navigation and forms are left out.

  >>> from_html('<title>T</title><body><p>One <b>two</b>. Three.<script>x</script><p>Four')
  Page(title='T', sentences=('One two.', 'Three.', 'Four'))
  """
  parser = _Text()
  parser.feed(text)
  parser.close()
  return Page(' '.join(parser.title.split()), sentences(parser.blocks))


def from_text(text):
  """The Page of text: the first line that is not empty is the title, empty lines end sentences.

  A page of one line is its own only sentence.
  """
  first, _, rest = text.strip().partition('\n')
  body = sentences(re.split(r'\n\s*\n', rest))
  return Page(' '.join(first.split()), body or sentences([first]))


def sentences(blocks):
  """The sentences of blocks of text, none of which goes on in the next block.

  >>> sentences(['It costs 3.5 dollars. "Really?" Yes!'])
  ('It costs 3.5 dollars.', '"Really?"', 'Yes!')
  """
  found = []
  for block in blocks:
    block = ' '.join(block.split())
    found += re.split(r'(?<=[.!?])\s+|(?<=[.!?]["\')])\s+', block)
  return tuple(sentence for sentence in found if re.search(r'\w', sentence))


def highlights(query, sentence):
  """[(start, end), ...] in characters of the sentence's words that stand in the query.

  >>> highlights('Cats of Rome', 'In Rome cats sleep.')
  [(3, 7), (8, 12)]
  """
  asked = {word for word in words(query) if len(word) > 2 or not word.isascii() or word.isdigit()}
  return [match.span() for match in re.finditer(r'\w+', sentence) if match[0].lower() in asked]


def marked(sentence, spans, marks):
  """The sentence with `marks` around each span.

  >>> marked('In Rome', [(3, 7)], ('<b>', '</b>'))
  'In <b>Rome</b>'
  """
  pieces, start = [], 0
  for begin, end in spans:
    pieces += [sentence[start:begin], marks[0], sentence[begin:end], marks[1]]
    start = end
  return ''.join([*pieces, sentence[start:]])
