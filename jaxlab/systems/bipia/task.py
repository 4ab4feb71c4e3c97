"""The white-box defence as a Task: the next token of responses, over a vocabulary that grows.

Arms: 'questions' and 'base' are training without boundary tokens (the toy's instruction follower,
or nothing), 'whitebox' is the defence's data. The phase of the last grows the vocabulary first:
{'arms': ('whitebox',), 'surgery': 'jaxlab.systems.bipia.whitebox:grow'}.
"""
import functools
import inspect
import logging
import random

import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import pipeline
from jaxlab.models import decoder_checkpoint
from jaxlab.models.scoring import gather_logprobs, over_chunks
from jaxlab.systems.bipia import benchmark, loading, templates, toy, whitebox
from jaxlab.systems.bipia.defences import markers
from jaxlab.task import Arm, Loss, Task

CONFIG_KEYS = ('model', 'data')
IGNORED = whitebox.IGNORED
GROW = 'jaxlab.systems.bipia.whitebox:grow'
_log = logging.getLogger(__name__)


def toy_data(*, questions: int = 38400, base: int = 51200, whitebox_rows: int = 9600,
             test: int = 300, user_commands: float = 0.3, seed: int = 0):
  """The examples of the toy: {arm or 'test': columns}.

  Args:
    questions: rows of the arm 'questions', to be learned before 'base'.
    base: rows of the arm 'base'.
    whitebox_rows: rows of the arm 'whitebox'.
    test: rows of the split 'test': attacks of unseen types, with boundary tokens.
    user_commands: share of the user's own commands in the arm 'whitebox'; 0 is the paper's recipe.
    seed: of all draws.
  """
  config_lib.require(0 <= user_commands < 1, 'data.user_commands', 'a share in [0, 1)',
                     user_commands)
  for name, count in (('questions', questions), ('base', base), ('whitebox_rows', whitebox_rows),
                      ('test', test)):
    config_lib.require(count >= 4, f'data.{name}', 'at least 4', count)
  plain, grown = toy.coder(), toy.coder(toy.VOCAB_SIZE + 2)
  pairs = {'questions': (plain, toy.question_pairs(questions, seed)),
           'base': (plain, toy.base_pairs(base, seed)),
           'whitebox': (grown, toy.whitebox_pairs(whitebox_rows, user_commands, seed)),
           'test': (grown, toy.whitebox_pairs(test, 0.0, seed + 1, 'test'))}
  return {name: whitebox.columns(coder, rows, 64)[0] for name, (coder, rows) in pairs.items()}


def official_data(*, folder: str, tasks: tuple = benchmark.TASKS, examples: int = 128000,
                  test: int = 512, responses: str | None = None, commands: str | None = None,
                  user_commands: float = 0.3, reminder: bool = True, max_length: int = 2048,
                  text_attacks_for_code: bool = False, seed: int = 2023, model):
  """The examples of the benchmark's training split, attacked, with benign responses.

  Args:
    folder: of the official files, see `benchmark.load`.
    tasks: which.
    examples: rows of the arm 'whitebox', drawn from the split.
    test: rows of the split 'test', drawn from the benchmark's.
    responses: JSON lines with 'task', 'number' and 'response' to the clean training prompts, such
      as `launch.inject` writes: of the model itself (self_clean) or of a stronger one (gpt4_clean).
      None for the benchmark's own labels.
    commands: JSON lines {'instruction', 'response'}: the user's own commands, to be obeyed.
    user_commands: their share, where there is such a file.
    reminder: whether the prompts have the explicit reminder.
    max_length: longer examples are dropped, and their number is logged.
    text_attacks_for_code: see `benchmark.load`.
    seed: of the draws and of the middle position.
    model: the mapping `config.model`, whose folder has the tokenizer.
  """
  config_lib.require(model.get('weights') is not None, 'model.weights',
                     'a folder with a tokenizer', None)
  size = decoder_checkpoint.decoder_config(model, 'model').vocab_size
  coder, _ = loading.public_coder(model['weights'], size, size + 2)
  answers = None
  if responses is not None:
    answers = {(row.get('task'), row.get('number')): row.get('response')
               for row in benchmark.read_jsonl(responses) if row.get('position') == 'none'}

  def answer(sample):
    if answers is None:
      return templates.benign_response(sample)
    found = answers.get((sample.task, sample.number))
    config_lib.require(isinstance(found, str), 'data.responses',
                       f'a response to the clean prompt {sample.number} of {sample.task}', found)
    return found

  def draw(split, count, answer):
    rows = benchmark.load(folder, split, tasks=tasks, seed=seed,
                          text_attacks_for_code=text_attacks_for_code and split == 'train')
    chosen = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    return [(markers(sample, reminder=reminder), answer(sample))
            for sample in map(rows.__getitem__, chosen)]

  own = [] if commands is None else benchmark.read_jsonl(commands)
  wanted = round(examples * user_commands) if own else 0
  pairs = draw('train', examples - wanted, answer)
  pairs += [([{'role': 'user', 'content': row['instruction']}], row['response'])
            for row in (own[i % len(own)] for i in range(wanted))]
  found = {}
  for name, rows in (('whitebox', pairs), ('test', draw('test', test, templates.benign_response))):
    found[name], dropped = whitebox.columns(coder, rows, max_length)
    if dropped:
      _log.warning('%s: %d of %d examples are longer than %d tokens and dropped', name, dropped,
                   len(rows), max_length)
  return found


