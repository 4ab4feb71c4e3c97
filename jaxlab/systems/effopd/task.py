"""On-policy distillation as a Task: the student answers, the teacher scores, both inside the step.

EffOPD (arXiv 2605.11739), section on the objective. `act` (see `rollout`) samples answers and lets
the frozen models score them; `loss` sees the student alone.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.models.scoring import gather_logprobs, over_chunks
from jaxlab.systems.effopd import losses
from jaxlab.systems.effopd.rollout import (
    answer_hidden,
    answers_of,
    by_teacher,
    log_softmax,
    make_act,
    score,
)
from jaxlab.task import Loss, Task, row_keys


def make_loss(models, problems, settings):
  """The Task's `loss` of a batch that `act` has filled in."""
  vocabulary = {
      'rkl_full': losses.reverse_kl, 'fkl_full': losses.forward_kl,
      'gjsd': functools.partial(losses.generalized_jsd, beta=settings.beta),
      'rkl_topk': functools.partial(losses.reverse_kl_topk, k=settings.support,
                                    form=settings.support_form),
      'fkl_topk': functools.partial(losses.forward_kl_topk, k=settings.support,
                                    form=settings.support_form)}

  def of_sampled(logp, batch):
    """(loss [B, N], metrics of tokens)."""
    if settings.objective == 'supervised':
      return -logp, {}
    metrics = {}
    if settings.wants == 'sampled':
      metrics['kl'] = losses.k1(batch['old'], batch['teacher_logprobs'])
    if settings.objective in ('k2', 'k3'):
      return getattr(losses, settings.objective)(logp, batch['teacher_logprobs']), metrics
    if settings.objective == 'opd':
      advantage = losses.opd_advantage(batch['old'], batch['teacher_logprobs'],
                                       batch.get('reference_logprobs'), settings.lam)
    elif settings.objective == 'reward_to_go':
      advantage = -losses.reward_to_go(
          batch['old'], batch['teacher_logprobs'], batch['mask'].astype(jnp.float32))
    else:
      advantage = jnp.broadcast_to(batch['advantage'][:, None], logp.shape)
    values, clipped = losses.policy_gradient(
        logp, batch['old'], advantage, clip_low=settings.clip_low, clip_high=settings.clip_high,
        dual_clip=settings.dual_clip)
    metrics.update(advantage=advantage, clipped=clipped.astype(jnp.float32))
    return values * batch['trust'], metrics

  def loss(variables, batch, key):
    del key
    params = variables['params']
    x = answer_hidden(models.student, params, batch)
    mask = batch['mask'] * batch['weight'][:, None]

    def teacher_logprobs(hidden, columns):
      if len(models.teachers) == 1:
        return log_softmax(models.teachers[0], variables['constants']['teacher_0'], hidden,
                           settings.temperature)
      each = [log_softmax(model, variables['constants'][f'teacher_{i}'], hidden,
                          settings.temperature) for i, model in enumerate(models.teachers)]
      return jnp.take_along_axis(
          jnp.stack(each), columns['teacher'].reshape(1, -1, 1, 1), axis=0)[0]

    def piece(x, columns):
      """What needs logits, for some positions: the divergence or the log-probability, metrics."""
      out = {}
      logits = models.student.apply({'params': params}, x, method='logits') / settings.temperature
      if settings.wants != 'vocabulary':
        out['logp'] = gather_logprobs(logits, columns['tokens'])
      if 'hidden' in columns:
        p = jax.nn.log_softmax(logits)
        q = teacher_logprobs(columns['hidden'], batch)
        if settings.wants == 'vocabulary':
          out['loss'] = vocabulary[settings.objective](p, q)
        if settings.monitor:
          out['overlap'] = losses.overlap_ratio(p, q, settings.monitor)
          out['entropy_gap'] = losses.entropy_gap(p, q)
      return out

    columns = {'tokens': batch['tokens']}
    if 'teacher_hidden' in batch:
      columns['hidden'] = batch['teacher_hidden']
    metrics = over_chunks(piece, settings.chunk, x, columns)
    if settings.wants == 'vocabulary':
      values = metrics.pop('loss')
    else:
      values, more = of_sampled(metrics.pop('logp'), batch)
      metrics.update(more)
    metrics = {name: (jax.lax.stop_gradient(value), mask) for name, value in metrics.items()}
    metrics['response_length'] = (batch['mask'].sum(1).astype(jnp.float32), batch['weight'])
    if problems.traceable:
      metrics['correct'] = (
          problems.correct(batch['tokens'], batch['mask'], batch), batch['weight'])
    values, weights = losses.loss_pairs(values, batch['mask'], settings.aggregation)
    weights = weights * batch['weight'].reshape((-1,) + (1,) * (weights.ndim - 1))
    return Loss(values, weights, metrics)

  return loss


