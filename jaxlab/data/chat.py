"""Chat templates: from messages to the one string that a model was trained on."""
import datetime
import json
import pathlib

from jaxlab.config import ConfigError, require

# The role names of ChatML are the messages' own. Vicuna's serves folders without a template.
CHATML = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
          "{{ message['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
_VICUNA_SYSTEM = ('A chat between a curious user and an artificial intelligence assistant. The '
                  "assistant gives helpful, detailed, and polite answers to the user's questions.")
VICUNA = ("{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
          "{% set turns = messages[1:] %}{% else %}{% set system = " + repr(_VICUNA_SYSTEM) + " %}"
          "{% set turns = messages %}{% endif %}{{ system + ' ' }}{% for message in turns %}"
          "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] }}"
          "{% else %}{{ ' ASSISTANT: ' + message['content'] + (eos_token or '') }}{% endif %}"
          "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}")


def load_chat_template(folder):
  """The chat template of a checkpoint folder, and the special tokens that it may name.

  Args:
    folder: with chat_template.jinja, or tokenizer_config.json with a 'chat_template' (a string, or
      a list of named ones of which 'default' is taken).

  Returns:
    (template or None where the folder has none, {'bos_token': str or None, ...}).

  Raises:
    ConfigError: tokenizer_config.json is not JSON.
  """
  folder = pathlib.Path(folder)
  settings, path = {}, folder / 'tokenizer_config.json'
  if path.exists():
    try:
      settings = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
      raise ConfigError(f'{path}: expected JSON ({error})') from error
  token = lambda value: value['content'] if isinstance(value, dict) else value
  tokens = {name: token(settings.get(name)) for name in ('bos_token', 'eos_token', 'pad_token')}
  if (folder / 'chat_template.jinja').exists():
    return (folder / 'chat_template.jinja').read_text(encoding='utf-8'), tokens
  template = settings.get('chat_template')
  if isinstance(template, list):
    template = {entry['name']: entry['template'] for entry in template}.get('default')
  return template, tokens


def render_chat(messages, template, *, add_generation_prompt=True, **variables):
  """Renders messages by a template, in a sandbox: a template is somebody else's program.

  >>> render_chat([{'role': 'user', 'content': 'Hi'}], CHATML)
  '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'

  Args:
    messages: list of {'role', 'content'}, at least one.
    template: Jinja source, as the public checkpoints have it.
    add_generation_prompt: whether the answer's header is appended.
    **variables: what else the template looks at: bos_token, tools, enable_thinking, ...

  Raises:
    ConfigError: the template is no Jinja, leaves the sandbox, or refuses the messages.
  """
  import jinja2
  from jinja2 import sandbox
  require(len(messages) > 0, 'messages', 'at least one', messages)

  def refuse(message):
    raise jinja2.TemplateError(message)

  environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols'])
  environment.filters['tojson'] = lambda value, indent=None: json.dumps(
      value, ensure_ascii=False, indent=indent)
  environment.globals.update(
      raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
  try:
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt, **variables)
  except (jinja2.TemplateError, TypeError) as error:
    raise ConfigError(f'chat template: {error}') from error
