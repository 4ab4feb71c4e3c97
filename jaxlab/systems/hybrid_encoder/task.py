"""The Task of Hybrid Encoder: retrieval in stage 1, ranking among hard negatives in stage 2.

A phase without `refresh_every` trains retrieval with the other ads of the batch as negatives. A
phase with it trains ranking: `refresh` looks for the ads that the present retrieval finds for each
user, and the loss is over the click, some of these and some random ads. What stage 2 leaves as it
is, the phase's `trainable` says.
"""
import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.data import pipeline
from jaxlab.data import text as text_lib
from jaxlab.losses.contrastive import cross_entropy, in_batch_logits
from jaxlab.metrics import ranking, retrieval
from jaxlab.models import bert, bert_weights
from jaxlab.systems.hybrid_encoder import data as data_lib
from jaxlab.systems.hybrid_encoder import model as model_lib
from jaxlab.systems.hybrid_encoder.index import Index
from jaxlab.systems.hybrid_encoder.rankers import RANKERS
from jaxlab.task import Loss, Task
from jaxlab.tasks.text_classification import encoder_config

CONFIG_KEYS = ('model', 'data', 'loss', 'predict')
TITLE_LENGTH = 30  # tokens, where `config.data` says nothing else
_NEVER = -1e9
_CHUNK = 256  # ads or users that are encoded together outside of training


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """How the two stages are trained.

  Attributes:
    temperature: what scores are divided by; 1 for inner products, .05 for cosines.
    log_q: whether the log of an ad's share of the clicks is taken off its score in stage 1.
    top_k: ads that retrieval finds for a click, from which the hard negatives are drawn.
    hard: hard negatives of a click.
    random: random negatives of a click.
    retrieval_weight: of the retrieval loss in stage 2, where retrieval is trained on.
    orthogonality: weight of || C C^T - I ||^2 of the codes.
  """
  temperature: float = 1.0
  log_q: bool = False
  top_k: int = 100
  hard: int = 7
  random: int = 1
  retrieval_weight: float = 0.0
  orthogonality: float = 0.0

  def __post_init__(self):
    for name, least in (('top_k', 1), ('hard', 0), ('random', 0), ('retrieval_weight', 0),
                        ('orthogonality', 0)):
      config_lib.require(getattr(self, name) >= least, name, f'at least {least}',
                         getattr(self, name))
    config_lib.require(self.temperature > 0, 'temperature', 'more than 0', self.temperature)
    config_lib.require(self.hard + self.random > 0, 'hard', 'a negative at least', 0)
    config_lib.require(self.top_k >= self.hard, 'top_k', f'at least hard={self.hard}', self.top_k)


class Encoders(NamedTuple):
  """From features of texts to what the model reads.

  Attributes:
    pages: (params, {name: [M, ...]}, key or None) -> vectors [M, d]; a key turns dropout on.
    ads: likewise -> (token states [M, L, d], mask bool [M, L]).
    init: key -> params.
  """
  pages: Callable
  ads: Callable
  init: Callable


def given_states():
  """Encoders of what is there already: 'vectors' of pages, 'states' and 'mask' of ads."""
  return Encoders(lambda params, features, key=None: features['vectors'],
                  lambda params, features, key=None: (features['states'], features['mask']),
                  lambda key: {})


def text_encoders(model, pool='mean', params=None):
  """Encoders by one `bert.Bert` for pages and ads.

  Args:
    model: Bert, without a pooler.
    pool: 'mean' or 'cls', what the vector of a page is.
    params: to start from as NumPy arrays, or None for random ones.
  """
  def run(params, features, key):
    rngs = {} if key is None else {'dropout': key}
    return model.apply({'params': params['text']}, features['ids'], features['mask'],
                       deterministic=key is None, rngs=rngs)

  def pages(params, features, key=None):
    return bert.pool(run(params, features, key), features['mask'], pool).astype(jnp.float32)

  def ads(params, features, key=None):
    return run(params, features, key).last.astype(jnp.float32), features['mask'] > 0

  def init(key):
    start = model.init(key, jnp.ones((1, 2), jnp.int32))['params']
    return {'text': start if params is None else bert.from_host(params, start)}

  return Encoders(pages, ads, init)


