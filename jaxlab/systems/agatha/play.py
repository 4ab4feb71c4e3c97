"""A task from request to end, with the parties that a config names."""
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxlab import config as config_lib
from jaxlab import models
from jaxlab.models.mobilenet import MobileNet
from jaxlab.models.resnet50 import ResNet50
from jaxlab.models.vgg import VGG16
from jaxlab.systems.agatha import game, lowering, parties, platform, scalar


class SmallCNN(nn.Module):
  """Convolutions, GroupNorm, gelu, pooling, a mean, LayerNorm, Dense and softmax: most kinds.

  Attributes:
    num_classes: width of the output.
    features: channels of the convolutions.
  """
  num_classes: int
  features: tuple[int, ...] = (16, 32)

  @nn.compact
  def __call__(self, x):
    """Maps images [B, H, W, C] to probabilities [B, num_classes]."""
    for width in self.features:
      x = nn.gelu(nn.GroupNorm(num_groups=2)(nn.Conv(width, (3, 3))(x)))
      x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.softmax(nn.Dense(self.num_classes)(nn.LayerNorm()(x.mean((1, 2)))))


MODELS = {'mlp': models.MLP, 'cnn': SmallCNN, 'mobilenet': MobileNet, 'resnet50': ResNet50,
          'vgg16': VGG16}


class Case(NamedTuple):
  """A model ready to be disputed: the function, its arguments, the honest run and its trace."""
  function: object
  variables: object
  inputs: tuple[np.ndarray, ...]
  published: parties.Published
  trace: parties.Trace

  @property
  def leaves(self):
    """The parameters in order."""
    return jax.tree.leaves(self.variables)


def make_model(config):
  """(function of (variables, x), variables, (x,)) with random weights and a random input.

  Args:
    config: {'model': {'name', ...fields}, 'shape': of the input, 'seed'}.
  """
  model_config = config['model']
  model = config_lib.call(config_lib.choose_named(model_config, MODELS, 'model'), model_config,
                          'model', num_classes=10)
  rng = np.random.default_rng(config['seed'])
  x = rng.normal(size=config['shape']).astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  return model.apply, jax.tree_util.tree_map_with_path(
      lambda path, leaf: _random_leaf(path[-1].key, leaf.shape, rng), shapes), (x,)


def _random_leaf(name, shape, rng):
  """A weight of He's size, a scale or variance about 1, a bias or mean about 0."""
  noise = rng.normal(size=shape)
  if name == 'kernel':
    noise *= np.sqrt(2 / np.prod(shape[:-1]))
  else:
    noise = 0.1 * noise.clip(-3, 3) + (name in ('scale', 'var'))
  return noise.astype(np.float32)


def make_case(config):
  """The Case of a config: see `make_model`; 'mode' is the program's.

  Raises:
    PlatformError: this platform computes other bits; nothing has been committed.
  """
  platform.check_platform()
  function, variables, inputs = make_model(config)
  program = lowering.lower(function, variables, *inputs, mode=config['mode'])
  published = parties.publish(program)
  execution = parties.execute(published, jax.tree.leaves(variables), inputs)
  return Case(function, variables, inputs, published, parties.Trace(execution))


def random_fault(case, line, rng):
  """A last-bit Fault in a random element of a line: in the last step, which cannot vanish."""
  target = case.published.program.lines[line]
  return parties.Fault(line, int(rng.integers(target.size)), max(scalar.steps(target) - 1, 0), 1)


def random_lie(case, line, rng):
  """A Lie about a random element and step of a line."""
  target = case.published.program.lines[line]
  return parties.Lie(line, int(rng.integers(target.size)),
                     int(rng.integers(max(scalar.steps(target), 1))))


def play(arbiter, case, *, fault=None, lie=None, silent=None, fee=100):
  """One task on an arbiter: honest, with a Fault of the submitter, or a Lie of the challenger.

  The case comes from `make_case`, which has checked the platform.

  Returns:
    parties.Result; None where nobody had a reason to challenge and the result was accepted.

  Raises:
    ConfigError: the fault changes nothing.
  """
  requester, submitter, challenger = map(arbiter.party, ('requester', 'submitter', 'challenger'))
  mine = case.trace
  if fault is not None:
    wrong = parties.corrupt(case.trace.execution, fault, case.leaves, case.inputs)
    config_lib.require(wrong is not None, 'fault', "one that changes its line's output", fault)
    mine = parties.Trace(wrong, case.trace)
  number = arbiter.request(
      requester, case.published.digest,
      parties.root_over([*case.leaves, *case.published.program.constants]),
      parties.root_over(case.inputs), fee=fee)
  claimed, right = (parties.output_root(trace.execution) for trace in (mine, case.trace))
  arbiter.send(submitter, 'submit', number, claimed, value=arbiter.money.submitter_deposit)
  result = None
  if lie is not None or claimed != right:
    posted = right if lie is None else bytes(32)
    arbiter.send(challenger, 'challenge', number, posted, value=arbiter.money.challenger_deposit)
    result = parties.dispute(arbiter, number, submitter, challenger, mine, case.trace, lie, silent)
  if arbiter.task(number).state == 'Submitted':
    arbiter.mine(arbiter.money.challenge_window + 1)
    arbiter.send(submitter, 'settle', number)
  return result


def one_of_each(program, rng):
  """A random line of every (kind, primitive) that the program has."""
  by_name = {}
  for number, line in enumerate(program.lines):
    by_name.setdefault((line.kind, line.name), []).append(number)
  return {name: int(rng.choice(numbers)) for name, numbers in by_name.items()}


def expected_rounds(case, line):
  """`parties.rounds` of a dispute about a line."""
  program = case.published.program
  return parties.rounds(len(program.lines), max(scalar.steps(program.lines[line]), 1))


@functools.cache
def arbiter_of(name):
  """The class of an arbiter: 'python' or 'evm'."""
  if name == 'python':
    return game.PyArbiter
  from jaxlab.systems.agatha import evm
  return evm.EvmArbiter
