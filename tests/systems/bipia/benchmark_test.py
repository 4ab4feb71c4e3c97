"""Index arithmetic, reading of official files, subsets, defences."""
import base64
import itertools
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from configs.bipia import benchmark as endpoint
from jaxlab.config import ConfigError
from jaxlab.systems.bipia import benchmark, defences, templates, toy

CODE = {'error': ['Traceback', ''], 'code': ['def f():', '  pass'], 'context': ['Try', 'this.'],
        'ideal': ['def f():', '  return'], 'context_url': '', 'context_author_url': []}
QUESTION = {'context': 'One thing. Another thing! A third?', 'question': 'Q: What?', 'ideal': 'x'}


def write(folder, name, rows):
  text = '\n'.join(json.dumps(row) for row in rows) if isinstance(rows, list) else json.dumps(rows)
  (folder / name).write_text(text)


def official(folder):
  """Small files in the official form of both splits."""
  for split in ('train', 'test'):
    write(folder, f'text_attack_{split}.json', {'Base Encoding': ['a', 'b'], 'Keylogging': ['c']})
    write(folder, f'code_attack_{split}.json', {'Keylogging': ['```\nx\n```']})
    write(folder, f'email_{split}.jsonl', [QUESTION, {**QUESTION, 'ideal': 'unknown'}])
    write(folder, f'qa_{split}.jsonl', [{**QUESTION, 'ideal': ['x', 'y']}])
    write(folder, f'table_{split}.jsonl', 3 * [QUESTION])
    write(folder, f'abstract_{split}.jsonl', [{'context': 'One. Two.', 'ideal': 'z'}])
    write(folder, f'code_{split}.jsonl', [CODE])


def parts(sizes, text_attacks, code_attacks):
  names = lambda count: {f'T{i // 5}-{i % 5}': f'do {i}' for i in range(count)}
  return [benchmark.Part(task, [QUESTION] * size,
                         names(code_attacks if task == 'code' else text_attacks))
          for task, size in zip(benchmark.TASKS, sizes)]


class CountTest(parameterized.TestCase):

  @parameterized.parameters(((50, 100, 100, 100, 50), 86250), ((50, 900, 900, 900, 50), 626250))
  def test_full_size(self, sizes, count):
    self.assertLen(benchmark.Benchmark(parts(sizes, 75, 50)), count)

  def test_random_access_is_the_enumeration(self):
    whole = benchmark.Benchmark(parts((2, 1, 3, 1, 2), 3, 2))
    in_order = [part.sample(position, number, name) for part in whole.parts
                for position, number, name in itertools.product(
                    ('end', 'start', 'middle'), range(len(part.contexts)), part.attacks)]
    self.assertLen(whole, len(in_order))
    for i in reversed(range(len(whole))):
      self.assertEqual(whole[i], in_order[i])
    self.assertLen({sample.key for sample in in_order}, len(in_order))
    for index in (-1, len(whole)):
      with self.assertRaises(IndexError):
        whole[index]

  def test_a_clean_prompt_has_no_newline_more(self):
    whole = benchmark.Benchmark(parts((2, 1, 3, 1, 2), 3, 2))
    self.assertEqual([s.context for s in whole.clean()], [QUESTION['context']] * 9)

  def test_stealth_hides_the_attack_and_keeps_it(self):
    part = benchmark.Part('email', [QUESTION], {'A-0': 'do it'}, stealth=True)
    sample = part[0]
    self.assertEqual(sample.attack, 'do it')
    self.assertEndsWith(sample.context, '\n' + base64.b64encode(b'do it').decode())

  def test_a_subset_takes_every_type_in_turn(self):
    whole = benchmark.Benchmark(parts((9, 8, 7, 6, 5), 75, 50))
    small = benchmark.subset(whole, max_contexts=2, max_attacks=15)
    for part in small.parts:
      self.assertLen(part.contexts, 2)
      kinds = [benchmark.attack_type(name) for name in part.attacks]
      # 15 of 15 types; of the code task 15 of 10 types, of which half come twice.
      counts = sorted(map(kinds.count, set(kinds)))
      self.assertEqual(counts, 5 * [1] + 5 * [2] if part.task == 'code' else 15 * [1])
    self.assertEqual(small[0], benchmark.subset(whole, max_contexts=2, max_attacks=15)[0])

  def test_a_subset_keeps_the_numbers_of_the_file(self):
    rows = [{**QUESTION, 'ideal': f'row {i}'} for i in range(9)]
    whole = benchmark.Benchmark([benchmark.Part('email', rows, {'A-0': 'do it'})])
    small = benchmark.subset(whole, max_contexts=5)
    smaller = benchmark.subset(small, max_contexts=3)
    for one in (small, smaller):
      samples = [*one.clean(), *map(one.__getitem__, range(len(one)))]
      self.assertEqual([sample.ideal for sample in samples],
                       [f'row {sample.number}' for sample in samples])
    self.assertNotEqual([sample.number for sample in small.clean()], list(range(5)))

  @parameterized.parameters({'max_contexts': -1}, {'max_contexts': 0}, {'max_attacks': -3})
  def test_a_subset_of_nothing(self, **counts):
    (name, count), = counts.items()
    with self.assertRaisesRegex(ConfigError, f'^{name}: expected at least 1, got {count}'):
      benchmark.subset(benchmark.Benchmark(parts((2, 1, 3, 1, 2), 3, 2)), **counts)


class FileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    official(self.folder)

  def test_reads_the_official_form(self):
    whole = benchmark.load(self.folder)
    self.assertLen(whole, 3 * ((2 + 1 + 3 + 1) * 3 + 1))
    self.assertEqual(list(whole.attacks), ['Base Encoding-0', 'Base Encoding-1', 'Keylogging-0'])
    code = whole[len(whole) - 1]
    self.assertEqual((code.task, code.position, code.code), ('code', 'middle', 'def f():\n  pass'))
    self.assertEqual(benchmark.category('Base Encoding-0'), 'task-relevant')
    slip = benchmark.load(self.folder, 'train', text_attacks_for_code=True)
    self.assertLen(slip, 3 * 8 * 3)
    unknown = whole.parts[0].clean(1)
    self.assertEqual(templates.benign_response(unknown), 'Answer: unknown.')
    self.assertEqual(templates.benign_response(unknown, fix_unknown=True),
                     templates.UNKNOWN_ANSWER)

  @parameterized.parameters(
      ('email_test.jsonl', '{"context": 1}', 'line 1: context: expected a str, got 1'),
      ('email_test.jsonl', '{"context": "a", "question": "b", "ideal": "c"}\n{"contex',
       'line 2, column [0-9]+: expected json'),
      ('qa_test.jsonl', '{"context": "a", "question": "b", "ideal": []}',
       r'line 1: ideal: expected a list of strings, got \[\]'),
      ('text_attack_test.json', '{"a": "b"}', "'a': expected a list of strings"),
      ('text_attack_test.json', '[]', 'expected an object of lists, got list'))
  def test_bad_files_name_the_place(self, name, content, message):
    (self.folder / name).write_text(content)
    with self.assertRaisesRegex(ValueError, f'{name}: {message}'):
      benchmark.load(self.folder)

  def test_a_missing_file(self):
    (self.folder / 'qa_test.jsonl').unlink()
    with self.assertRaisesRegex(ConfigError, 'expected a folder with qa_test.jsonl or qa/test'):
      benchmark.load(self.folder)
    self.assertLen(benchmark.load(self.folder, tasks=('email',)), 18)

  def test_no_task(self):
    with self.assertRaisesRegex(ConfigError, r'^tasks: expected some of email, .*, got \(\)'):
      benchmark.load(self.folder, tasks=())


class DefenceTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    part = benchmark.Part('email', [QUESTION] * 3, {'A-0': 'do it', 'A-1': 'or that'})
    self.sample, self.train = part[0], benchmark.Benchmark([part])

  @parameterized.parameters(*defences.DEFENCES)
  def test_all_run_and_ask_the_question_last(self, name):
    defend = defences.make_defence({'name': name}, 'defence', self.train)
    messages = defend(self.sample)
    self.assertEqual(messages, defend(self.sample))
    self.assertEqual(messages[-1]['role'], 'user')
    self.assertIn('Q: What?', ''.join(messages[-1]['content']))

  def test_forms(self):
    three = defences.multi_turn(self.sample, form='three')
    self.assertEqual([turn['role'] for turn in three], ['user', 'assistant', 'user'])
    self.assertNotIn(self.sample.context, three[-1]['content'])
    marked = defences.datamark(self.sample, marker='~')[0]['content']
    self.assertIn('One~thing.~Another', marked)
    coded = defences.encode(self.sample)[0]['content']
    self.assertIn(base64.b64encode(self.sample.context.encode()).decode(), coded)
    self.assertNotIn('do it', coded)
    secrets = {defences.delimit(self.sample, seed=seed)[0]['content'] for seed in range(3)}
    self.assertLen(secrets, 3)
    defend = defences.make_defence({'name': 'in_context', 'shots': 2}, 'd', self.train)
    examples = defend(self.sample)
    self.assertLen(examples, 5)
    self.assertEqual(examples[1]['content'], 'Answer: x.')

  def test_the_endpoint_config_sends_the_system_message_of_gpt_models(self):
    for spec in endpoint.get_config('endpoint').to_dict()['defences']:
      first = defences.make_defence(spec, 'd')(self.sample)[0]
      content = (templates.system_prompt(self.sample).text() if spec['name'] == 'multi_turn' else
                 templates.CHATGPT_SYSTEM)
      self.assertEqual(first, {'role': 'system', 'content': content})

  def test_the_border_is_at_the_context_wherever_else_it_stands(self):
    sample = self.sample._replace(context='email')
    text = defences.border(sample, border='code')[0]['content']
    self.assertIn(':\n```\nemail\n```\n\nQuestion', text)

  @parameterized.parameters(
      ({'name': 'brder'}, "d.name: unknown name 'brder'; did you mean 'border'"),
      ({'name': 'border', 'border': '+'}, r'd.border: expected .*, got'),
      ({'name': 'in_context', 'shots': 0}, 'd.shots: expected at least 1, got 0'),
      ({'name': 'in_context'}, 'd: expected a training split'))
  def test_mistakes(self, spec, message):
    with self.assertRaisesRegex(ConfigError, f'^{message}'):
      defences.make_defence(spec, 'd')

  def test_the_toy_inserts_between_facts(self):
    for sample in map(toy.benchmark(contexts_of=2).__getitem__, range(0, 288, 7)):
      lines = sample.context.split('\n')
      where = [i for i, line in enumerate(lines) if line == sample.attack]
      wanted = {'start': 0, 'end': len(lines) - 1}.get(sample.position)
      if wanted is None:
        self.assertBetween(where[0], 1, len(lines) - 2)
      else:
        self.assertEqual(where, [wanted])


if __name__ == '__main__':
  absltest.main()
