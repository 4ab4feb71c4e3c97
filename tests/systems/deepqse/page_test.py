"""Pages: titles, sentences and highlights; bytes and pages that cannot be read."""
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.deepqse import page

HTML = '''<!doctype html><html><head><title>A  cat &amp; a dog</title><style>p {x: y}</style></head>
<body><nav>Menu</nav><h1>Cats</h1><p>Cats <b>sleep</b>.<br>Dogs bark! &quot;Why?&quot; Nobody
knows.</p><script>var a = "No. No.";</script><ul><li>first<li>second</ul><img src=x>end</body>'''


class PageTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def write(self, name, content):
    (self.folder / name).write_bytes(content)
    return self.folder / name

  def test_html(self):
    found = page.read(self.write('a.html', HTML.encode()))
    self.assertEqual(found.title, 'A cat & a dog')
    self.assertEqual(found.sentences, ('Cats', 'Cats sleep.', 'Dogs bark!', '"Why?"',
                                       'Nobody knows.', 'first', 'second', 'end'))

  def test_text(self):
    found = page.read(self.write('a.txt', '\ufeffTitle\n\nOne. Two\ngoes on.\n\nThree'.encode()))
    self.assertEqual(found, page.Page('Title', ('One.', 'Two goes on.', 'Three')))
    self.assertEqual(page.read(self.write('b.txt', b'Only')), page.Page('Only', ('Only',)))

  @parameterized.parameters(
      ('a.html', b'<html><head><title>T</title></head><body><script>x</script></body></html>',
       'a.html: expected a page with text, found no sentence'),
      ('a.txt', b' \n ', 'found no sentence'),
      ('a.txt', b'ab\ncd\xe9f', 'a.txt: line 2, column 3: expected UTF-8, got byte 0xe9'))
  def test_bad_pages(self, name, content, message):
    with self.assertRaisesRegex(ValueError, message):
      page.read(self.write(name, content))

  def test_files(self):
    with self.assertRaisesRegex(ConfigError, '--input: expected a folder with files'):
      page.files(self.folder)
    for path in (self.folder / 'none.html', self.write('a.pdf', b'x')):
      with self.assertRaisesRegex(ConfigError, '--input: expected a page, a file ending in .html'):
        page.read(path)
    self.write('b.txt', b'x')
    self.write('a.htm', b'x')
    self.assertEqual([p.name for p in page.files(self.folder)], ['a.htm', 'b.txt'])

  def test_highlights(self):
    spans = page.highlights('How do Cats sleep', 'Cats, how they sleep in a do loop')
    self.assertEqual(page.marked('Cats, how they sleep in a do loop', spans, page.PLAIN),
                     '**Cats**, **how** they **sleep** in a do loop')
    self.assertEqual(page.highlights('', 'Cats'), [])


if __name__ == '__main__':
  absltest.main()
