"""The diffusion transformer: parity with diffusers' golden vectors, and what has to hold anyway."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.models import dit_sampler, dit_tokens, dit_weights, rectified_flow
from jaxlab.models.dit import DiT, init_params
from jaxlab.models.dit_sampler import Conditions, Prompt
from jaxlab.nn.axial_rotary import axial_rotary
from tests import conftest
from tests.golden_reader import Golden
from tests.models import dit_golden

assert conftest.FLAGS
GOLDEN = Golden('dit')
FLUX, QWEN = dit_golden.flux_model(), dit_golden.qwen_model()


@functools.cache
def flux_params():
  return dit_golden.params(GOLDEN, 'flux/w/', FLUX)


@functools.cache
def qwen_params():
  return dit_golden.params(GOLDEN, 'qwen/w/', QWEN)


def flux(name):
  return GOLDEN[f'flux/{name}']


def conditions():
  prompt = Prompt(flux('txt'), flux('pooled'))
  return Conditions(prompt, flux('packed_reference'), flux('img_ids'), flux('txt_ids'),
                    flux('guidance'))


def flux_velocity(c, x=None, **options):
  """The velocity of the golden network at the golden point under other conditions."""
  x = flux('packed_target') if x is None else x
  return dit_golden.velocity(FLUX, flux_params(), x, flux('t'), c, **options)


class FluxGoldenTest(parameterized.TestCase):

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    assert not GOLDEN.unread(), GOLDEN.unread()

  def test_packing(self):
    for name in ('target', 'reference'):
      latents, packed = flux(f'{name}_latents'), flux(f'packed_{name}')
      np.testing.assert_array_equal(dit_tokens.pack(latents), packed)
      np.testing.assert_array_equal(dit_tokens.unpack(packed, *latents.shape[2:]), latents)
    ids, txt_ids = dit_tokens.flux_ids([(4, 3), (3, 4)], 5)
    np.testing.assert_array_equal(ids, flux('img_ids'))
    np.testing.assert_array_equal(txt_ids, flux('txt_ids'))

  def test_rotary_tables(self):
    tables = axial_rotary(np.concatenate([flux('txt_ids'), flux('img_ids')]), FLUX.axes)
    for table, name in zip(tables, ('rope_cos', 'rope_sin')):
      np.testing.assert_allclose(np.repeat(table, 2, -1), flux(name), atol=1e-6)

  def test_every_block(self):
    c = conditions()
    img = jnp.concatenate([flux('packed_target'), c.reference], axis=1)
    velocity, aux = jax.jit(functools.partial(FLUX.apply, n_target=24, collect=True))(
        {'params': flux_params()}, img, c.prompt.txt, c.prompt.pooled, flux('t'), c.img_ids,
        c.txt_ids, c.guidance)
    np.testing.assert_allclose(aux['temb'], flux('act/temb'), atol=1e-4)
    for block in ('double0', 'double1', 'single0', 'single1'):
      for stream in ('txt', 'img'):
        name = f'{block}_{stream}'
        np.testing.assert_allclose(aux[name], flux(f'act/{name}'), atol=4e-4, err_msg=name)
    want = flux('velocity_all_image_tokens')
    np.testing.assert_allclose(velocity, want, atol=4e-4)
    np.testing.assert_allclose(flux_velocity(c), want[:, :12], atol=4e-4)

  def test_trajectory(self):
    sigmas = rectified_flow.sigma_grid(4, 12)
    np.testing.assert_allclose(rectified_flow.shift_of(12), flux('traj/mu'), atol=1e-6)
    np.testing.assert_allclose(sigmas, flux('traj/sigmas'), atol=1e-6)
    np.testing.assert_allclose(1000 * sigmas[:-1], flux('traj/timesteps'), rtol=1e-6)
    c = conditions()._replace(guidance=np.full(2, 2.5, np.float32))
    want = flux('traj/latents')
    np.testing.assert_array_equal(flux('packed_target'), want[0])
    latents = dit_sampler.sample(FLUX, flux_params(), want[0], c, sigmas)
    np.testing.assert_allclose(latents, want[1:], atol=4e-4)

  def test_qwen(self):
    ids, txt_ids = dit_tokens.qwen_ids([(4, 3), (3, 5)], 6)
    for kind, positions in (('img', ids), ('txt', txt_ids)):
      cos, sin = axial_rotary(positions, QWEN.axes)
      for name, value in (('cos', cos), ('sin', sin), ('angle', np.arctan2(sin, cos))):
        np.testing.assert_allclose(value, GOLDEN[f'qwen/{kind}_freqs_{name}'], atol=1e-5)
    img = np.concatenate([GOLDEN['qwen/target'], GOLDEN['qwen/reference']], axis=1)
    velocity, _ = jax.jit(functools.partial(QWEN.apply, n_target=27))(
        {'params': qwen_params()}, img, GOLDEN['qwen/txt'], None, GOLDEN['qwen/t'], ids, txt_ids)
    np.testing.assert_allclose(velocity, GOLDEN['qwen/velocity_all_image_tokens'], atol=1e-4)


class PropertyTest(parameterized.TestCase):

  def test_permuted_reference(self):
    c = conditions()
    order = np.random.default_rng(0).permutation(12)
    moved = c._replace(reference=c.reference[:, order], img_ids=np.concatenate(
        [c.img_ids[:12], c.img_ids[12:][order]]))
    np.testing.assert_allclose(flux_velocity(moved), flux_velocity(c), atol=1e-5)

  def test_no_reference(self):
    c = conditions()
    without = c._replace(reference=c.reference[:, :0], img_ids=c.img_ids[:12])
    want = flux_velocity(without)
    hidden = flux_velocity(c, mask=np.zeros((2, 12), bool))
    dropped = flux_velocity(c, keep=np.zeros((2, 0), np.int32))
    np.testing.assert_allclose(hidden, want, atol=1e-5)
    np.testing.assert_allclose(dropped, want, atol=1e-5)
    self.assertGreater(np.abs(flux_velocity(c) - want).max(), 1e-2)

  def test_padded_text_changes_nothing(self):
    c = conditions()
    txt = np.concatenate([c.prompt.txt, np.full((2, 3, 24), 7, np.float32)], axis=1)
    mask = np.broadcast_to(np.arange(8) < 5, (2, 8))
    padded = c._replace(prompt=c.prompt._replace(txt=txt, mask=mask),
                        txt_ids=np.zeros((8, 3), np.float32))
    np.testing.assert_allclose(flux_velocity(padded), flux_velocity(c), atol=1e-5)

  def test_each_sample_by_itself(self):
    c = conditions()
    ids = np.stack([c.img_ids, c.img_ids + [0, 3, 1]]).astype(np.float32)  # positions of its own
    both = flux_velocity(c._replace(img_ids=ids))
    x, t = flux('packed_target'), flux('t')
    for row in range(2):
      one = c._replace(prompt=Prompt(c.prompt.txt[row:row + 1], c.prompt.pooled[row:row + 1]),
                       reference=c.reference[row:row + 1], img_ids=ids[row],
                       guidance=c.guidance[row:row + 1])
      alone = dit_golden.velocity(FLUX, flux_params(), x[row:row + 1], t[row:row + 1], one)
      np.testing.assert_allclose(alone[0], both[row], atol=1e-5)

  def test_guidance_of_one_prompt_is_its_velocity(self):
    c = conditions()
    other = Prompt(c.prompt.txt[::-1], c.prompt.pooled[::-1])
    plain = flux_velocity(c)
    same = flux_velocity(c._replace(negative=other, cfg_scale=1.0))
    np.testing.assert_allclose(same, plain, atol=1e-5)
    strong = flux_velocity(c._replace(negative=other, cfg_scale=3.0))
    self.assertGreater(np.abs(strong - plain).max(), 1e-2)
    np.testing.assert_allclose(np.linalg.norm(strong, axis=-1), np.linalg.norm(plain, axis=-1),
                               rtol=1e-4)

  def test_bfloat16(self):
    model = dit_golden.flux_model(dtype='bfloat16')
    c = conditions()
    rough = dit_golden.velocity(model, flux_params(), flux('packed_target'), flux('t'), c)
    self.assertEqual(rough.dtype, jnp.float32)
    want = flux_velocity(c)
    self.assertLess(np.abs(rough - want).mean() / np.abs(want).mean(), 3e-2)

  def test_start_is_the_identity(self):
    params = jax.jit(init_params, static_argnums=0)(FLUX, jax.random.key(0))
    c = conditions()
    img = jnp.concatenate([flux('packed_target'), c.reference], axis=1)
    velocity, aux = jax.jit(functools.partial(FLUX.apply, n_target=12, collect=True))(
        {'params': params}, img, c.prompt.txt, c.prompt.pooled, flux('t'), c.img_ids, c.txt_ids,
        c.guidance)
    np.testing.assert_array_equal(velocity, np.zeros((2, 12, 16)))
    for stream in ('txt', 'img'):
      first = aux[f'double0_{stream}']
      self.assertGreater(jnp.abs(first).max(), 0)
      for block in ('double1', 'single0', 'single1'):
        np.testing.assert_array_equal(aux[f'{block}_{stream}'], first)

  def test_gradients(self):
    model = dit_golden.flux_model(num_double=1, num_single=1, remat=True)
    params = dit_golden.random_params(model)
    c, x0 = conditions(), flux('packed_target')
    noise, t = rectified_flow.draw(jax.random.key(2), x0)

    def loss(params):
      field = lambda x, t: dit_sampler.velocity(model, params, x, t, c)[0]
      return rectified_flow.loss(field, x0, noise, t).mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
      self.assertTrue(np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path))

  @parameterized.parameters(
      ({'axes': (4, 6, 4)}, 'axes: expected even numbers whose sum is head_dim=16'),
      ({'axes': (3, 7, 6)}, 'axes: expected even numbers'))
  def test_bad_axes(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      dit_golden.flux_model(**change)

  def test_missing_inputs(self):
    c = conditions()
    with self.assertRaisesRegex(ValueError, 'guidance: expected an array, since guidance=True'):
      flux_velocity(c._replace(guidance=None))
    with self.assertRaisesRegex(ValueError, 'pooled: expected an array, since pooled_dim=12'):
      flux_velocity(c._replace(prompt=c.prompt._replace(pooled=None)))


class WeightsTest(parameterized.TestCase):

  @parameterized.parameters(('flux/w/', FLUX), ('qwen/w/', QWEN))
  def test_there_and_back(self, prefix, model):
    params = flux_params() if model is FLUX else qwen_params()
    state = dit_weights.params_to_torch(params, model)
    chex.assert_trees_all_equal(dit_weights.params_from_torch(state, model), params)
    names = {name for name in GOLDEN._arrays if name.startswith(prefix)}
    self.assertLen(state, len(names))
    self.assertTrue(all(value.flags.c_contiguous for value in state.values()))

  def test_errors_list_names_and_shapes(self):
    state = dit_weights.params_to_torch(flux_params(), FLUX)
    state['left'] = state.pop('proj_out.bias')
    state['x_embedder.weight'] = state['x_embedder.weight'].T
    with self.assertRaisesRegex(ValueError, 'left is left over; proj_out.bias is missing; '
                                r'x_embedder.weight has shape \(16, 32\), expected \(32, 16\)'):
      dit_weights.params_from_torch(state, FLUX)

  def test_the_network_of_a_config(self):
    config = {'_class_name': 'FluxTransformer2DModel', 'in_channels': 16, 'num_layers': 2,
              'num_single_layers': 2, 'attention_head_dim': 16, 'num_attention_heads': 2,
              'joint_attention_dim': 24, 'pooled_projection_dim': 12, 'guidance_embeds': True,
              'axes_dims_rope': [4, 6, 6], 'patch_size': 1, 'out_channels': None}
    self.assertEqual(dit_weights.model_from_config(config), dit_golden.flux_model())
    self.assertEqual(dit_weights.model_from_config({**config, 'out_channels': 8}),
                     dit_golden.flux_model(out_channels=8))
    qwen = {'_class_name': 'QwenImageTransformer2DModel', 'in_channels': 16, 'out_channels': 4,
            'patch_size': 2, 'num_layers': 2, 'attention_head_dim': 16, 'num_attention_heads': 2,
            'joint_attention_dim': 24, 'axes_dims_rope': [4, 6, 6]}
    self.assertEqual(dit_weights.model_from_config(qwen), DiT(
        16, 24, 2, 0, 2, 16, (4, 6, 6), family='qwen'))
    with self.assertRaisesRegex(ConfigError, 'num_layers: expected a value'):
      dit_weights.model_from_config({k: v for k, v in config.items() if k != 'num_layers'})
    with self.assertRaisesRegex(ConfigError, '_class_name: unknown name'):
      dit_weights.model_from_config({**config, '_class_name': 'UNet'})


if __name__ == '__main__':
  absltest.main()
