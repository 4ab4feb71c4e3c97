"""The fixture: examples, Task on devices, evaluation, errors; the study and generation on it."""
import functools
import json
import os
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from configs.topi import flux
from jaxlab import parallel, systems, train
from jaxlab.config import ConfigError
from jaxlab.data import builders, pipeline
from jaxlab.models import dit_weights
from jaxlab.systems.topi import calibration, data, generate, study
from jaxlab.systems.topi import task as task_lib
from jaxlab.train import TrainState, train_step
from tests import conftest
from tests.models import dit_golden

assert conftest.FLAGS
SPEC = task_lib.DataSpec('aligned')
CONFIG = {
    'task': 'topi', 'seed': 0, 'batch_size': 8, 'steps': 2, 'log_every': 1,
    'data': {'variant': 'aligned', 'train': 'train[:64]', 'test': 'train[64:76]'},
    'model': {'num_double': 1, 'num_single': 1, 'num_heads': 2, 'head_dim': 8, 'axes': (2, 2, 4),
              'theta': 100.0, 'mlp_ratio': 2},
    'sampling': {'steps': 3}, 'prune': {'first_layer': 1, 'interval': 2, 'tau': .8, 'bucket': 8},
    'optimizer': {'name': 'sgd', 'learning_rate': 0.1},
}
IMAGES = np.random.default_rng(0).integers(0, 17, (12, 8, 8)).astype(np.uint8)


@functools.cache
def make_task():
  model = task_lib.make_model(SPEC, CONFIG['model'])
  columns = pipeline.from_arrays({'image': IMAGES, 'number': np.arange(12, dtype=np.int32)})
  return task_lib.from_model(model, SPEC, {'train': columns, 'test': columns}, steps=3)


def params():
  """Parameters away from the start, where most gradients are zero."""
  return dit_golden.random_params(task_lib.make_model(SPEC, CONFIG['model']))


class WeightsTest(absltest.TestCase):

  def test_official_names_go_out_and_come_back(self):
    read, write = systems.task_module(CONFIG).official_weights(CONFIG, params())
    tensors = write(params())
    self.assertEqual(tensors['transformer_blocks.0.attn.to_q.weight'].shape, (16, 16))
    chex.assert_trees_all_equal(read(tensors), params())


class DataTest(parameterized.TestCase):

  @parameterized.parameters(*data.VARIANTS)
  def test_the_digit_is_where_the_positions_say(self, variant):
    names = tuple(data.INSTRUCTIONS)
    example, _ = data.compose_numbered(IMAGES, np.arange(12), variant, names, 0)
    canvas = data.VARIANTS[variant]
    pictures, targets = data.pixels(example.reference), data.pixels(example.target)
    self.assertEqual(pictures.shape, (12, canvas.side, canvas.side))
    np.testing.assert_array_equal(example.informative.sum(1), np.full(12, 16))
    for i in range(12):
      digit = IMAGES[i] / 8 - 1.
      y, x = 2 * np.asarray(example.img_ids[i, 16:][example.informative[i]]).min(0)[1:].astype(int)
      np.testing.assert_allclose(pictures[i, y:y + 8, x:x + 8], digit, atol=1e-6)
      change = data.INSTRUCTIONS[names[int(example.instruction[i].argmax())]]
      np.testing.assert_allclose(targets[i], change(digit), atol=1e-6)
      first = example.img_ids[i, 0] - canvas.aligned * np.array([0, y / 2, x / 2])
      np.testing.assert_array_equal(first, [0, 0, 0])
    self.assertTrue((example.img_ids[:, 16:, 0] == 1).all())
    again, _ = data.compose_numbered(IMAGES[:3], np.arange(3), variant, names, 0)
    np.testing.assert_array_equal(again.reference, example.reference[:3])


