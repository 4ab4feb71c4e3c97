"""Prompts with answers that can be checked: sorting digits, and mathematics problems from files."""
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import chat, documents, pipeline, text
from jaxlab.models.generate import pad_left
from jaxlab.systems.effopd import answers

SUFFIX = '\nPlease reason step by step, and put your final answer within \\boxed{}.'
_NO_TEMPLATE = "{{ bos_token or '' }}" + chat.VICUNA  # of folders without one
_EQUALS, _SORTING_VOCABULARY = 10, 16


class Problems(NamedTuple):
  """A data set of prompts.

  Attributes:
    datasets: split -> grain.MapDataset of 'prompt' int32 [P], padded at the left, 'prompt_mask'
      bool [P], 'answer' int32 [N], padded at the right, 'answer_mask' bool [N], 'row' int32, and
      'teacher' int32 where each row has one of several teachers.
    correct: (tokens [B, N], mask [B, N], batch) -> float32 [B], 1 where an answer is right.
    traceable: whether `correct` may run inside a compiled program.
    vocab_size: ids that occur are below this.
    eos_ids: ids that end an answer.
    pad_id: padding.
    teachers: how many the column 'teacher' of the training rows speaks of; 0 without it.
  """
  datasets: Mapping[str, Any]
  correct: Callable[..., Any]
  traceable: bool
  vocab_size: int
  eos_ids: tuple[int, ...] = ()
  pad_id: int = 0
  teachers: int = 0


def sorting(*, digits: int = 4, train: int = 20000, test: int = 600, noise: float = 0.0,
            teachers: int = 1, seed: int = 0):
  """'3 1 2 2 =' -> '1 2 2 3': the digits in order, made by a random generator.

  Args:
    digits: digits of a prompt, N; the prompt has one token more.
    train: rows of the split 'train'.
    test: rows of the split 'test'.
    noise: share of training answers that are a random permutation instead of the sorted one.
    teachers: each row draws one of so many.
    seed: of both splits.
  """
  config_lib.require(0 <= noise <= 1, 'data.noise', 'a probability', noise)
  config_lib.require(teachers >= 1, 'data.teachers', 'at least 1', teachers)
  rng = np.random.default_rng([seed, 0x50])

  def make(rows, noise):
    numbers = rng.integers(0, 10, (rows, digits)).astype(np.int32)
    noisy = rng.random((rows, 1)) < noise
    answer = np.where(noisy, rng.permuted(numbers, axis=1), np.sort(numbers, axis=1))
    prompt = np.concatenate([numbers, np.full((rows, 1), _EQUALS, np.int32)], axis=1)
    columns = {
        'prompt': prompt, 'prompt_mask': np.ones(prompt.shape, bool), 'answer': answer,
        'answer_mask': np.ones(answer.shape, bool), 'row': np.arange(rows, dtype=np.int32)}
    if teachers > 1:
      columns['teacher'] = rng.integers(0, teachers, rows).astype(np.int32)
    return pipeline.from_arrays(columns)

  def correct(tokens, mask, batch):
    right = jnp.sort(batch['prompt'][:, :digits], axis=1)
    return ((tokens == right).all(1) & mask.all(1)).astype(jnp.float32)

  datasets = {'train': make(train, noise), 'test': make(test, 0.0)}
  return Problems(datasets, correct, True, _SORTING_VOCABULARY,
                  teachers=teachers if teachers > 1 else 0)


