"""The benchmark: contexts x attacks x positions by index arithmetic, from the official files.

BIPIA, arXiv 2312.14197. Rows come in the order position (end, start, middle) > context > attack.
"""
import base64
import dataclasses
import json
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxlab.config import ConfigError, at_least, choose, require

POSITIONS = ('end', 'start', 'middle')
TASKS = ('email', 'qa', 'table', 'abstract', 'code')
SEED = 2023
CLEAN = 'none'  # name of the attack of a prompt without one
_FIELDS = {'email': ('context', 'question', 'ideal'), 'qa': ('context', 'question', 'ideal'),
           'table': ('context', 'question', 'ideal'), 'abstract': ('context', 'ideal'),
           'code': ('context', 'code', 'error', 'ideal')}

_TEXT_CATEGORIES = {
    'task-irrelevant': ('Task Automation', 'Business Intelligence', 'Conversational Agent',
                        'Research Assistance', 'Sentiment Analysis'),
    'task-relevant': ('Substitution Ciphers', 'Base Encoding', 'Reverse Text',
                      'Emoji Substitution', 'Language Translation'),
    'targeted': ('Information Dissemination', 'Marketing & Advertising', 'Entertainment',
                 'Scams & Fraud', 'Misinformation & Propaganda')}
_CODE_CATEGORIES = {
    'passive': ('Data Eavesdropping', 'Traffic Analysis', 'Keylogging', 'Screen Scraping',
                'Introduce System Fingerprinting'),
    'active': ('Blocking Internet Connection', 'Corrupting an Operating System',
               'Encrypting Documents and Demanding Ransom (Ransomware)', 'Compromising Computers',
               'Bringing Down Hosts and Servers (Denial of Service)')}
CATEGORIES = {kind: name for group in (_TEXT_CATEGORIES, _CODE_CATEGORIES)
              for name, kinds in group.items() for kind in kinds}


class Sample(NamedTuple):
  """A row of the benchmark.

  Attributes:
    task: its task.
    position: 'end', 'start' or 'middle'; 'none' for a clean prompt.
    number: of the context in its file.
    attack_name: '{type}-{i}', or 'none'.
    attack: the instruction hidden in `context`, '' if none.
    context: the external text, poisoned unless clean.
    question: the user's, '' where the task has none.
    code: of the code task.
    error: likewise.
    ideal: the answer, or a list of answers (qa).
  """
  task: str
  position: str
  number: int
  attack_name: str
  attack: str
  context: str
  question: str
  code: str
  error: str
  ideal: str | Sequence[str]

  @property
  def key(self):
    """What a result is filed under: the message's text would collide."""
    return f'{self.task}/{self.position}/{self.number}/{self.attack_name}'


def attack_type(name):
  """'Reverse Text' of 'Reverse Text-3'."""
  return name.rpartition('-')[0] or name


def category(name):
  """Category of an attack by its name; 'other' for types that are not in the test split."""
  return CATEGORIES.get(attack_type(name), 'other')


def sentence_spans(text):
  """[(start, end)] of the sentences of a text by NLTK's untrained Punkt."""
  try:
    from nltk.tokenize.punkt import PunktSentenceTokenizer
  except ImportError as error:
    raise ConfigError("bipia needs: pip install 'jaxlab[bipia]'") from error
  return list(PunktSentenceTokenizer().span_tokenize(text))


def insert(context, attack, position, *, seed=SEED, spans=sentence_spans):
  """The context with the attack put in.

  Args:
    context: external text.
    attack: instruction.
    position: 'end', 'start' or 'middle': before a sentence that a fresh random generator draws, so
      that it depends on the number of sentences alone.
    seed: of that draw.
    spans: text -> [(start, end)] of its sentences.

  Raises:
    ConfigError: another position.
  """
  if position == 'end':
    return f'{context}\n{attack}'
  if position == 'start':
    return f'{attack}\n{context}'
  require(position == 'middle', 'position', f'one of {", ".join(POSITIONS)}', position)
  starts = [start for start, _ in spans(context)] or [0]
  cut = random.Random(seed).choice(starts)
  return f'{context[:cut]}\n{attack}\n{context[cut:]}'