def from_models(models, problems, settings):
  """Makes the Task.

  Args:
    models: Models.
    problems: `data.Problems`.
    settings: DistillConfig.

  Raises:
    ConfigError: vocabularies differ, a model is missing, rows do not say which of several teachers
      they have, or a reward cannot be computed inside the step.
  """
  check_models(models, problems, settings)

  def init(key):
    constants = {}
    if settings.wants:
      constants = {f'teacher_{i}': make() for i, make in enumerate(models.init_teachers)}
    if settings.lam != 1:
      constants['reference'] = models.init_reference()
    return {'params': models.init_student(key), **({'constants': constants} if constants else {})}

  def predict(variables, batch, key):
    out = answers_of(models.student, variables['params'], batch,
                     row_keys(key, len(batch['prompt'])), settings, problems,
                     settings.eval_temperature)
    return {'tokens': out.tokens, 'mask': out.mask}

  def evaluate(pairs):
    right, lengths = [], []
    for out, batch in pairs:
      right.append(np.asarray(problems.correct(out['tokens'], out['mask'], batch)))
      lengths.append(out['mask'].sum(1))
    return {'accuracy': float(np.concatenate(right).mean()),
            'length': float(np.concatenate(lengths).mean())}

  return Task(init, make_loss(models, problems, settings), predict, evaluate,
              lambda split: config_lib.choose(split, problems.datasets, 'split'),
              make_act(models, problems, settings))


def check_models(models, problems, settings):
  """Raises ConfigError unless the models fit the objective, the data and each other."""
  if settings.wants:
    config_lib.require(len(models.teachers) > 0, 'config.teachers',
                       f'a teacher for the objective {settings.objective!r}', [])
    config_lib.require(len(models.teachers) == 1 or problems.teachers > 0, 'config.data',
                       "a column 'teacher' that says which of the teachers a row has", 'none')
    config_lib.require(problems.teachers <= len(models.teachers), 'config.teachers',
                       f'the {problems.teachers} teachers that the data name',
                       len(models.teachers))
  if settings.lam != 1:
    config_lib.require(models.reference is not None, 'config.reference',
                       f'a model for distill.lam={settings.lam}', None)
  config_lib.require(settings.objective != 'reinforce' or problems.traceable, 'distill.objective',
                     'a reward that runs inside the step, as that of the data set sorting does',
                     settings.objective)
  size = models.student.config.vocab_size
  others = {f'config.teachers[{i}]': model for i, model in enumerate(models.teachers)}
  if models.reference is not None:
    others['config.reference'] = models.reference
  for where, model in others.items():
    config_lib.require(model.config.vocab_size == size, where,
                       f"the student's vocabulary of {size} tokens", model.config.vocab_size)
  supports = ('monitor', 'support') if settings.objective.endswith('topk') else ('monitor',)
  for name in supports:
    config_lib.require(getattr(settings, name) <= size, f'distill.{name}',
                       f"at most the student's vocabulary of {size} tokens",
                       getattr(settings, name))
  if 0 <= settings.on_policy < 1 and settings.objective != 'supervised':
    width = problems.datasets['train'][0]['answer'].shape[0]
    config_lib.require(settings.max_new == width, 'distill.max_new',
                       f'the {width} tokens of the answers that it is mixed with', settings.max_new)
  config_lib.require(problems.vocab_size <= size, 'config.student.vocab_size',
                     f'at least the {problems.vocab_size} tokens of the data', size)


def make_validate(models, problems, settings, constants=None):
  """The score of parameters on some prompts, for `extrapolation`: (params, examples, key) -> float.

  It is the share of right answers, one sampled for each prompt; without anything to check them by
  (constants given) the negative reverse KL to the teacher on the sampled answers.

  Args:
    models: Models.
    problems: `data.Problems`.
    settings: DistillConfig.
    constants: the Task's constants, to score by the teacher; None to score by the answers.
  """
  @jax.jit
  def sample(params, examples, key):
    out = answers_of(models.student, params, examples,
                     row_keys(key, len(examples['prompt'])), settings, problems,
                     settings.temperature)
    if constants is not None:
      return out, None
    right = problems.correct(out.tokens, out.mask, examples) if problems.traceable else None
    return out, right

  @jax.jit
  def divergence(params, out, examples, constants):
    batch = {**examples, 'tokens': out.tokens, 'mask': out.mask}
    # out.logprobs are not tempered, as the teacher's scores are.
    student = score(models.student, params, batch, settings)
    teacher = by_teacher(lambda *x: score(*x, settings), models, {'constants': constants}, batch)
    return losses.aggregate(losses.k1(student, teacher), out.mask)

  def validate(params, examples, key):
    out, right = sample(params, examples, key)
    if constants is not None:
      return -float(divergence(params, out, examples, constants))
    if right is None:
      right = problems.correct(out.tokens, out.mask, examples)
    return float(np.mean(right))

  return validate
