"""What answers: a local checkpoint, an OpenAI-compatible endpoint, a replay of recorded answers.

A responder takes a list of chats and gives a list of strings, None where no answer came.
"""
import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import threading
import time

import jax

from jaxlab.config import ConfigError, at_least, require
from jaxlab.models.generate import generate_all
from jaxlab.systems.bipia.benchmark import read_jsonl
from jaxlab.systems.bipia.whitebox import as_text
from jaxlab.train.workdir import write_atomically

_log = logging.getLogger(__name__)
_AGAIN = (408, 409, 429, *range(500, 600))  # status codes after which the same call may succeed


def local(model, params, coder, *, max_new=2048, batch_size=8, eos_ids=()):
  """A responder of a decoder: greedy, batched by length.

  Args:
    model: DecoderLM.
    params: its parameters.
    coder: `whitebox.Coder` of its tokenizer.
    max_new: most tokens of an answer.
    batch_size: prompts of a batch.
    eos_ids: further ids that end an answer.
  """
  stops = tuple(dict.fromkeys([coder.eos, *eos_ids]))

  def respond(chats):
    prompts = [coder.prompt(chat) for chat in chats]
    tokens = generate_all(model, params, prompts, jax.random.key(0), max_new=max_new,
                          batch_size=batch_size, temperature=0.0, eos_ids=stops, pad_id=coder.pad)
    return [coder.decode([int(i) for i in row if i not in stops]).strip() for row in tokens]

  return respond


def replay(path):
  """A responder that reads answers from a JSON-lines file {'message': chat, 'response': str}."""
  require(pathlib.Path(path).is_file(), 'replay', 'a file of JSON lines', str(path))
  answers = {}
  for number, row in enumerate(read_jsonl(path), 1):
    if 'message' not in row or not isinstance(row.get('response'), str):
      raise ValueError(f"{path}: line {number}: expected 'message' and a string 'response'")
    answers[chat_key(row['message'])] = row['response']
  return lambda chats: [answers.get(chat_key(plain(chat))) for chat in chats]


def plain(chat):
  """A chat with its boundary tokens spelled out, for records."""
  return [{**turn, 'content': as_text(turn['content'])} for turn in chat]


def chat_key(chat, **settings):
  """A hash of a chat and of what else decides its answer."""
  return hashlib.sha256(
      json.dumps([chat, settings], sort_keys=True).encode()).hexdigest()


class Endpoint:
  """A responder that calls an OpenAI-compatible chat endpoint.

  An answer is written to the cache before anything else happens, so a run that is killed pays again
  for those answers alone that were on their way, one a concurrent call.

  Attributes:
    calls: requests that were sent.
    retries: those among them that repeated an earlier one.
    hits: answers from the cache.

  Args:
    url: base URL, such as 'https://host/v1'.
    model: its name there.
    key: of the API, sent as bearer token; '' for none.
    cache: folder of answers; None keeps none.
    max_tokens: most tokens of an answer.
    concurrency: calls at the same time.
    attempts: calls for an answer, before it counts as failed.
    backoff: seconds before the second call; each wait is twice the one before.
    timeout: seconds to wait for an answer.
  """

  def __init__(self, url, model, *, key='', cache=None, max_tokens=2048, concurrency=4, attempts=5,
               backoff=1.0, timeout=60.0):
    try:
      import httpx
    except ImportError as error:
      raise ConfigError("endpoints need: pip install 'jaxlab[api]'") from error
    self._errors = httpx.HTTPError
    headers = {'Authorization': f'Bearer {key}'} if key else {}
    self._client = httpx.Client(timeout=timeout, headers=headers)
    self._url = url.rstrip('/') + '/chat/completions'
    self._settings = {'model': model, 'temperature': 0, 'max_tokens': max_tokens}
    self._cache = pathlib.Path(cache) if cache is not None else None
    self._concurrency, self._attempts, self._backoff = concurrency, attempts, backoff
    self._lock = threading.Lock()
    self.calls = self.retries = self.hits = 0

  def __call__(self, chats):
    with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
      return list(pool.map(self._answer, chats))

  def _answer(self, chat):
    key = chat_key(chat, url=self._url, **self._settings)
    path = self._cache / f'{key}.json' if self._cache is not None else None
    if path is not None and path.exists():
      self._count('hits')
      return json.loads(path.read_text(encoding='utf-8'))
    for attempt in range(self._attempts):
      if attempt:
        time.sleep(self._backoff * 2 ** (attempt - 1))
        self._count('retries')
      self._count('calls')
      answer = self._call(chat)
      if answer is not None:
        if path is not None:
          path.parent.mkdir(parents=True, exist_ok=True)
          write_atomically(path, json.dumps(answer))
        return answer
    return None

  def _call(self, chat):
    """The answer, or None if the same call may be tried again."""
    try:
      reply = self._client.post(self._url, json={**self._settings, 'messages': chat})
    except self._errors as error:
      _log.warning('%s: %s', self._url, type(error).__name__)
      return None
    if reply.status_code in _AGAIN:
      _log.warning('%s: status %d', self._url, reply.status_code)
      return None
    require(reply.status_code == 200, 'endpoint', 'an answer',
            f'status {reply.status_code}: {reply.text[:200]}')
    try:
      content = reply.json()['choices'][0]['message']['content']
    except (ValueError, LookupError, TypeError):
      content = None
    if not isinstance(content, str):
      _log.warning('%s: an answer that is no chat completion', self._url)
      return None
    return content.strip()

  def _count(self, name):
    with self._lock:
      setattr(self, name, getattr(self, name) + 1)

  def close(self):
    """Closes the connections."""
    self._client.close()


def endpoint(*, url: str, model: str, key_variable: str = 'OPENAI_API_KEY',
             cache: str | None = None, max_tokens: int = 2048, concurrency: int = 4,
             attempts: int = 5, backoff: float = 1.0, timeout: float = 60.0):
  """An Endpoint whose key is in the environment; see there."""
  at_least(1, {'max_tokens': max_tokens, 'concurrency': concurrency, 'attempts': attempts})
  return Endpoint(url, model, key=os.environ.get(key_variable, ''), cache=cache,
                  max_tokens=max_tokens, concurrency=concurrency, attempts=attempts,
                  backoff=backoff, timeout=timeout)
