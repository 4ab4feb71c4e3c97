"""Chat templates: the strings, where they come from, and what a hostile one cannot do."""
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.data import chat

USER = {'role': 'user', 'content': 'What is 2+2?'}
SYSTEM = {'role': 'system', 'content': 'Be brief.'}
ANSWER = {'role': 'assistant', 'content': '4'}
# The conditions of Qwen's own templates, in short.
QWEN25 = ("{%- if messages[0]['role'] == 'system' %}\n"
          "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
          "{%- else %}\n"
          "    {{- '<|im_start|>system\\nYou are a default.<|im_end|>\\n' }}\n"
          "{%- endif %}\n"
          "{%- for message in messages %}\n"
          "    {%- if message.role == 'system' and loop.first %}{% continue %}{%- endif %}\n"
          "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
          "{%- endfor %}\n"
          "{%- if add_generation_prompt %}\n"
          "    {{- '<|im_start|>assistant\\n' }}\n"
          "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
          "        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
          "    {%- endif %}\n"
          "{%- endif %}\n")


class RenderTest(parameterized.TestCase):

  def test_chatml(self):
    self.assertEqual(
        chat.render_chat([SYSTEM, USER, ANSWER, USER], chat.CHATML),
        '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n'
        '<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n'
        '<|im_start|>assistant\n')
    self.assertEqual(chat.render_chat([USER], chat.CHATML, add_generation_prompt=False),
                     '<|im_start|>user\nWhat is 2+2?<|im_end|>\n')

  def test_vicuna(self):
    system = ('A chat between a curious user and an artificial intelligence assistant. The '
              "assistant gives helpful, detailed, and polite answers to the user's questions.")
    self.assertEqual(chat.render_chat([USER], chat.VICUNA),
                     system + ' USER: What is 2+2? ASSISTANT:')
    self.assertEqual(chat.render_chat([SYSTEM, USER, ANSWER, USER], chat.VICUNA, eos_token='</s>'),
                     'Be brief. USER: What is 2+2? ASSISTANT: 4</s>USER: What is 2+2? ASSISTANT:')

  @parameterized.parameters(
      ({}, ''), ({'enable_thinking': True}, ''),
      ({'enable_thinking': False}, '<think>\n\n</think>\n\n'))
  def test_a_template_like_qwens(self, variables, ending):
    self.assertEqual(
        chat.render_chat([USER], QWEN25, **variables),
        '<|im_start|>system\nYou are a default.<|im_end|>\n<|im_start|>user\nWhat is 2+2?'
        '<|im_end|>\n<|im_start|>assistant\n' + ending)
    self.assertNotIn('default', chat.render_chat([SYSTEM, USER], QWEN25))

  @parameterized.parameters(
      ("{{ ''.__class__.__mro__ }}", 'unsafe'),
      ('{% set x = messages.append(1) %}', 'unsafe|not safely'),
      ("{{ raise_exception('roles must alternate') }}", '^chat template: roles must alternate'),
      ('{% if %}', 'chat template: '))
  def test_what_a_template_may_not(self, template, message):
    with self.assertRaisesRegex(ConfigError, message):
      chat.render_chat([USER], template)

  def test_content_is_never_read_as_a_template(self):
    text = "{{ 7 * 7 }}{% raw %} <b>&'"
    self.assertIn(text, chat.render_chat([{**USER, 'content': text}], chat.CHATML))

  def test_no_messages(self):
    with self.assertRaisesRegex(ConfigError, 'messages: expected at least one'):
      chat.render_chat([], chat.CHATML)


class LoadTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def write(self, **settings):
    (self.folder / 'tokenizer_config.json').write_text(json.dumps(settings))

  def test_where_it_stands(self):
    self.assertEqual(chat.load_chat_template(self.folder)[0], None)
    self.write(chat_template='A', bos_token={'content': '<s>'}, eos_token='</s>')
    tokens = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': None}
    self.assertEqual(chat.load_chat_template(self.folder), ('A', tokens))
    self.write(chat_template=[{'name': 'tools', 'template': 'T'},
                              {'name': 'default', 'template': 'D'}])
    self.assertEqual(chat.load_chat_template(self.folder)[0], 'D')
    (self.folder / 'chat_template.jinja').write_text('J')
    self.assertEqual(chat.load_chat_template(self.folder)[0], 'J')

  def test_a_damaged_file(self):
    (self.folder / 'tokenizer_config.json').write_text('{')
    with self.assertRaisesRegex(ConfigError, 'tokenizer_config.json: expected JSON'):
      chat.load_chat_template(self.folder)


if __name__ == '__main__':
  absltest.main()