def problems(*, train: str, test: str, tokenizer: str, max_prompt: int = 2048,
             max_answer: int = 512, suffix: str = SUFFIX, template: Mapping | None = None):
  """Mathematics problems from JSON-lines files, as chat prompts of a checkpoint's tokenizer.

  A line is {"problem" or "question": str, "answer": str or int, ...}; of a GSM8K answer the number
  after '#### ' counts. An answer is right if its last boxed part equals it (`answers.same_answer`).
  With several teachers each line has its own, "teacher": int, counted from 0.

  Args:
    train: path of the training file.
    test: path of the test file.
    tokenizer: folder with tokenizer.json and its chat template; Vicuna's where it has none.
    max_prompt: P; a longer prompt is an error.
    max_answer: N of 'answer', the reference solution; a longer one is cut.
    suffix: appended to each problem.
    template: further variables of the chat template, {'enable_thinking': False} by default.
  """
  coder = text.load_tokenizer(tokenizer)
  source, specials = chat.load_chat_template(tokenizer)
  options = {**specials, **(template if template is not None else {'enable_thinking': False})}
  ends = tuple(i for i in {coder.token_to_id(t) for t in (specials['eos_token'], '<|im_end|>') if t}
               if i is not None)
  pad_id = coder.token_to_id(specials['pad_token'] or '') or 0
  truths = {}

  def make(split, path):
    rows = read_problems(path)
    prompts = []
    for row in rows:
      rendered = chat.render_chat([{'role': 'user', 'content': row.problem + suffix}],
                                  source or _NO_TEMPLATE, **options)
      prompts.append(coder.encode(rendered, add_special_tokens=False).ids)
      if len(prompts[-1]) > max_prompt:
        raise ValueError(f'{path}: line {row.line}: problem: expected at most {max_prompt} tokens, '
                         f'got {len(prompts[-1])}')
    solutions = [coder.encode(row.answer, add_special_tokens=False).ids[:max_answer - 1] +
                 [*ends[:1]] for row in rows]
    # Row numbers run on over the splits, so that they find the truth without knowing the split.
    first = len(truths)
    truths.update({first + i: answers.final_number(row.answer) for i, row in enumerate(rows)})
    answer, answer_mask = pad_left([row[::-1] for row in solutions], max_answer, pad_id)
    prompt, prompt_mask = pad_left(prompts, max_prompt, pad_id)
    columns = {
        'prompt': prompt, 'prompt_mask': prompt_mask, 'answer': answer[:, ::-1],
        'answer_mask': answer_mask[:, ::-1], 'row': np.arange(first, first + len(rows))}
    if rows[0].teacher is not None:
      columns['teacher'] = np.array([row.teacher for row in rows], np.int32)
    return pipeline.from_arrays(columns)

  datasets = {'train': make('train', train), 'test': make('test', test)}

  def correct(tokens, mask, batch):
    found = [answers.boxed(coder.decode(row[kept].tolist())) for row, kept in
             zip(np.asarray(tokens), np.asarray(mask, bool))]
    return np.array([given is not None and answers.same_answer(given, truths[int(row)])
                     for given, row in zip(found, np.asarray(batch['row']))], np.float32)

  named = pipeline.columns(datasets['train']).get('teacher', ())
  teachers = 1 + int(max(named)) if len(named) else 0
  return Problems(datasets, correct, False, coder.get_vocab_size(), ends, pad_id, teachers)


class Row(NamedTuple):
  """A problem of a file.

  Attributes:
    line: its number, from 1.
    problem: text.
    answer: text.
    teacher: number of its teacher, or None where no row names one.
  """
  line: int
  problem: str
  answer: str
  teacher: int | None


def read_problems(path):
  """The `Row`s of a JSON-lines file; empty lines are none.

  Raises:
    ConfigError: there is no such file.
    ValueError: no row, or a line that is no such object; file, line and field are named.
  """
  rows = []
  for number, (where, line) in enumerate(documents.read_lines(path), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ValueError(f'{where}: expected a JSON object ({error})') from error
    problem = row.get('problem', row.get('question')) if isinstance(row, dict) else None
    if not isinstance(problem, str):
      raise ValueError(f'{where}: problem: expected a string, got {problem!r}')
    answer, teacher = row.get('answer'), row.get('teacher')
    if not isinstance(answer, str) and not _is_integer(answer):
      raise ValueError(f'{where}: answer: expected a string or an integer, got {answer!r}')
    if teacher is not None and not (_is_integer(teacher) and teacher >= 0):
      raise ValueError(f'{where}: teacher: expected an integer of at least 0, got {teacher!r}')
    rows.append(Row(number, problem, str(answer), teacher))
    if (teacher is None) != (rows[0].teacher is None):
      raise ValueError(f'{where}: teacher: expected one in every line or in none, got {teacher!r}')
  if not rows:
    raise ValueError(f'{path}: expected problems, found none')
  return rows


def _is_integer(value):
  return isinstance(value, int) and not isinstance(value, bool)


SOURCES = {'sorting': sorting, 'problems': problems}
