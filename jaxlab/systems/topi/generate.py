"""Generation with and without token pruning: the fixture's digits, or latents given as files.

The autoencoder and the text encoders are outside: their outputs come as arrays of an .npz file, and
latents go out as one.
"""
import functools
import logging
import pathlib
import time
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import config as config_lib
from jaxlab.config import ConfigError
from jaxlab.data import pipeline
from jaxlab.metrics import image_similarity
from jaxlab.models import dit_sampler, dit_tokens, dit_weights, pretrained, rectified_flow
from jaxlab.models.dit import DiT, random_params
from jaxlab.models.dit_sampler import Conditions, Prompt
from jaxlab.systems.topi import cost, data, pictures, sampler, study, task
from jaxlab.systems.topi.calibration import pruning_of
from jaxlab.train.evaluation import restored
from jaxlab.train.sweep import format_table

_log = logging.getLogger(__name__)
KEYS = ('system', 'model', 'sampling', 'prune')


class SamplingSpec(NamedTuple):
  """The mapping `config.sampling` of a network whose latents are files.

  Attributes:
    steps: Euler steps.
    guidance: embedded guidance scale, for networks that embed one.
    cfg_scale: scale of classifier-free guidance, where the inputs have a negative prompt.
    latent_shift: subtracted from the autoencoder's latents before `latent_scale` multiplies them.
    latent_scale: likewise.
    seed: of the noise, where the inputs have none.
  """
  steps: int = 28
  guidance: float = 2.5
  cfg_scale: float = 4.0
  latent_shift: float = 0.0
  latent_scale: float = 1.0
  seed: int = 0


class Job(NamedTuple):
  """What is to be sampled.

  Attributes:
    model: DiT.
    params: its parameters.
    noise: target tokens [B, N, C].
    conditions: Conditions.
    sigmas: noise levels.
    decode: tokens [B, N, C] -> arrays to write and to compare.
    rows: label -> pictures of the inputs, for the grid.
    data_range: of what `decode` gives, or None for that of the unpruned sample.
  """
  model: DiT
  params: object
  noise: jax.Array
  conditions: Conditions
  sigmas: np.ndarray
  decode: object
  rows: dict
  data_range: float | None


def check(config):
  """(DiT, SamplingSpec) of the config of a network whose weights and latents are files."""
  config_lib.check_keys(config, KEYS)
  model = config_lib.call(functools.partial(DiT, parent=None), config_lib.section(config, 'model'),
                          'model')
  spec = config_lib.call(SamplingSpec, config_lib.section(config, 'sampling'), 'sampling', drop=())
  config_lib.require(spec.steps >= 1, 'sampling.steps', 'at least 1', spec.steps)
  if 'prune' in config:
    pruning_of(config['prune'], model, spec.steps, lambda: np.zeros(model.num_layers))
  return model, spec


def load_weights(folder, model):
  """Parameters from a folder of diffusers' safetensors files.

  Raises:
    ConfigError: no such files, a config.json of another network, or names and shapes that are not
      those of the model (all listed).
  """
  folder = pathlib.Path(folder)
  files = sorted(folder.glob('*.safetensors'))
  config_lib.require(files, f'--weights={folder}', 'a folder with *.safetensors files', 'none')
  try:
    from safetensors import SafetensorError
    from safetensors.flax import load_file  # NumPy's loader refuses bfloat16
  except ImportError as error:
    raise ConfigError("safetensors files need: pip install 'jaxlab[text]'") from error
  state = {}
  try:
    if (folder / 'config.json').exists():
      theirs = dit_weights.model_from_config(pretrained.read_json(folder / 'config.json'),
                                             dtype=model.dtype, remat=model.remat)
      config_lib.require(theirs == model, f'{folder}/config.json', f'the network of the config, '
                         f'{model}', theirs)
    for file in files:
      try:
        state |= load_file(file)
      except SafetensorError as error:
        raise ValueError(f'{file.name}: expected a safetensors file: {error}') from error
    return jax.tree.map(jnp.asarray, dit_weights.params_from_torch(state, model))
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f'--weights={folder}: {error}') from error


def _read(path):
  try:
    with np.load(path) as file:
      return dict(file)
  except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
    raise ConfigError(f'--inputs={path}: cannot be read ({error})') from error