def check(config):
  """Checks `config.model`, `config.data`, `config.loss` and `config.predict` without data.

  Returns:
    (HybridEncoder, LossConfig, the `encoder_config` of the text).

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type, an impossible value.
  """
  data = config_lib.section(config, 'data')
  arguments = config_lib.check_arguments(load_data, data, 'data', drop=())
  config_lib.choose(data['name'], dict.fromkeys(data_lib.DATASETS), 'data.name')
  for name, least in (('history_length', 1), ('title_length', 3), ('vocab_size', 8)):
    config_lib.require(arguments.get(name, least) >= least, f'data.{name}', f'at least {least}',
                       arguments.get(name))
  model = config_lib.section(config, 'model')
  config_lib.check_keys(model, ('text', 'page_pool', 'siamese', 'ranker'), 'model')
  text = config_lib.call(encoder_config, config_lib.section(model, 'text'), 'model.text', drop=())
  config_lib.require(model.get('page_pool', 'mean') in ('mean', 'cls'), 'model.page_pool',
                     "'mean' or 'cls'", model.get('page_pool'))
  part = model.get('ranker', {'name': 'hybrid'})
  ranker = config_lib.choose_named(part, RANKERS, 'model.ranker')
  config_lib.check_arguments(ranker, part, 'model.ranker', injected=('parent',))
  net = model_lib.HybridEncoder(
      config_lib.call(model_lib.Siamese, model.get('siamese', {}), 'model.siamese', parent=None),
      config_lib.call(ranker, part, 'model.ranker', parent=None))
  config_lib.at_least(1, net.siamese, ('queries',), 'model.siamese')
  for least, names in ((1, ('codes', 'hidden', 'queries', 'layers', 'heads')), (0, ('width',))):
    config_lib.at_least(least, part, [name for name in names if name in part], 'model.ranker')
  loss = config_lib.call(LossConfig, config.get('loss', {}), 'loss', drop=())
  config_lib.require(not loss.orthogonality or isinstance(net.ranker, model_lib.HybridRanker),
                     'loss.orthogonality', '0 with a ranker that has no codes of ads',
                     loss.orthogonality)
  config_lib.call(predict_options, config.get('predict', {}), 'predict', drop=())
  _, bert_config, _ = text
  if bert_config is not None:  # otherwise `build` reads it from the folder
    _check_fit(net, bert_config, data)
  return net, loss, text


def _check_fit(net, bert_config, data):
  """Raises ConfigError unless titles and ranker fit the text encoder."""
  length = data.get('title_length', TITLE_LENGTH)
  config_lib.require(length <= bert_config.max_length, 'data.title_length',
                     f"at most the model's {bert_config.max_length}", length)
  width, heads = bert_config.hidden_size, getattr(net.ranker, 'heads', 1)
  config_lib.require(width % heads == 0, 'model.ranker.heads',
                     f"a divisor of the text encoder's width {width}", heads)


def predict_options(*, retrieve: int = 100, recommend: int = 10,
                    backend: Literal['exact', 'faiss'] = 'exact', factory: str = 'Flat',
                    probes: int = 0, retrieval_share: float = 0.0):
  """Checks `config.predict`; see `serving.predict_input`."""
  config_lib.at_least(1, {'retrieve': retrieve, 'recommend': recommend})
  config_lib.at_least(0, {'probes': probes})
  return {'retrieve': retrieve, 'recommend': recommend, 'backend': backend, 'factory': factory,
          'probes': probes, 'retrieval_share': retrieval_share}


class Data(NamedTuple):
  """A data set in memory.

  Attributes:
    pages: features of the pages {name: [P + 1, ...]}, row 0 padding.
    ads: likewise [A + 1, ...].
    splits: {split: columns}, see `data.train_columns` and `data.test_columns`.
    ids: {'ads', 'pages': ids, number 1 first}.
    titles: of the pages.
    tokenize: texts -> features, for pages and ads that come later.
  """
  pages: dict
  ads: dict
  splits: dict
  ids: dict = {}
  titles: list = []
  tokenize: Callable | None = None