class TaskTest(parameterized.TestCase):

  def step(self, count, accumulate=1, padding=0):
    pad = lambda x: np.concatenate([x, np.ones((padding, *x.shape[1:]), x.dtype)])
    batch = {'image': pad(IMAGES[:8]), 'number': pad(np.arange(8, dtype=np.int32)),
             'weight': np.concatenate([np.arange(8, dtype=np.float32), np.zeros(padding, 'f4')])}
    zero, sgd = jnp.zeros((), jnp.int32), optax.sgd(1.0)
    state = TrainState(zero, params(), {}, sgd.init(params()), jax.random.key(3), zero, zero, {})
    step = functools.partial(train_step, task=make_task(), optimizer=sgd, accumulate=accumulate,
                             trainable=jax.tree.map(lambda _: True, params()))
    devices = jax.devices()[:count]
    program = jax.pmap(step, axis_name=parallel.BATCH, in_axes=(None, None, 0),
                       out_axes=(None, None), devices=devices)
    out = program(state, {}, parallel.split(batch, devices))
    parallel.assert_replicated(out)
    return parallel.to_host((out[0].params, out[1]['loss']))

  def test_devices_padding_and_microbatches_change_nothing(self):
    want, got = self.step(1), self.step(2, accumulate=2, padding=4)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got)):
      np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4)
    moved = jax.tree.map(np.subtract, want[0], parallel.to_host(params()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))

  def test_evaluate(self):
    x = np.linspace(-1, 1, 128).reshape(2, 8, 8)
    metrics = make_task().evaluate(iter([({'sample': x + .1, 'target': x}, {})] * 2))
    self.assertAlmostEqual(metrics['mse'], .01)
    self.assertAlmostEqual(metrics['psnr'], 10 * np.log10(4 / .01))
    self.assertAlmostEqual(metrics['variance'], x.var())

  @parameterized.parameters(
      ({'data': {'variant': 'aligne'}}, "data.variant: unknown name 'aligne'; did you mean"),
      ({'data': {'variant': 'aligned', 'instructions': ('turn',)}}, 'data.instructions: unknown'),
      ({'data': None}, 'config.data: missing'), ({'sampling': {'steps': 0}}, 'sampling.steps'),
      ({'model': {**CONFIG['model'], 'axes': (2, 2, 2)}}, 'model: axes: expected even numbers'),
      ({'prune': {'tau': 2.0}}, 'tau: expected a share'),
      ({'prune': {'tau': .5, 'first_layer': 7}}, 'first_layer: expected below 2'),
      ({'prune': {'tau': .5, 'pivotal_from': 2}}, r'prune.pivotal_from: expected a layer of 0..1'),
      ({'prune': {'tau': .5, 'num_pivotal': 0}}, 'prune.num_pivotal: expected at least 1, got 0'),
      ({'prune': {'tau': .5, 'num_pivotl': 1}}, "prune: unknown key 'num_pivotl'"))
  def test_mistakes_are_found_before_any_data(self, change, message):
    config = {k: v for k, v in {**CONFIG, **change}.items() if v is not None}
    with mock.patch.object(builders, 'load', side_effect=AssertionError('loads data')):
      with self.assertRaisesRegex(ConfigError, message):
        systems.check(config)


  def test_what_prune_leaves_out_is_scaled(self):
    systems.check({**CONFIG, 'prune': {'tau': .5}})  # first layer 0 of 2, interval 1 of 3 steps


class StudyTest(absltest.TestCase):

  @pytest.mark.slow
  def test_policies_at_equal_budgets(self):
    model = task_lib.make_model(SPEC, CONFIG['model'])
    example, noise = task_lib.held_out(IMAGES[:4], np.arange(4), SPEC)
    held = [study.Held(example, noise, jax.random.key(0))]
    result = study.run_study(model, jax.tree.map(lambda x: x[None], params()), held,
                             np.array([[.1, .5]]), study.Settings(3, 1, 2), budgets=(12, 18),
                             seed=0, merges=('tome',))
    table = study.error_table(result)
    self.assertContainsSubset(['ToPi', 'random', 'regular', 'early layer', 'tome'], table)
    self.assertTrue(all(np.isfinite(v).all() for runs in table.values() for v in runs.values()))
    self.assertEqual(set(table['tome']), {18})
    shares = [share[0] for _, share in result['taus'].values()]
    self.assertTrue((np.diff(shares) >= 0).all())
    self.assertGreater(table['random'][12].mean(), 0)

  def test_a_policy_is_what_it_says(self):
    example, noise = task_lib.held_out(IMAGES[:4], np.arange(4), SPEC)
    held = study.Held(example, noise, jax.random.key(0))
    made = study.policies(2, [1, 0], held, 1, np.random.default_rng(0))
    location = study.policy_values(made['true location'], {}, jax.random.key(0))
    np.testing.assert_array_equal(np.sort(np.argsort(-location, -1)[:, :16], -1),
                                  np.stack([np.flatnonzero(r) for r in example.informative]))
    spread = np.sort(np.argsort(-made['regular'].own[0], kind='stable')[:9])
    self.assertLessEqual(np.diff(spread).max(), 8)


class GenerateTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  @pytest.mark.slow
  def test_a_trained_fixture(self):
    train.fit(systems.make_task(CONFIG), CONFIG, workdir=self.folder, devices=jax.devices()[:1])
    job, profile = generate.fixture_job(CONFIG, self.folder, 3)
    settings = {**generate.with_budget(CONFIG['prune'], None, .5), 'num_pivotal': 1}
    pruning = calibration.pruning_of(settings, job.model, 3, profile)
    self.assertEqual((pruning.tau, pruning.pruned, pruning.pivotal), (None, .5, (1,)))
    summary = generate.run(job, pruning, self.folder / 'out.npz', self.folder / 'out.png')
    self.assertAlmostEqual(summary['kept_share'], (36 + 18 + 36) / 3 / 36)
    self.assertGreater(summary['flop_ratio'], 1)
    with np.load(self.folder / 'out.npz') as file:
      self.assertEqual({name: x.shape for name, x in file.items()},
                       {'samples': (3, 8, 8), 'unpruned': (3, 8, 8)})
    self.assertGreater(os.path.getsize(self.folder / 'out.png'), 1000)

  def files(self, **change):
    """Config, inputs and weights of a small network with latents as files."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    arrays = {'txt': normal(2, 3, 24), 'pooled': normal(2, 12), 'reference_0': normal(2, 4, 4, 6),
              'reference_1': normal(2, 4, 4, 4), 'target_shape': np.array([4, 4]), **change}
    np.savez(self.folder / 'in.npz', **{k: v for k, v in arrays.items() if v is not None})
    model = dit_golden.flux_model(num_double=1, num_single=1)
    config = {'model': {name: getattr(model, name) for name in (
        'in_channels', 'text_dim', 'num_double', 'num_single', 'num_heads', 'head_dim', 'axes',
        'pooled_dim', 'guidance')}, 'sampling': {'steps': 2, 'latent_shift': .1,
                                                 'latent_scale': .5}}
    return config, model

  def test_latents_and_weights_as_files(self):
    config, model = self.files()
    from safetensors.numpy import save_file
    weights = dit_golden.random_params(model)
    state = dit_weights.params_to_torch(weights, model)
    names = sorted(state)
    for i, part in enumerate((names[:9], names[9:])):
      save_file({name: state[name] for name in part}, self.folder / f'model-{i}.safetensors')
    job = generate.files_job(config, self.folder / 'in.npz', self.folder)
    for a, b in zip(jax.tree.leaves(job.params), jax.tree.leaves(weights)):
      np.testing.assert_array_equal(a, b)
    self.assertEqual(job.conditions.reference.shape, (2, 10, 16))
    pruning = calibration.pruning_of({'pivotal': (1,), 'pruned': .5}, model, 2)
    summary = generate.run(job, pruning, self.folder / 'out.npz', self.folder / 'out.png')
    json.dumps(summary, allow_nan=False)
    with np.load(self.folder / 'out.npz') as file:
      self.assertEqual(file['samples'].shape, (2, 4, 4, 4))
    second = self.folder / 'model-1.safetensors'
    second.write_bytes(second.read_bytes()[:-9])
    with self.assertRaisesRegex(ConfigError, 'model-1.safetensors: expected a safetensors file'):
      generate.files_job(config, self.folder / 'in.npz', self.folder)
    second.unlink()
    with self.assertRaisesRegex(ConfigError, 'is missing'):
      generate.files_job(config, self.folder / 'in.npz', self.folder)
    (self.folder / 'config.json').write_text('{"_class_name": ')
    with self.assertRaisesRegex(ConfigError, 'config.json: line 1, column 17: expected json'):
      generate.files_job(config, self.folder / 'in.npz', self.folder)

  @parameterized.parameters('flux', 'qwen')
  def test_the_folders_of_the_public_models(self, variant):
    from safetensors.numpy import save_file
    official = {'attention_head_dim': 128, 'axes_dims_rope': [16, 56, 56], 'in_channels': 64,
                'num_attention_heads': 24, 'pooled_projection_dim': 768}
    official |= {
        'flux': {'_class_name': 'FluxTransformer2DModel', 'guidance_embeds': True,
                 'joint_attention_dim': 4096, 'num_layers': 19, 'num_single_layers': 38,
                 'out_channels': 64, 'patch_size': 1},
        'qwen': {'_class_name': 'QwenImageTransformer2DModel', 'guidance_embeds': False,
                 'joint_attention_dim': 3584, 'num_layers': 60, 'out_channels': 16,
                 'patch_size': 2}}[variant]
    save_file({'x': np.zeros(1, np.float32)}, self.folder / 'model.safetensors')
    model, _ = generate.check(flux.get_config(variant).to_dict())
    with mock.patch.object(dit_weights, 'params_from_torch', return_value={}):
      (self.folder / 'config.json').write_text(json.dumps(official))
      self.assertEqual(generate.load_weights(self.folder, model), {})
      (self.folder / 'config.json').write_text(json.dumps({**official, 'num_layers': 3}))
      with self.assertRaisesRegex(ConfigError, 'expected the network of the config, '):
        generate.load_weights(self.folder, model)

  def test_a_random_network_reads_its_reference(self):
    config, model = self.files()
    job = generate.files_job(config, self.folder / 'in.npz', None)
    self.assertGreater(np.abs(dit_golden.velocity(
        model, job.params, job.noise, .5, job.conditions)).max(), 1e-3)
    pruning = calibration.pruning_of({'pivotal': (1,), 'pruned': 1.0, 'interval': 2}, model, 2)
    summary = generate.run(job, pruning, self.folder / 'out.npz', self.folder / 'out.png')
    self.assertBetween(summary['relative_l2'], 1e-7, 1)
    none = calibration.pruning_of({'pivotal': (1,), 'pruned': 0.0}, model, 2)
    summary = generate.run(job, none, self.folder / 'out.npz', self.folder / 'out.png')
    self.assertEqual((summary['relative_l2'], summary['psnr']), (0, None))

  @parameterized.parameters(
      ({'txt': None}, r'in.npz: txt: expected \[B, n_txt, 24\], got .nothing.'),
      ({'pooled': np.zeros((1, 12))}, r'in.npz: pooled: expected \[2, 12\], got \[1, 12\]'),
      ({'reference_0': np.zeros((2, 4, 3, 4))}, 'reference_0: expected .* even h and w'),
      ({'refrence_0': np.zeros(1)}, "unknown key 'refrence_0'; did you mean"),
      ({'target_shape': None}, "noise: expected an array, or 'target_shape'"),
      ({'target_shape': np.array([4])}, r'target_shape: expected \(h, w\), got \[1\]'),
      ({'target_shape': np.array([4, 3])}, r'target_shape: expected even numbers, got \(4, 3\)'),
      ({'negative_pooled': np.zeros((2, 12))}, 'negative_txt: expected an array'),
      ({'negative_txt': np.zeros((2, 3, 24)), 'negative_pooled': np.zeros((2, 12)),
        'negative_txt_mask': np.ones((2, 3))}, 'in.npz: txt_mask: expected an array'))
  def test_bad_inputs(self, change, message):
    config, _ = self.files(**change)
    with self.assertRaisesRegex(ConfigError, message):
      generate.files_job(config, self.folder / 'in.npz', None)

  def test_a_damaged_file_of_inputs(self):
    config, _ = self.files()
    content = (self.folder / 'in.npz').read_bytes()
    for wrong in (content[:-30], b'', content[:-30] + bytes(30)):
      (self.folder / 'in.npz').write_bytes(wrong)
      with self.assertRaisesRegex(ConfigError, '--inputs=.*in.npz: cannot be read'):
        generate.files_job(config, self.folder / 'in.npz', None)


if __name__ == '__main__':
  absltest.main()
