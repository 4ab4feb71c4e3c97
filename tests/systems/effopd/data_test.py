"""The prompts: digits to sort, and problems from files with a tokenizer of their own."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import chat, pipeline
from jaxlab.systems.effopd import data


class SortingTest(absltest.TestCase):

  def test_rows(self):
    made = data.sorting(digits=5, train=50, test=7, noise=0.0, seed=3)
    rows = pipeline.columns(made.datasets['train'])
    np.testing.assert_array_equal(rows['answer'], np.sort(rows['prompt'][:, :5], axis=1))
    np.testing.assert_array_equal(rows['prompt'][:, 5], 10)
    self.assertLen(made.datasets['test'], 7)
    np.testing.assert_array_equal(
        made.correct(rows['answer'], rows['answer_mask'], rows), np.ones(50))
    wrong = rows['answer'][:, ::-1]
    self.assertLess(np.mean(made.correct(wrong, rows['answer_mask'], rows)), 0.2)
    cut = rows['answer_mask'] & (np.arange(5) < 4)
    self.assertEqual(np.sum(made.correct(rows['answer'], cut, rows)), 0)

  def test_noise_is_a_permutation_of_some_answers(self):
    rows = pipeline.columns(data.sorting(train=2000, noise=0.7).datasets['train'])
    right = np.sort(rows['prompt'][:, :4], axis=1)
    np.testing.assert_array_equal(np.sort(rows['answer'], axis=1), right)
    self.assertBetween(np.mean(np.any(rows['answer'] != right, axis=1)), 0.55, 0.7)
    test = pipeline.columns(data.sorting(noise=0.7).datasets['test'])
    np.testing.assert_array_equal(test['answer'], np.sort(test['prompt'][:, :4], axis=1))

  def test_teachers(self):
    made = data.sorting(train=50, test=7, teachers=3)
    self.assertEqual(made.teachers, 3)
    self.assertEqual(set(pipeline.columns(made.datasets['train'])['teacher'].tolist()), {0, 1, 2})
    self.assertNotIn('teacher', pipeline.columns(data.sorting(train=8).datasets['train']))

  def test_impossible_values(self):
    with self.assertRaisesRegex(ConfigError, 'data.noise: expected a probability, got 2'):
      data.sorting(noise=2)
    with self.assertRaisesRegex(ConfigError, 'data.teachers: expected at least 1, got 0'):
      data.sorting(teachers=0)


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'rows.jsonl'

  def test_both_forms(self):
    self.path.write_text('{"id": 1, "problem": "1+1", "answer": 2}\n\n'
                         '{"question": "2+2", "answer": "two and two #### 4"}\n')
    self.assertEqual(data.read_problems(self.path), [
        (1, '1+1', '2', None), (3, '2+2', 'two and two #### 4', None)])
    with self.assertRaisesRegex(ConfigError, 'nowhere.jsonl: no such file'):
      data.read_problems(self.folder / 'nowhere.jsonl')

  def test_a_line_ends_at_a_line_feed_alone(self):
    self.path.write_bytes('{"problem": "a\u2028b\u0085c", "answer": 1, "teacher": 2}\r\n'.encode())
    self.assertEqual(data.read_problems(self.path), [(1, 'a\u2028b\u0085c', '1', 2)])

  @parameterized.parameters(
      ('{"problem": "1"', r'rows.jsonl: line 2: expected a JSON object'),
      ('[1]', 'rows.jsonl: line 2: problem: expected a string, got None'),
      ('{"problem": 3, "answer": 1}', 'rows.jsonl: line 2: problem: expected a string, got 3'),
      ('{"problem": "1", "answer": [2]}', r'line 2: answer: expected a string .*got \[2\]'),
      ('{"problem": "1", "answer": true}', 'line 2: answer: expected a string .*got True'),
      ('{"problem": "1", "answer": 1, "teacher": -1}', '2: teacher: expected an integer'),
      ('{"problem": "1", "answer": 1, "teacher": 0}', '2: teacher: expected one in every'),
      ('{"problem": "\udcff", "answer": 1}', 'line 2, column 14: expected UTF-8, got byte 0xff'))
  def test_bad_rows(self, line, message):
    self.path.write_text('{"problem": "1+1", "answer": 2}\n' + line, errors='surrogateescape')
    with self.assertRaisesRegex(ValueError, message):
      data.read_problems(self.path)

  def test_prompts_and_their_check(self):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    alphabet = ['<pad>', '<eos>', *sorted(pre_tokenizers.ByteLevel.alphabet())]
    coder = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    coder.add_special_tokens(['<pad>', '<eos>'])
    coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    coder.decoder = decoders.ByteLevel()
    coder.save(str(self.folder / 'tokenizer.json'))
    ids = lambda text: coder.encode(text).ids
    (self.folder / 'tokenizer_config.json').write_text(json.dumps({
        'eos_token': '<eos>', 'pad_token': '<pad>',
        'chat_template': "{{ messages[0].role }} {{ messages[0].content }}"}))
    self.path.write_text('\n{"problem": "2+2", "answer": "so #### 4", "teacher": 1}\n')
    made = data.problems(train=str(self.path), test=str(self.path), tokenizer=str(self.folder),
                         max_prompt=10, max_answer=12, suffix='')
    rows = pipeline.columns(made.datasets['test'])
    self.assertEqual(rows['prompt'][0].tolist(), [0, 0, *ids('user 2+2')])
    np.testing.assert_array_equal(rows['prompt_mask'][0], np.arange(10) >= 2)
    self.assertEqual(rows['answer'][0].tolist(), [*ids('so #### 4'), 1, 0, 0])
    np.testing.assert_array_equal(rows['answer_mask'][0], np.arange(12) < 10)
    self.assertEqual((made.eos_ids, made.pad_id, made.traceable), ((1,), 0, False))
    self.assertEqual((rows['teacher'].tolist(), made.teachers), ([1], 2))
    for text, right in (('is \\boxed{4.0}', 1.0), ('is \\boxed{5}', 0.0), ('is 4', 0.0)):
      answer = np.array([[*ids(text), 1, 0]])
      mask = np.arange(answer.shape[1]) <= len(ids(text))
      self.assertEqual(made.correct(answer, mask[None], rows).tolist(), [right], msg=text)
    with self.assertRaisesRegex(ValueError, 'line 2: problem: expected at most 2 tokens'):
      data.problems(train=str(self.path), test=str(self.path), tokenizer=str(self.folder),
                    max_prompt=2, suffix='')
    (self.folder / 'tokenizer_config.json').write_text('{"bos_token": "<eos>"}')
    made = data.problems(train=str(self.path), test=str(self.path), tokenizer=str(self.folder),
                         max_prompt=300, suffix='')
    prompt = coder.decode(pipeline.columns(made.datasets['test'])['prompt'][0].tolist(),
                          skip_special_tokens=False)
    self.assertEndsWith(prompt, "<eos>" + chat.render_chat(
        [{'role': 'user', 'content': '2+2'}], chat.VICUNA))


if __name__ == '__main__':
  absltest.main()