def load_data(*, name: str, history_length: int = 50, title_length: int = TITLE_LENGTH,
              vocab_size: int = 8000, tokenizer: str | None = None, corpus_ranks: bool = True,
              source: str | None = None):
  """(Data, the tokenizer) of a data set of `data.DATASETS`.

  Args:
    name: of the data set.
    history_length: pages of a history, the last ones.
    title_length: tokens of a text, the special ones too.
    vocab_size: of the WordPiece vocabulary that is learned from the texts without a `tokenizer`.
    tokenizer: file or folder for `text.load_tokenizer`.
    corpus_ranks: see `from_model`.
    source: folder of a published encoder, whose tokenizer is used where none is given.
  """
  del corpus_ranks  # of `make_task`
  texts, ids, splits = data_lib.load(name)
  if tokenizer or source:
    words = text_lib.load_tokenizer(tokenizer or source)
  else:
    words = text_lib.train_wordpiece(texts['ads'] + texts['pages'], vocab_size)

  def tokenize(texts):
    tokens = text_lib.encode(words, texts, max_length=title_length, length=title_length)
    return {'ids': tokens.ids, 'mask': tokens.mask}

  def table(texts):
    return {name: np.concatenate([np.zeros_like(x[:1]), x]) for name, x in tokenize(texts).items()}

  columns = {split: (data_lib.train_columns if split == 'train' else data_lib.test_columns)(
      rows, history_length) for split, rows in splits.items()}
  return Data(table(texts['pages']), table(texts['ads']), columns, ids, texts['pages'],
              tokenize), words


def build(config):
  """(HybridEncoder, Encoders, Data, LossConfig) of a config, with its data and weights."""
  net, loss, (folder, bert_config, options) = check(config)
  data, words = config_lib.call(load_data, config['data'], 'data', drop=(), source=folder)
  pool = config['model'].get('page_pool', 'mean')
  if folder is None:
    bert_config = dataclasses.replace(bert_config, add_pooler=False,
                                      pad_token_id=text_lib.pad_id(words),
                                      vocab_size=words.get_vocab_size())
    model, params = bert.Bert(bert_config), None
  else:
    model, params = bert_weights.load(folder, **options, add_pooler=False)
  text_lib.check_vocabulary(words, model.config.vocab_size, model.config.pad_token_id, 'model.text')
  _check_fit(net, model.config, config['data'])
  return net, text_encoders(model, pool, params), data, loss


def make_task(config):
  """Makes the Task of a config.

  Args:
    config: 'data', the arguments of `load_data`; 'loss', the fields of `LossConfig`; 'model' with
      'text' (`text_classification.encoder_config`), 'page_pool' ('mean' or 'cls'), 'siamese'
      (fields of `Siamese`) and 'ranker' {name of `RANKERS`, its fields}; 'predict', see
      `predict_options`.
  """
  return from_model(*build(config), corpus_ranks=config['data'].get('corpus_ranks', True))


def list_loss(scores, allowed, temperature):
  """-log softmax of column 0 of scores [B, 1 + n] / temperature among the allowed ones, [B]."""
  return cross_entropy(scores / temperature, jnp.zeros(len(scores), jnp.int32), allowed)


