"""Real text that every installation has: the docstrings of installed packages."""
import importlib
import inspect
import re
from typing import NamedTuple


def public(module):
  """[(name, docstring), ...] of the public callables of a module that have one, by name.

  Args:
    module: dotted name of an installed module.
  """
  module = importlib.import_module(module)
  members = ((name, getattr(module, name)) for name in sorted(vars(module)))
  found = ((name, inspect.getdoc(member)) for name, member in members
           if not name.startswith('_') and callable(member))
  return [(name, text) for name, text in found if text]


def prose(docstring):
  """Sentences of 5 to 60 words of a docstring's prose.

  Examples, signatures, underlined headings and references are left out.
  """
  paragraphs = [' '.join(paragraph.split()) for paragraph in re.split(r'\n\s*\n', docstring)
                if not re.search(r'>>>|\n[-=~]{3,}|^\s*\.\. |^\s{2,}|::', paragraph)]
  split = (re.split(r'(?<=[.!?])\s+(?=[A-Z])', paragraph) for paragraph in paragraphs)
  return [sentence for part in split for sentence in part if 5 <= len(sentence.split()) <= 60]


def sentences(module):
  """[[sentence, ...], ...] of the prose of a module's public docstrings, a list for each of them.

  Args:
    module: dotted name of an installed module.
  """
  return [found for _, text in public(module) if (found := prose(text))]


SEE_ALSO_MODULES = tuple(
    f'{package}.{module}'.rstrip('.') for package, modules in {
        'numpy': ' fft lib.stride_tricks linalg ma polynomial polynomial.chebyshev '
                 'polynomial.hermite polynomial.hermite_e polynomial.laguerre polynomial.legendre '
                 'polynomial.polynomial random rec strings testing',
        'scipy': 'cluster.hierarchy cluster.vq fft fftpack integrate interpolate io linalg ndimage '
                 'optimize signal signal.windows sparse sparse.csgraph sparse.linalg spatial '
                 'spatial.distance spatial.transform special stats stats.mstats stats.qmc',
        'sklearn': ' calibration cluster compose covariance cross_decomposition datasets '
                   'decomposition discriminant_analysis ensemble feature_extraction '
                   'feature_extraction.text feature_selection gaussian_process '
                   'gaussian_process.kernels impute inspection isotonic kernel_approximation '
                   'kernel_ridge linear_model manifold metrics metrics.cluster metrics.pairwise '
                   'mixture model_selection multiclass multioutput naive_bayes neighbors '
                   'neural_network pipeline preprocessing random_projection semi_supervised svm '
                   'tree utils',
        'matplotlib': 'axes figure pyplot',
    }.items() for module in modules.split(' '))

_SECTION = re.compile(r'^See Also\n-{3,}\n(.*?)(?=\n[^\n]+\n[-=]{3,}|\Z)', re.S | re.M)


class Links(NamedTuple):
  """What the "See Also" sections of docstrings say.

  Attributes:
    names: qualified name of each documented object that has a link, sorted.
    texts: the first sentence of its docstring.
    edges: sorted pairs (i, j), i < j, of indices: one of them names the other.
  """
  names: list[str]
  texts: list[str]
  edges: list[tuple[int, int]]


def first_sentence(docstring, most=200):
  """The first sentence of a docstring without markup, at most `most` characters; '' if none.

  A signature that comes before it is left out.

  >>> first_sentence('f(x)\\n\\nReturn the `x` of :func:`y`. More.')
  'Return the x of y'
  """
  for paragraph in re.split(r'\n\s*\n', docstring):
    text = ' '.join(paragraph.split())
    if text and not re.match(r'\.\. |>>>|[\w.]+ ?\(.*\)( ?->.*)?$', text):
      sentence = re.split(r'\.(?=\s|$)', text)[0]
      sentence = re.sub(r':[\w:.+-]+:(?=`)', '', sentence)
      return re.sub(r'[`*]', '', sentence)[:most].strip()
  return ''


def linked_names(docstring):
  """The names that a docstring's section "See Also" lists, as they are written there.

  >>> linked_names('Sum.\\n\\nSee Also\\n--------\\nmean, numpy.var : Other.\\n    More.\\nstd')
  ['mean', 'numpy.var', 'std']
  """
  found = []
  for section in _SECTION.findall(docstring):
    for line in section.splitlines():
      if line and not line[0].isspace():
        names = re.split(r' ?:(?:\s|$)', re.sub(r':[\w:.+-]+:(?=`)|[`~]', '', line))[0]
        names = re.split(r',\s*|\s+and\s+', names)
        found += [name for name in names if re.fullmatch(r'[A-Za-z_][\w.]*', name)]
  return found


def see_also(modules=SEE_ALSO_MODULES):
  """The graph of public functions, classes and methods that name each other under "See Also".

  An object with several names is one node, called by its first.

  Args:
    modules: dotted names of installed modules. A name is looked up in its own class and module,
      then as it stands, then in the package.

  Returns:
    Links.
  """
  owners, first = {}, {}  # qualified name -> object, id of an object -> its first name
  for module in modules:
    for name, member in _members(module):
      owners[name] = member
      first.setdefault(id(member), name)

  def resolve(name, source):
    name = re.sub(r'^np\.', 'numpy.', name)
    scopes = source.split('.')[:-1]
    places = ['.'.join(scopes[:i]) for i in range(len(scopes), 0, -1)]
    tried = (f'{place}.{name}' for place in (*places, ''))
    return next((owners[t.lstrip('.')] for t in tried if t.lstrip('.') in owners), None)

  texts, pairs = {}, set()
  for name in first.values():
    docstring = inspect.getdoc(owners[name])
    texts[name] = first_sentence(docstring) if isinstance(docstring, str) else ''
  for name in first.values():
    for linked in linked_names(inspect.getdoc(owners[name]) or '') if texts[name] else ():
      other = resolve(linked, name)
      if other is not None and texts[first[id(other)]] and first[id(other)] != name:
        pairs.add(tuple(sorted((name, first[id(other)]))))
  names = sorted({name for pair in pairs for name in pair})
  index = {name: i for i, name in enumerate(names)}
  return Links(names, [texts[name] for name in names],
               sorted((index[a], index[b]) for a, b in pairs))


def _members(module):
  """Yields (qualified name, object) of the public callables of a module and their methods."""
  imported = importlib.import_module(module)
  for name in sorted(vars(imported)):
    member = getattr(imported, name)
    if name.startswith('_') or not callable(member):
      continue
    yield f'{module}.{name}', member
    for method in sorted(vars(member)) if inspect.isclass(member) else ():
      static = inspect.getattr_static(member, method)
      function = getattr(static, '__func__', static)
      if not method.startswith('_') and callable(function):
        yield f'{module}.{name}.{method}', function