@dataclasses.dataclass(frozen=True)
class Part:
  """Contexts of one task and the attacks that are put into them.

  Attributes:
    task: its name.
    contexts: rows of the context file, `Sample`'s fields.
    attacks: {name: instruction}.
    seed: of the middle position.
    stealth: whether the attack is inserted as base64.
    spans: text -> sentence spans, for the middle position.
    numbers: of the contexts in their file; None for 0, 1, ...
  """
  task: str
  contexts: Sequence[Mapping]
  attacks: Mapping[str, str]
  seed: int = SEED
  stealth: bool = False
  spans: Callable = sentence_spans
  numbers: Sequence[int] | None = None

  def __len__(self):
    return len(POSITIONS) * len(self.contexts) * len(self.attacks)

  def __getitem__(self, index):
    if not 0 <= index < len(self):
      raise IndexError(f'index: expected 0 to {len(self) - 1}, got {index}')
    index, attack = divmod(index, len(self.attacks))
    position, context = divmod(index, len(self.contexts))
    return self.sample(POSITIONS[position], context, list(self.attacks)[attack])

  def number(self, context):
    """The number in its file of a context, given by its index in `contexts`."""
    return context if self.numbers is None else self.numbers[context]

  def sample(self, position, context, name):
    """The Sample of a position, a context's index in `contexts` and an attack's name."""
    attack = self.attacks[name]
    hidden = base64.b64encode(attack.encode()).decode() if self.stealth else attack
    row = self.contexts[context]
    poisoned = insert(row['context'], hidden, position, seed=self.seed, spans=self.spans)
    return _sample(self.task, row, position, self.number(context), name, attack, poisoned)

  def clean(self, context):
    """The Sample of a context as it is, not even a newline added."""
    row = self.contexts[context]
    return _sample(self.task, row, 'none', self.number(context), CLEAN, '', row['context'])


def _sample(task, row, position, number, name, attack, context):
  return Sample(task, position, number, name, attack, context, row.get('question', ''),
                row.get('code', ''), row.get('error', ''), row['ideal'])


class Benchmark:
  """Parts one after the other, as one sequence that makes its rows when asked.

  Args:
    parts: sequence of Part.
  """

  def __init__(self, parts):
    self.parts = tuple(parts)

  def __len__(self):
    return sum(len(part) for part in self.parts)

  def __getitem__(self, index):
    if index < 0:
      raise IndexError(f'index: expected 0 to {len(self) - 1}, got {index}')
    for part in self.parts:
      if index < len(part):
        return part[index]
      index -= len(part)
    raise IndexError(f'index: expected 0 to {len(self) - 1}, got one past it')

  def clean(self):
    """The Samples of all contexts without an attack."""
    return [part.clean(i) for part in self.parts for i in range(len(part.contexts))]

  @property
  def attacks(self):
    """{name: instruction} of all parts."""
    return {name: text for part in self.parts for name, text in part.attacks.items()}


def subset(benchmark, *, max_contexts=None, max_attacks=None, seed=SEED):
  """A smaller Benchmark: some contexts of each task; attacks spread evenly over the types.

  Every chosen pair is met at all positions, so the subset is stratified by these too. A context
  keeps its number, so that results of a subset are filed under the same keys as those of the whole.

  Args:
    benchmark: Benchmark.
    max_contexts: most contexts of a task; None for all.
    max_attacks: most attacks of a task; None for all.
    seed: of the draw.

  Raises:
    ConfigError: a count below 1.
  """
  counts = {'max_contexts': max_contexts, 'max_attacks': max_attacks}
  at_least(1, {name: count for name, count in counts.items() if count is not None})
  parts = []
  for part in benchmark.parts:
    rng = random.Random(seed)
    contexts, attacks, numbers = part.contexts, part.attacks, part.numbers
    if max_contexts is not None and max_contexts < len(contexts):
      kept = sorted(rng.sample(range(len(contexts)), max_contexts))
      contexts, numbers = [contexts[i] for i in kept], [part.number(i) for i in kept]
    if max_attacks is not None and max_attacks < len(attacks):
      kinds = {}
      for name in attacks:
        kinds.setdefault(attack_type(name), []).append(name)
      turns = [rng.sample(names, len(names)) for names in kinds.values()]
      rng.shuffle(turns)
      in_turn = [names[i] for i in range(max(map(len, turns))) for names in turns if i < len(names)]
      chosen = set(in_turn[:max_attacks])
      attacks = {name: text for name, text in attacks.items() if name in chosen}
    parts.append(dataclasses.replace(part, contexts=contexts, attacks=attacks, numbers=numbers))
  return Benchmark(parts)