def from_model(net, encoders, data, loss_config, *, corpus_ranks=True):
  """Makes the Task of a HybridEncoder; features of pages and ads are its 'constants'.

  The parameters are 'text' (of the encoders), 'siamese' and 'ranker'. The outputs of `predict` are
  'rank_score' and 'retrieval_score' [B, S] of the candidates, diagnostics [B], and 'corpus_rank'.

  Args:
    net: HybridEncoder.
    encoders: Encoders.
    data: Data.
    loss_config: LossConfig.
    corpus_ranks: whether `predict` finds the place of the click among all ads; it then encodes
      them all for every batch.
  """
  place = lambda features: {name: jnp.asarray(x) for name, x in features.items()}
  tables = {'pages': place(data.pages), 'ads': place(data.ads)}
  train = data.splits['train']
  history_length, num_ads = train['history'].shape[1], len(next(iter(data.ads.values()))) - 1
  counts = np.bincount(train['click'], minlength=num_ads + 1)
  tables['log_share'] = jnp.asarray(np.log(np.maximum(counts, 0.5) / counts.sum()), jnp.float32)
  tau = loss_config.temperature

  def init(key):
    text_key, key = jax.random.split(key)
    params = encoders.init(text_key)
    row = lambda kind: {name: x[:1] for name, x in tables[kind].items()}
    width = jax.eval_shape(encoders.pages, params, row('pages')).shape[-1]
    tokens = jax.eval_shape(encoders.ads, params, row('ads'))[0].shape[1]
    model = net.init(key, jnp.zeros((1, history_length, width)),
                     jnp.ones((1, history_length), bool), jnp.zeros((1, 1, tokens, width)),
                     jnp.ones((1, 1, tokens), bool))['params']
    return {'params': {**params, **model}, 'constants': tables}

  def model_of(params, method, *arguments):
    return net.apply({'params': model_lib.own_params(params)}, *arguments, method=method)

  def encode(kind, variables, ids, key):
    """Pages [*ids.shape, d], or states and masks [*ids.shape, L, ...] of ads, of numbers."""
    flat = {name: x[ids.ravel()] for name, x in variables['constants'][kind].items()}
    out = getattr(encoders, kind)(variables['params'], flat, key)
    return jax.tree.map(lambda x: x.reshape(*ids.shape, *x.shape[1:]), out)

  def act(variables, batch, key):
    """Draws the random negatives of stage 2; those that the user clicked are masked by the loss."""
    del variables
    if 'hard' not in batch:
      return batch
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch['row'])
    draw = lambda key: jax.random.randint(key, (loss_config.random,), 1, num_ads + 1)
    return {**batch, 'random': jax.vmap(draw)(keys)}

  def retrieval_loss(variables, batch, pages, key):
    tokens, mask = encode('ads', variables, batch['click'], key)
    params = variables['params']
    users = model_of(params, 'user_retrieval', pages, batch['history'] > 0)
    logits, own = in_batch_logits(users, model_of(params, 'ad_retrieval', tokens, mask),
                                  temperature=tau)
    ads, weights = parallel.all_gather((batch['click'], batch['weight']))
    clicked = (batch['clicked'][:, :, None] == ads).any(1)
    if loss_config.log_q:
      logits -= variables['constants']['log_share'][ads]
    best = (jnp.where(clicked, _NEVER, logits).max(1) <
            jnp.take_along_axis(logits, own[:, None], 1)[:, 0])
    return cross_entropy(logits, own, ~clicked & (weights > 0)), best

  def ranking_loss(variables, batch, pages, key):
    candidates = jnp.concatenate([batch['click'][:, None], batch['hard'], batch['random']], axis=1)
    tokens, mask = encode('ads', variables, candidates, key)
    scores = model_of(variables['params'], 'rank', pages, batch['history'] > 0, tokens, mask)
    clicked = (candidates[:, :, None] == batch['clicked'][:, None]).any(-1)
    allowed = (candidates > 0) & ~clicked
    best = jnp.where(allowed[:, 1:], scores[:, 1:], _NEVER).max(1) < scores[:, 0]
    return list_loss(scores, allowed, tau), best

  def loss(variables, batch, key):
    page_key, ad_key = jax.random.split(key)
    pages = encode('pages', variables, batch['history'], page_key)
    if 'hard' in batch:
      values, best = ranking_loss(variables, batch, pages, ad_key)
      if loss_config.retrieval_weight:
        more, _ = retrieval_loss(variables, batch, pages, ad_key)
        values += loss_config.retrieval_weight * more
      if loss_config.orthogonality:
        codes = variables['params']['ranker']['ad']['codes']
        values += loss_config.orthogonality * model_lib.code_orthogonality(codes)
    else:
      values, best = retrieval_loss(variables, batch, pages, ad_key)
    return Loss(values, batch['weight'], {'accuracy': (best.astype(jnp.float32), batch['weight'])})

  def ad_vectors(variables):
    """v [A + 1, d] of all ads, `_CHUNK` at a time."""
    return in_chunks(lambda features: model_of(
        variables['params'], 'ad_retrieval', *encoders.ads(variables['params'], features)),
                     variables['constants']['ads'])

  def predict(variables, batch, key):
    del key
    params, real = variables['params'], batch['history'] > 0
    pages = encode('pages', variables, batch['history'], None)
    tokens, mask = encode('ads', variables, batch['candidates'], None)
    users = model_of(params, 'user_retrieval', pages, real)
    ads = model_of(params, 'ad_retrieval', tokens, mask)
    out = {'rank_score': model_of(params, 'rank', pages, real, tokens, mask),
           'retrieval_score': jnp.einsum('bd,bcd->bc', users, ads),
           'ad_norm': jnp.linalg.norm(ads[:, 0], axis=-1)}
    if 'codes' in params['ranker'].get('ad', {}):
      codes = model_of(params, 'ad_codes', tokens[:, 0], mask[:, 0])[0]
      orthogonality = model_lib.code_orthogonality(params['ranker']['ad']['codes'])
      out.update(code_cosine=model_lib.mean_cosine(codes),
                 code_orthogonality=jnp.full(len(pages), orthogonality))
    if corpus_ranks:
      scores = users @ ad_vectors(variables)[1:].T
      number = batch['click'][:, None] - 1
      mine = jnp.take_along_axis(scores, number, axis=1)
      earlier = (scores == mine) & (jnp.arange(num_ads) < number)  # ties by number, as the index
      out['corpus_rank'] = 1 + ((scores > mine) | earlier).sum(1)
    return out

  def evaluate(pairs):
    pairs = list(pairs)
    joined = lambda name: np.concatenate([outputs[name] for outputs, _ in pairs])
    metrics = {}
    for prefix, name in (('', 'rank_score'), ('retrieval/', 'retrieval_score')):
      lists = [(batch['labels'], outputs[name], batch['labels'] >= 0) for outputs, batch in pairs]
      metrics.update({prefix + key: value for key, value in ranking.mean_metrics(lists).items()})
      first = np.concatenate([ranking.ranks(scores, real)[:, 0] for _, scores, real in lists])
      metrics[f'{prefix}hit@1'] = retrieval.recall_at(first, 1)
    if corpus_ranks:
      metrics.update({f'recall@{k}': retrieval.recall_at(joined('corpus_rank'), k)
                      for k in (10, 50, 100)})
    metrics['ad_norm_spread'] = float(joined('ad_norm').std() / max(joined('ad_norm').mean(), 1e-9))
    for name in ('code_cosine', 'code_orthogonality'):
      if name in pairs[0][0]:
        metrics[name] = float(joined(name).mean())
    return metrics

  def dataset(split, aux=None):
    columns = config_lib.choose(split, data.splits, 'split')
    return pipeline.from_arrays(columns if aux is None else {**columns, **aux})

  @jax.jit
  def user_vectors(variables, history):
    pages = encode('pages', variables, history, None)
    return model_of(variables['params'], 'user_retrieval', pages, history > 0)

  def refresh(variables, key, round):
    """{'hard': int32 [R, n]}: hard negatives of the training clicks, 0 where there are too few."""
    del round
    if not loss_config.hard:
      return {'hard': np.zeros((len(train['click']), 1), np.int32)}
    vectors = np.asarray(jax.jit(ad_vectors)(variables))[1:]
    index = Index(vectors, np.arange(1, num_ads + 1))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    parts = []
    for start in range(0, len(train['click']), _CHUNK):
      rows = np.minimum(np.arange(start, start + _CHUNK), len(train['click']) - 1)
      queries = np.asarray(user_vectors(variables, train['history'][rows]))
      found, _ = index.search(queries, min(loss_config.top_k, num_ads))
      parts.append(hard_negatives(found, train['clicked'][rows], loss_config.hard, rng))
    return {'hard': np.concatenate(parts)[:len(train['click'])]}

  return Task(init, loss, predict, evaluate, dataset, act, refresh=refresh)


def hard_negatives(found, clicked, count, rng):
  """Draws `count` of the ads that were found for a click, none of which its user clicked.

  Args:
    found: int [R, k] ads.
    clicked: int [R, C], 0 on padding.
    count: n.
    rng: NumPy generator.

  Returns:
    int32 [R, n], 0 where too few are left.
  """
  positive = (found[:, :, None] == clicked[:, None]).any(-1)
  order = np.argsort(rng.random(found.shape) + positive, axis=1)[:, :count]
  chosen = np.take_along_axis(np.where(positive, 0, found), order, axis=1)
  return np.pad(chosen, ((0, 0), (0, count - chosen.shape[1]))).astype(np.int32)


def in_chunks(function, features):
  """`function` of features {name: [M, ...]}, `_CHUNK` rows at a time."""
  rows = len(next(iter(features.values())))
  chunk = min(_CHUNK, rows)
  padding = -rows % chunk
  fold = lambda x: jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(
      -1, chunk, *x.shape[1:])
  out = jax.lax.map(function, {name: fold(x) for name, x in features.items()})
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:rows], out)
