"""The Task and the hook of an experiment config."""
import dataclasses
import functools
from typing import Literal

import jax
import numpy as np

from jaxlab import config as config_lib
from jaxlab.data import pipeline
from jaxlab.models.decoder_checkpoint import check_spec
from jaxlab.models.decoder_lm import checkpoint_name
from jaxlab.systems.effopd import extrapolation
from jaxlab.systems.effopd.data import SOURCES
from jaxlab.systems.effopd.loading import load_models, model_specs
from jaxlab.systems.effopd.rollout import DistillConfig
from jaxlab.systems.effopd.task import from_models, make_validate

CONFIG_KEYS = ('student', 'teachers', 'reference', 'data', 'distill', 'extrapolation')


@dataclasses.dataclass(frozen=True)
class JumpConfig:
  """The mapping `config.extrapolation`; see `extrapolation.extrapolation`.

  Attributes:
    max_k: candidates of a search; 0 never jumps: plain distillation.
    examples: training prompts that validate, drawn once; few of them reject many good jumps.
    score: 'answers' is the share of right ones, 'teacher' the negative reverse KL to the teacher.
    movable: which parameters a jump moves, see `extrapolation.movable`.
    accept_ties: whether an equal score is a success.
    anchor: where the displacement is measured from.
    common_random_numbers: whether all candidates of a search are judged by the same noise.
    reset_moments: whether a jump zeroes the optimizer's moments.
    seed: of the draw of the examples and of the validation.
  """
  max_k: int = 5
  examples: int = 50
  score: Literal['answers', 'teacher'] = 'answers'
  movable: Literal['official', 'matrices', 'all'] = 'official'
  accept_ties: bool = False
  anchor: Literal['accepted', 'raw'] = 'accepted'
  common_random_numbers: bool = True
  reset_moments: bool = False
  seed: int = 0

  def __post_init__(self):
    for name, least in (('max_k', 0), ('examples', 1), ('seed', 0)):
      config_lib.require(getattr(self, name) >= least, f'extrapolation.{name}', f'at least {least}',
                         getattr(self, name))


def check(config):
  """Checks the config without looking at data or weights.

  Returns:
    (DistillConfig, JumpConfig).

  Raises:
    ConfigError: a part is missing, an unknown name or key, a wrong type, an impossible value.
  """
  data = config_lib.section(config, 'data')
  source = config_lib.choose_named(data, SOURCES, 'data')
  config_lib.check_arguments(source, data, 'data')
  settings = config_lib.call(DistillConfig, config_lib.section(config, 'distill'), 'distill',
                             drop=())
  jump = config_lib.call(JumpConfig, config.get('extrapolation', {}), 'extrapolation', drop=())
  for where, spec in model_specs(config).items():
    check_spec(spec, where)
  return settings, jump


def load_problems(config):
  """The `data.Problems` of `config.data`."""
  data = config['data']
  return config_lib.call(SOURCES[data['name']], data, 'data')


def make_task(config):
  """Makes the Task: `config.student`, `teachers`, `reference`, `data` and `distill`."""
  settings, _ = check(config)
  return from_models(load_models(config), load_problems(config), settings)


def make_hook(config):
  """Makes the jump of `config.extrapolation`, a `train.Hook` for central and federated runs.

  Raises:
    ConfigError: the config is impossible, or replaces the student's weights at the start, which the
      hook would take for the first step's displacement.
  """
  settings, jump = check(config)
  models = load_models(config)
  phases = config.get('phases', ())
  config_lib.require(
      not any(part.get('init_from') or part.get('surgery') for part in (config, *phases)),
      'config.init_from', 'student.weights in its place', config.get('init_from'))
  problems = load_problems(config)
  constants = None
  if jump.score == 'teacher':
    config_lib.require(settings.wants == 'sampled' and len(models.teachers) == 1,
                       'extrapolation.score', "'answers' where there is not just one teacher",
                       jump.score)
    constants = {'teacher_0': jax.jit(models.init_teachers[0])()}
  return extrapolation.extrapolation(
      make_validate(models, problems, settings, constants),
      draw_examples(problems, jump.examples, jump.seed), seed=jump.seed, max_k=jump.max_k,
      mask=movable_parameters(jump.movable), accept_ties=jump.accept_ties, anchor=jump.anchor,
      common_random_numbers=jump.common_random_numbers, reset_moments=jump.reset_moments)


def movable_parameters(which):
  """params -> which of a decoder's parameters a jump moves, by the public checkpoints' names."""
  return functools.partial(extrapolation.movable, which=which, name=checkpoint_name)


def draw_examples(problems, count, seed):
  """Columns [count, ...] of random training prompts."""
  dataset = problems.datasets['train']
  config_lib.require(count <= len(dataset), 'extrapolation.examples',
                     f'at most the {len(dataset)} training prompts', count)
  rows = np.random.default_rng([seed, 0xD5]).choice(len(dataset), count, replace=False)
  return pipeline.take(dataset, rows)