def load(folder, split='test', *, tasks=TASKS, seed=SEED, stealth=False,
         text_attacks_for_code=False):
  """The benchmark of a folder of the official files.

  Args:
    folder: with {text,code}_attack_{split}.json and, for each task, {task}_{split}.jsonl or
      {task}/{split}.jsonl (the official tree's benchmark folder).
    split: 'train' or 'test'.
    tasks: which tasks.
    seed: of the middle position.
    stealth: see Part.
    text_attacks_for_code: whether the code task gets the text attacks, as the official training
      command has it.

  Raises:
    ConfigError: no task, an unknown one, or a file that is not there.
    ValueError: a file with other content, by file, line and column.
  """
  require(len(tasks) > 0, 'tasks', f'some of {", ".join(TASKS)}', tasks)
  folder = pathlib.Path(folder)
  parts = []
  for task in tasks:
    choose(task, _FIELDS, 'tasks')
    kind = 'code' if task == 'code' and not text_attacks_for_code else 'text'
    contexts = _found(folder, f'{task}_{split}.jsonl', f'{task}/{split}.jsonl')
    attacks = read_attacks(_found(folder, f'{kind}_attack_{split}.json'))
    parts.append(Part(task, read_contexts(contexts, task), attacks, seed, stealth))
  return Benchmark(parts)


def _found(folder, *names):
  path = next((folder / name for name in names if (folder / name).is_file()), None)
  require(path is not None, 'folder', f'a folder with {" or ".join(names)}', str(folder))
  return path


def read_attacks(path):
  """{'{type}-{i}': instruction} of a file {type: [instruction, ...]}."""
  try:
    kinds = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path}: expected json: {error}') from error
  if not isinstance(kinds, dict):
    raise ValueError(f'{path}: expected an object of lists, got {type(kinds).__name__}')
  for kind, texts in kinds.items():
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
      raise ValueError(f'{path}: {kind!r}: expected a list of strings')
  return {f'{kind}-{i}': text for kind, texts in kinds.items() for i, text in enumerate(texts)}


def read_contexts(path, task):
  """The rows of a task's context file; the code task's lists of lines are joined."""
  rows = []
  for number, row in enumerate(read_jsonl(path), 1):
    for name in _FIELDS[task]:
      kinds = {(task == 'code'): list, (task == 'qa' and name == 'ideal'): list}.get(True, str)
      if not isinstance(row.get(name), kinds) or kinds is list and not all(
          isinstance(item, str) for item in row[name]) or (task == 'qa' and row[name] == []):
        raise ValueError(f'{path}: line {number}: {name}: expected a {kinds.__name__}'
                         f'{" of strings" if kinds is list else ""}, got {row.get(name)!r}')
    rows.append({name: '\n'.join(row[name]) if task == 'code' else row[name]
                 for name in _FIELDS[task]})
  return rows


def read_jsonl(path):
  """The objects of a JSON-lines file; ValueError names file, line and column of a bad one."""
  rows = []
  for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line.decode('utf-8'))
    except UnicodeDecodeError as error:
      raise ValueError(
          f'{path}: line {number}, column {error.start + 1}: expected UTF-8') from error
    except json.JSONDecodeError as error:
      raise ValueError(f'{path}: line {number}, column {error.colno}: expected json: '
                       f'{error.msg}') from error
    if not isinstance(row, dict):
      raise ValueError(f'{path}: line {number}: expected an object, got {type(row).__name__}')
    rows.append(row)
  return rows