def read_inputs(path, model, spec):
  """The Job of an .npz file, without parameters.

  Arrays: 'txt' [B, n_txt, text_dim]; 'pooled' [B, pooled_dim] for a network that takes it;
  'reference_0', 'reference_1', ... [B, c, h, w], latents of the reference images (the
  distribution's mode), none to several; 'noise' [B, c, h, w], or 'target_shape' (h, w);
  'negative_txt' and 'negative_pooled' for classifier-free guidance; 'txt_mask' and
  'negative_txt_mask' [B, n_txt], 0 on padding.

  Raises:
    ConfigError: a missing or left-over array or one of a wrong shape, by file and name.
  """
  arrays = _read(path)
  channels = model.in_channels // 4
  require = lambda condition, name, expected: config_lib.require(
      condition, f'{path}: {name}', expected,
      list(arrays[name].shape) if name in arrays else 'nothing')
  names = [name for name in arrays if name.startswith('reference_')]
  references = [f'reference_{i}' for i in range(len(names))]
  config_lib.check_keys(arrays, (
      'txt', 'pooled', 'txt_mask', 'negative_txt', 'negative_pooled', 'negative_txt_mask', 'noise',
      'target_shape', *references), str(path))
  require('txt' in arrays and arrays['txt'].ndim == 3 and arrays['txt'].shape[2] == model.text_dim,
          'txt', f'[B, n_txt, {model.text_dim}]')
  batch, n_txt, _ = arrays['txt'].shape
  shapes = {'txt': (batch, n_txt, model.text_dim), 'txt_mask': (batch, n_txt),
            'pooled': (batch, model.pooled_dim)}
  for prefix in ('', 'negative_'):
    for name, shape in shapes.items():
      if prefix + name in arrays:
        require(arrays[prefix + name].shape == shape, prefix + name, list(shape))
  needed = ['pooled'] * bool(model.pooled_dim)
  if any(name.startswith('negative_') for name in arrays):
    needed += ['negative_txt', *('negative_' + name for name in ('pooled', 'txt_mask')
                                 if name in arrays)]
    needed += ['txt_mask'] * ('negative_txt_mask' in arrays)
  for name in needed:
    require(name in arrays, name, 'an array')
  for name in references + ['noise'] * ('noise' in arrays):
    shape = arrays[name].shape
    even = len(shape) == 4 and not (shape[2] % 2 or shape[3] % 2)
    require(even and shape[:2] == (batch, channels), name,
            f'[{batch}, {channels}, h, w] with even h and w')
  require(('noise' in arrays) != ('target_shape' in arrays), 'noise',
          "an array, or 'target_shape', not both")
  if 'noise' in arrays:
    noise = arrays['noise'].astype(np.float32)
  else:
    require(arrays['target_shape'].shape == (2,), 'target_shape', '(h, w)')
    height, width = (int(x) for x in arrays['target_shape'])
    config_lib.require(all(x > 0 and x % 2 == 0 for x in (height, width)),
                       f'{path}: target_shape', 'even numbers', (height, width))
    shape = (batch, channels, height, width)
    noise = np.asarray(jax.random.normal(jax.random.key(spec.seed), shape))

  scaled = [(arrays[name].astype(np.float32) - spec.latent_shift) * spec.latent_scale
            for name in references]
  reference = np.concatenate([dit_tokens.pack(x) for x in scaled] or
                             [np.zeros((batch, 0, model.in_channels), np.float32)], axis=1)
  grids = [(x.shape[2] // 2, x.shape[3] // 2) for x in (noise, *scaled)]
  ids = {'flux': dit_tokens.flux_ids, 'qwen': dit_tokens.qwen_ids}[model.family](grids, n_txt)
  prompt = lambda prefix: Prompt(*(arrays.get(prefix + name) for name in ('txt', 'pooled',
                                                                          'txt_mask')))
  conditions = Conditions(
      prompt(''), reference, *ids,
      np.full(batch, spec.guidance, np.float32) if model.guidance else None,
      prompt('negative_') if 'negative_txt' in arrays else None, spec.cfg_scale)
  tokens = dit_tokens.pack(noise)
  height, width = noise.shape[2:]

  def decode(x):
    return dit_tokens.unpack(np.asarray(x), height, width) / spec.latent_scale + spec.latent_shift

  rows = {name.replace('_', ' '): pictures.preview(arrays[name], arrays[name])
          for name in references}
  sigmas = rectified_flow.sigma_grid(spec.steps, tokens.shape[1])
  return Job(model, None, tokens, conditions, sigmas, decode, rows, None)


def fixture_job(config, workdir, count, average=False):
  """(Job, its profile) of held-out digits for the newest checkpoint of a run of the fixture.

  Args:
    config: of the run.
    workdir: its folder.
    count: digits.
    average: as in `evaluation.restored`.
  """
  made = task.make_task(config)
  model, spec = task.check(config)
  params = jax.tree.map(jnp.asarray, jax.device_get(
      restored(made, config, workdir, average)[0].params))
  columns = pipeline.take(made.dataset('test'), range(min(count, len(made.dataset('test')))))
  example, noise = task.held_out(columns['image'], columns['number'], spec)
  sigmas = rectified_flow.sigma_grid(config['sampling']['steps'], data.N_TARGET)
  rows = {'reference': data.pixels(np.asarray(example.reference)),
          'true': data.pixels(np.asarray(example.target))}
  job = Job(model, params, noise, task.see(example, spec), sigmas,
            lambda x: data.pixels(np.asarray(x)), rows, 2.0)
  images = pipeline.columns(made.dataset('train'))['image']

  def profile():
    values = study.calibrate(model, params, images, spec, config.get('seed', 0))
    _log.info('sensitivity of the layers: %s', ', '.join(f'{value:.3g}' for value in values))
    return values

  return job, profile


def files_job(config, inputs, weights):
  """The Job of a network whose latents are in the file `inputs` and whose weights are in a folder.

  Without weights (None) the network is random: for trying the command and the speed.
  """
  model, spec = check(config)
  job = read_inputs(inputs, model, spec)
  if weights is not None:
    return job._replace(params=load_weights(weights, model))
  _log.info('no --weights: the network is random')
  params = jax.jit(random_params, static_argnums=0)(model, jax.random.key(spec.seed))
  return job._replace(params=params)


def with_budget(settings, tau, pruned):
  """The mapping `config.prune` with another budget: `tau` or `pruned`, None to leave it."""
  given = {name: value for name, value in (('tau', tau), ('pruned', pruned)) if value is not None}
  rest = {name: value for name, value in settings.items()
          if not given or name not in ('tau', 'pruned')}
  return {**rest, **given}


def study_table(config, workdir, average, count=64):
  """The table of all policies on the fixture of a run, as text; arguments as in `fixture_job`."""
  job, profile = fixture_job(config, workdir, count, average)
  spec = task.check(config)[1]
  columns = pipeline.take(task.make_task(config).dataset('test'), range(count))
  example, noise = task.held_out(columns['image'], columns['number'], spec)
  seed = config.get('seed', 0)
  held = study.Held(example, noise, jax.random.key(seed))
  total = example.reference.shape[1]
  budgets = [total // 4, total // 2, 3 * total // 4]
  profile_ = np.asarray(profile())
  prune = pruning_of(config.get('prune', {}), job.model, len(job.sigmas) - 1, lambda: profile_)
  settings = study.Settings(len(job.sigmas) - 1, prune.first_layer, prune.interval)
  stacked = jax.tree.map(lambda leaf: leaf[None], job.params)
  result = study.run_study(job.model, stacked, [held], profile_[None], settings, budgets=budgets,
                           seed=seed, merges=('tome', 'tofu', 'sito'))
  lines = [[name, *(f'{runs[b].mean():.3f}' if b in runs else '' for b in budgets)]
           for name, runs in study.error_table(result).items()]
  lines += [[f'ToPi, tau {tau:g} (keeps {share[0]:.2f})',
             f'{study.errors(samples, result["unpruned"]).mean():.3f}']
            for tau, (samples, share) in result['taus'].items()]
  header = ['error to the unpruned sample', *(f'{b} of {total} kept' for b in budgets)]
  return (f'sensitivity of the layers: {", ".join(f"{v:.3g}" for v in profile_)}\n' +
          format_table(header, [line + [''] * (len(header) - len(line)) for line in lines]))


def run(job, pruning, output, picture):
  """Samples, compares with the unpruned sample if something is pruned, writes both.

  Args:
    job: Job.
    pruning: Pruning, or None to sample with all tokens.
    output: .npz file for 'samples' and, with pruning, 'unpruned'.
    picture: PNG file for the grid.

  Returns:
    {'seconds', ...}: with pruning also the pivotal layers, the kept share, speed-ups and
    similarities, None where one is not finite (PSNR of equal images).
  """
  arguments = (job.model, job.params, job.noise, job.conditions, job.sigmas)
  base, seconds = _timed(lambda: dit_sampler.sample(*arguments)[-1])
  base, summary, kept_row = job.decode(base), {'seconds': seconds}, {}
  arrays = {'samples': base}
  if pruning is not None:
    out, pruned_seconds = _timed(lambda: sampler.sample(*arguments, pruning))
    samples, total = job.decode(out.latents), job.conditions.reference.shape[1]
    arrays = {'samples': samples, 'unpruned': base}
    limits = job.data_range or float(base.max() - base.min())
    flops = functools.partial(
        cost.sampling_flops, job.model, job.conditions.prompt.txt.shape[1], job.noise.shape[1],
        total=total, first_layer=pruning.first_layer)
    planes = (lambda x: x) if base.ndim == 3 else (lambda x: np.moveaxis(x, 1, -1))
    window = min(7, *planes(base).shape[1:3])
    values = {
        'pruned_seconds': pruned_seconds, 'speed_up': seconds / pruned_seconds,
        'flop_ratio': flops(kept=[total] * len(out.kept)) / flops(kept=out.kept),
        'kept_share': float(np.mean(out.kept) / max(total, 1)),
        'relative_l2': float(image_similarity.relative_l2(samples, base).mean()),
        'psnr': float(image_similarity.psnr(samples, base, limits).mean()),
        'ssim': float(image_similarity.ssim(planes(samples), planes(base), limits, window).mean())}
    summary |= {'pivotal': pruning.pivotal, **{
        name: value if np.isfinite(value) else None for name, value in values.items()}}
    kept_row = {'pruned': samples}
  show = (lambda x: x) if base.ndim == 3 else (lambda x: pictures.preview(x, base))
  pictures.grid({**job.rows, 'unpruned': show(base),
                 **{name: show(x) for name, x in kept_row.items()}}, picture)
  np.savez(output, **arrays)
  return summary


def _timed(function):
  """(result, seconds of a second call): the first one compiles, which is logged."""
  seconds = []
  for _ in range(2):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    seconds.append(time.perf_counter() - start)
  _log.info('compiled in %.1f s, then %.2f s a run', seconds[0] - seconds[1], seconds[1])
  return result, seconds[1]