SOURCES = {'toy': toy_data, 'official': official_data}


def check(config):
  """Checks `config.model` and `config.data` without reading files; raises ConfigError."""
  data = config_lib.section(config, 'data')
  source = config_lib.choose_named(data, SOURCES, 'data')
  known = [name for name in inspect.signature(source).parameters if name != 'model']
  config_lib.check_keys(data, ('name', 'chunk', *known), 'data')
  config_lib.check_arguments(source, data, 'data', drop=('name', 'chunk'), injected=('model',))
  config_lib.check_type(data.get('chunk', 0), int, 'data.chunk')
  model = config_lib.section(config, 'model')
  loading.check_model(model)
  if source is toy_data:
    config_lib.require(model.get('vocab_size') == toy.VOCAB_SIZE, 'model.vocab_size',
                       f"the toy's {toy.VOCAB_SIZE} words", model.get('vocab_size'))


def make_task(config):
  """Makes the Task of `config.model` (fields of DecoderConfig, or {'weights': folder}) and
  `config.data` ({'name': 'toy' | 'official', ...}; `chunk` positions have logits at once)."""
  check(config)
  data = config['data']
  injected = {'model': config['model']} if data['name'] == 'official' else {}
  columns = config_lib.call(SOURCES[data['name']], data, 'data', drop=('name', 'chunk'), **injected)
  return from_columns(decoder_checkpoint.decoder_config(config['model'], 'model'), columns,
                      weights=config['model'].get('weights'), chunk=data.get('chunk', 0))


def from_columns(decoder, columns, *, weights=None, chunk=0):
  """Makes the Task; a loss raises ConfigError where the vocabulary is too small for its data.

  Args:
    decoder: DecoderConfig before the vocabulary grows.
    columns: {'whitebox', 'test' and, perhaps, 'questions' and 'base': {'ids', 'labels'} int32
      [N, T]}; labels are IGNORED where nothing is learned.
    weights: folder of a public checkpoint to start from; None draws weights.
    chunk: positions whose logits exist at once; 0 for all.
  """
  datasets = {name: pipeline.from_arrays(arrays) for name, arrays in columns.items()}
  datasets['train'] = datasets.get('base', datasets['whitebox'])

  read = None
  if weights is not None:
    read = functools.partial(decoder_checkpoint.read_params, weights, decoder)
  draw = decoder_checkpoint.initializer(decoder, read)

  def scores(params, batch):
    """[B, T - 1]: log-probability of each label, whether it is the likeliest, whether it counts."""
    model = loading.model_of(decoder, params)
    labels = batch['labels'][:, 1:]
    counted = labels != IGNORED
    x, _ = model.apply({'params': params}, batch['ids'], method='hidden')

    def piece(x, labels):
      logits = model.apply({'params': params}, x, method='logits')
      return gather_logprobs(logits, labels), jnp.argmax(logits, -1) == labels

    logprobs, right = over_chunks(piece, chunk, x[:, :-1], jnp.where(counted, labels, 0))
    return logprobs, right, counted

  # An id beyond the table has no vector: the loss would be NaN.
  needed = {name: int(arrays['ids'].max()) + 1 for name, arrays in columns.items()}

  def loss(variables, batch, key, *, arm):
    del key
    rows = variables['params']['embed']['embedding'].shape[0]
    config_lib.require(rows >= needed[arm], 'phases.surgery',
                       f"'{GROW}' no later than the arm {arm!r}, whose vocabulary has "
                       f'{needed[arm]} tokens', f'{rows} tokens')
    logprobs, right, counted = scores(variables['params'], batch)
    weights = counted * batch['weight'][:, None]
    return Loss(-logprobs, weights, {'accuracy': (right.astype(jnp.float32), weights)})

  def predict(variables, batch, key):
    del key
    logprobs, right, counted = scores(variables['params'], batch)
    # A response whose every token is the likeliest one is what greedy decoding gives.
    return {'nats': -(logprobs * counted).sum(1), 'tokens': counted.sum(1),
            'exact': (right | ~counted).all(1)}

  def evaluate(pairs):
    rows = [outputs for outputs, _ in pairs]
    total = {name: np.concatenate([row[name] for row in rows]).astype(np.float64)
             for name in rows[0]}
    return {'loss': float(total['nats'].sum() / total['tokens'].sum()),
            'exact': float(total['exact'].mean())}

  losses = {name: functools.partial(loss, arm=name)
            for name in ('questions', 'base', 'whitebox') if name in datasets}
  arms = {name: Arm(one, lambda name=name: datasets[name]) for name, one in losses.items()}
  return Task(lambda key: {'params': draw(key)},
              losses['base' if 'base' in losses else 'whitebox'], predict, evaluate,
              lambda split: config_lib.choose(split, datasets, 'split'), arms=arms)
