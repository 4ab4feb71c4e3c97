"""Answers of the student, and what the frozen models say of them: the inside of `act`.

EffOPD (arXiv 2605.11739), section on the objective.
"""
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab import config as config_lib
from jaxlab import parallel
from jaxlab.models.decoder_lm import DecoderLM
from jaxlab.models.generate import check_sampling, generate
from jaxlab.models.scoring import gather_logprobs, over_chunks
from jaxlab.systems.effopd import losses
from jaxlab.task import row_keys

# What each objective wants of the teacher: log-probabilities of the sampled tokens, or its whole
# distribution; None for those that have no teacher.
OBJECTIVES = {
    'opd': 'sampled', 'reward_to_go': 'sampled', 'k2': 'sampled', 'k3': 'sampled',
    'rkl_full': 'vocabulary', 'fkl_full': 'vocabulary', 'gjsd': 'vocabulary',
    'rkl_topk': 'vocabulary', 'fkl_topk': 'vocabulary', 'reinforce': None, 'supervised': None}


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """The mapping `config.distill`.

  Attributes:
    max_new: N, tokens of an answer at most.
    objective: a key of `OBJECTIVES`. 'opd' is the paper's; 'reward_to_go' the exact gradient of the
      sequence objective; 'reinforce' the task's reward without a teacher, less the batch's mean;
      'supervised' the likelihood of the data's answers.
    temperature: of the sampling, and of student and teacher when they are scored.
    top_k: of the sampling, see `generate`.
    top_p: of the sampling.
    eval_temperature: of `predict`; 0 is greedy.
    aggregation: see `losses.loss_pairs`.
    on_policy: probability that a row is the student's own answer, else the data's (GKD's lambda).
    lam: extrapolation of ExOPD; other than 1 it needs a reference.
    beta: of 'gjsd'.
    support: K of the top-K objectives.
    support_form: 'raw', 'renorm' or 'tail'.
    clip_low: of the policy-gradient objectives, see `losses.policy_gradient`.
    clip_high: likewise.
    dual_clip: likewise; at least 1.
    rollout_threshold: largest weight of a token whose sampler and trainer disagree.
    score_rows: rows that a frozen model scores at once; 0 for all.
    chunk: positions whose logits exist at once; 0 for all.
    monitor: K of the logged overlap of likeliest tokens and entropy gap; 0 for neither.
  """
  max_new: int
  objective: str = 'opd'
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  eval_temperature: float = 1.0
  aggregation: losses.Aggregation = 'token-mean'
  on_policy: float = 1.0
  lam: float = 1.0
  beta: float = 0.5
  support: int = 16
  support_form: Literal['raw', 'renorm', 'tail'] = 'tail'
  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float = 3.0
  rollout_threshold: float = 5.0
  score_rows: int = 0
  chunk: int = 0
  monitor: int = 0

  def __post_init__(self):
    config_lib.choose(self.objective, OBJECTIVES, 'distill.objective')
    try:
      check_sampling(self.max_new, self.temperature, self.top_k, self.top_p)
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'distill.{error}') from error
    config_lib.require(self.temperature > 0, 'distill.temperature', 'above 0: greedy answers carry '
                       'no gradient', self.temperature)
    for name in ('on_policy', 'beta'):
      config_lib.require(0 <= getattr(self, name) <= 1, f'distill.{name}', 'in [0, 1]',
                         getattr(self, name))
    config_lib.at_least(0, self, ('score_rows', 'chunk', 'monitor', 'eval_temperature', 'clip_low',
                                  'clip_high', 'rollout_threshold'), 'distill')
    config_lib.at_least(1, self, ('support', 'dual_clip'), 'distill')
    config_lib.require(self.lam == 1 or self.objective == 'opd', 'distill.lam',
                       "1 for other objectives than 'opd'", self.lam)

  @property
  def wants(self):
    """'sampled', 'vocabulary' or None, what the objective wants of the teacher."""
    return OBJECTIVES[self.objective]


class Models(NamedTuple):
  """The models of a distillation, and how their parameters are made.

  Attributes:
    student: DecoderLM.
    init_student: key -> params.
    teachers: DecoderLMs, one a value of the batch's column 'teacher'.
    init_teachers: each () -> params, traceable.
    reference: DecoderLM of ExOPD, or None.
    init_reference: () -> params, traceable; a tree of its own, whatever else starts there.
  """
  student: DecoderLM
  init_student: Any
  teachers: Sequence[DecoderLM] = ()
  init_teachers: Sequence[Any] = ()
  reference: DecoderLM | None = None
  init_reference: Any = None


