"""An evaluation that can be killed: every answer and every score is a line of a file."""
import json
import logging
import os
import pathlib

from jaxlab.systems.bipia import judges, templates
from jaxlab.systems.bipia.benchmark import read_jsonl
from jaxlab.systems.bipia.responders import plain

RESPONSES, SCORES = 'responses.jsonl', 'scores.jsonl'
_log = logging.getLogger(__name__)


def read_lines(path):
  """The objects of an append-only file; a last line that a kill cut off is removed from it."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  content = path.read_bytes()
  whole = content[:content.rfind(b'\n') + 1]
  if len(whole) < len(content):
    _log.warning('%s: the last line was cut off; it is made again', path)
    with open(path, 'r+b') as file:
      file.truncate(len(whole))
  return read_jsonl(path)


def append(path, rows):
  """Appends objects to a file of JSON lines and waits until the disk has them."""
  with open(path, 'ab') as file:
    file.write(''.join(json.dumps(row) + '\n' for row in rows).encode())
    file.flush()
    os.fsync(file.fileno())


def respond_all(samples, defend, respond, folder, *, chunk=64):
  """A record for each Sample, answered unless the folder has its answer.

  Args:
    samples: sequence of Samples.
    defend: Sample -> chat.
    respond: responder.
    folder: of responses.jsonl; it is made.
    chunk: answers that are asked for, and then written, at once.

  Returns:
    Records in the order of the samples: {'key', 'task', 'position', 'number', 'attack_name',
    'target', 'ideal', 'message', 'response'}. A response that did not come is None; it is not
    written, so the next run asks again.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  done = {row['key']: row for row in read_lines(folder / RESPONSES)}
  waiting = [i for i, sample in enumerate(samples) if sample.key not in done]
  missing = {}
  for start in range(0, len(waiting), chunk):
    chosen = [samples[i] for i in waiting[start:start + chunk]]
    chats = [defend(sample) for sample in chosen]
    rows = [_record(*triple) for triple in zip(chosen, chats, respond(chats))]
    append(folder / RESPONSES, [row for row in rows if row['response'] is not None])
    done.update({row['key']: row for row in rows if row['response'] is not None})
    missing.update({row['key']: row for row in rows if row['response'] is None})
  return [done.get(key) or missing[key] for key in (sample.key for sample in samples)]


def _record(sample, chat, response):
  return {'key': sample.key, 'task': sample.task, 'position': sample.position,
          'number': sample.number, 'attack_name': sample.attack_name,
          'target': templates.benign_response(sample), 'ideal': sample.ideal,
          'message': plain(chat), 'response': response}


def score_all(records, registry, folder, judge=None, *, strict=False, chunk=64):
  """Adds 'score' to attacked records: 1, 0, -1 (no reply), None (nobody judges it).

  Args:
    records: of `respond_all`.
    registry: of `judges`.
    folder: of scores.jsonl.
    judge: responder, or None.
    strict: of `judges.read_reply`.
    chunk: scores that are made, and then written, at once; those of a judge come last.
  """
  path = pathlib.Path(folder) / SCORES
  done = {row['key']: row['score'] for row in read_lines(path)}
  attacked = [record for record in records if record['position'] != 'none']
  waiting = [record for record in attacked if record['key'] not in done]
  # A judge is asked about whole chunks, so that all its concurrent calls are used.
  kinds = {name: entry['kind'] for name, entry in registry.items()}
  waiting.sort(key=lambda record: kinds.get(record['attack_name']) == 'judge')
  for start in range(0, len(waiting), chunk):
    chosen = waiting[start:start + chunk]
    found = judges.scores([registry.get(record['attack_name']) for record in chosen],
                          [record['response'] for record in chosen], judge, strict=strict)
    rows = [{'key': record['key'], 'score': score} for record, score in zip(chosen, found)]
    append(path, [row for row in rows if row['score'] in (0, 1)])
    done.update({row['key']: row['score'] for row in rows})
  return [{**record, 'score': done[record['key']]} if record['position'] != 'none' else record
          for record in records]


def evaluate(samples, defend, respond, registry, folder, *, judge=None, strict=False, chunk=64,
             judge_chunk=64):
  """`respond_all` by `chunk`, then `score_all` by `judge_chunk`: one model under one defence."""
  records = respond_all(samples, defend, respond, folder, chunk=chunk)
  return score_all(records, registry, folder, judge, strict=strict, chunk=judge_chunk)