def answers_of(model, params, batch, keys, settings, problems, temperature):
  """Samples an answer for each row; `generate.Generation`."""
  return generate(
      model, params, batch['prompt'], batch['prompt_mask'], keys, max_new=settings.max_new,
      temperature=temperature, top_k=settings.top_k, top_p=settings.top_p,
      eos_ids=problems.eos_ids, pad_id=problems.pad_id,
      loop='while' if problems.eos_ids else 'scan')


def answer_hidden(model, params, batch):
  """The stream [B, N, d] that predicts each token of batch['tokens'] [B, N]."""
  tokens = jnp.concatenate([batch['prompt'], batch['tokens']], axis=1)
  mask = jnp.concatenate([batch['prompt_mask'].astype(bool), batch['mask']], axis=1)
  x, _ = model.apply({'params': params}, tokens, mask, method='hidden')
  return x[:, batch['prompt'].shape[1] - 1:-1]


def log_softmax(model, params, x, temperature):
  """Log-probabilities float32 [..., V] of a stream [..., d]."""
  return jax.nn.log_softmax(model.apply({'params': params}, x, method='logits') / temperature)


def score(model, params, batch, settings):
  """log p of batch['tokens'] [B, N], rows and positions in pieces."""
  def pieces(x, tokens):
    logits = model.apply({'params': params}, x, method='logits')
    return gather_logprobs(logits / settings.temperature, tokens)

  def rows(batch):
    return over_chunks(pieces, settings.chunk, answer_hidden(model, params, batch), batch['tokens'])

  return over_chunks(rows, settings.score_rows, sequences(batch), axis=0)


def sequences(batch):
  """The columns of a batch that a model reads."""
  return {name: batch[name] for name in ('prompt', 'prompt_mask', 'tokens', 'mask')}


def by_teacher(function, models, variables, batch):
  """function(teacher, params, batch) [B, ...], of each row's own teacher.

  Every teacher sees every row: which rows are whose is not known when the program is compiled.
  """
  results = [function(model, variables['constants'][f'teacher_{i}'], batch)
             for i, model in enumerate(models.teachers)]
  if len(results) == 1:
    return results[0]
  index = batch['teacher'].reshape((1, -1) + (1,) * (results[0].ndim - 1))
  return jnp.take_along_axis(jnp.stack(results), index, axis=0)[0]


def make_act(models, problems, settings):
  """The Task's `act`: answers, and what the frozen models and the old policy say of them."""
  def act(variables, batch, key):
    draw, coin = jax.random.split(key)
    count = len(batch['prompt'])
    student = functools.partial(score, models.student, variables['params'])
    given = {'tokens': batch['answer'], 'mask': batch['answer_mask'].astype(bool)}
    if settings.objective == 'supervised':
      return {**batch, **given}
    if settings.on_policy == 0:
      batch, rollout = {**batch, **given}, None
    else:
      out = answers_of(models.student, variables['params'], batch, row_keys(draw, count), settings,
                       problems, settings.temperature)
      batch, rollout = {**batch, 'tokens': out.tokens, 'mask': out.mask}, out.sampling_logprobs
    if 0 < settings.on_policy < 1:
      own = jax.vmap(jax.random.bernoulli, (0, None))(row_keys(coin, count), settings.on_policy)
      batch.update({name: jnp.where(own[:, None], batch[name], given[name]) for name in given})
    if settings.wants != 'vocabulary':
      batch['old'] = student(batch, settings)
      # The data's own answers were not drawn by the sampler: they count in full.
      if rollout is None:
        rollout = batch['old']
      elif settings.on_policy < 1:
        rollout = jnp.where(own[:, None], rollout, batch['old'])
      batch['trust'] = losses.importance_weights(
          batch['old'], rollout, batch['mask'].astype(jnp.float32), settings.rollout_threshold)
    if settings.objective == 'reinforce':
      reward = problems.correct(batch['tokens'], batch['mask'], batch)
      total, weight = parallel.psum((jnp.sum(reward * batch['weight']), batch['weight'].sum()))
      batch['advantage'] = reward - total / jnp.maximum(weight, 1e-30)
    if settings.wants == 'sampled':
      batch['teacher_logprobs'] = by_teacher(
          lambda *x: score(*x, settings), models, variables, batch)
    if settings.lam != 1:
      batch['reference_logprobs'] = score(
          models.reference, variables['constants']['reference'], batch, settings)
    if settings.wants == 'vocabulary' or (settings.wants and settings.monitor):
      hidden = lambda model, params, batch: over_chunks(
          lambda rows: answer_hidden(model, params, rows), settings.score_rows, sequences(batch),
          axis=0)
      batch['teacher_hidden'] = by_teacher(hidden, models, variables, batch)
    return batch

  return act
