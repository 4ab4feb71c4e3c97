"""The DINOv2 encoder: parity with the official code's golden vectors, and its weights' ways."""
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.models import dinov2, dinov2_weights
from jaxlab.models.dinov2 import DINOv2
from tests import conftest
from tests.golden_reader import Golden

assert conftest.FLAGS
GOLDEN = Golden('dinov2')
KEYS = tuple(GOLDEN.unread())
MODELS = {
    'plain': DINOv2(24, 3, 3, grid=5),
    'reg': DINOv2(24, 2, 3, grid=5, registers=4, offset=0.0, antialias=True),
    'swiglu': DINOv2(24, 2, 3, grid=5, ffn='swiglu'),
}
SIZES = {'plain': ('70x70', '56x84', '126x28'), 'reg': ('56x84',), 'swiglu': ('56x84',)}


def nhwc(x):
  return np.moveaxis(x, 1, -1)


@functools.cache
def state_dict(variant):
  prefix = f'{variant}_w/'
  return {key.removeprefix(prefix): GOLDEN[key] for key in KEYS
          if key.startswith(prefix)}


@functools.cache
def params(variant):
  return dinov2_weights.params_from_torch(state_dict(variant), MODELS[variant])


def apply(variant, image, *arguments, model=None, **options):
  model = model or MODELS[variant]
  return jax.jit(functools.partial(model.apply, **options))(
      {'params': params(variant)}, image, *arguments)


def gradients():
  """((loss, gradient of (params, image)) of the golden objective."""
  def loss(params, image):
    out = MODELS['plain'].apply({'params': params}, image, layers=2)
    return jnp.sum(out.cls**2) + jnp.sum(jnp.tanh(out.layers[0].patches))
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
      params('plain'), nhwc(GOLDEN['plain/70x70/image']))


class GoldenTest(parameterized.TestCase):

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    assert not GOLDEN.unread(), GOLDEN.unread()

  @parameterized.parameters(*[(v, size) for v, sizes in SIZES.items() for size in sizes])
  def test_features(self, variant, size):
    at = lambda name: GOLDEN[f'{variant}/{size}/{name}']
    close = functools.partial(np.testing.assert_allclose, atol=2e-4)
    out = apply(variant, nhwc(at('image')), layers=2)
    close(out.tokens, at('tokens'))
    close(out.cls, at('x_norm_clstoken'))
    for number, layer in enumerate(out.layers):
      close(layer.patches, at(f'last2_{number}_patch'))
      close(layer.cls, at(f'last2_{number}_cls'))
    raw = apply(variant, nhwc(at('image')), layers=[0], norm=False)
    self.assertLen(raw.layers, 1)
    close(raw.layers[0].patches, at('block0_prenorm_patch'))
    shape = jax.eval_shape(functools.partial(MODELS[variant].apply, layers=2, reshape=True),
                           {'params': params(variant)}, nhwc(at('image'))).layers[0].patches.shape
    self.assertEqual(shape, (len(out.cls), *(int(side) // 14 for side in size.split('x')), 24))
    if variant == 'reg':
      close(out.registers, at('x_norm_regtokens'))
      self.assertEqual(out.patches.shape[1] + 5, out.prenorm.shape[1])

  def test_masked(self):
    out = apply('plain', nhwc(GOLDEN['plain/70x70/image']), GOLDEN['plain/masked/mask'])
    np.testing.assert_allclose(out.cls, GOLDEN['plain/masked/x_norm_clstoken'], atol=2e-4)

  def test_gradients(self):
    value, (grads, image) = gradients()
    np.testing.assert_allclose(value, GOLDEN['plain/grad/loss'], rtol=1e-5)
    for name, ours in (('image', np.moveaxis(image, -1, 1)), ('pos_embed', grads['pos_embed']),
                       ('qkv0', grads['blocks_0']['attn']['qkv']['kernel'].T)):
      theirs = GOLDEN[f'plain/grad/{name}']
      np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())

  def test_positions(self):
    native = GOLDEN['posinterp/pos_embed']
    for key in [key for key in KEYS if key.startswith('posinterp/o')
                or key.startswith('posinterp/a')]:
      kind, size = key.split('/')[1:]
      offset, antialias = {'off0.1': (0.1, False), 'off0': (0.0, False), 'aa0': (0.0, True)}[kind]
      ours = dinov2.interpolate_positions(native, tuple(map(int, size.split('x'))), offset=offset,
                                          antialias=antialias)
      np.testing.assert_allclose(ours, GOLDEN[key], atol=5e-5)
    # What a plain resize gives is no rounding matter.
    plain = jax.image.resize(native[0, 1:].reshape(37, 37, 3), (28, 40, 3), 'cubic',
                             antialias=False)
    theirs = GOLDEN['posinterp/off0.1/28x40'][0, 1:].reshape(28, 40, 3)
    self.assertGreater(np.abs(plain - theirs).max(), 0.1)

  def test_resizes(self):
    image = nhwc(GOLDEN['resize/image'])[0]
    for key in [key for key in KEYS if key.startswith('resize/b')
                or key.startswith('resize/n')]:
      kind, size = key.removeprefix('resize/').rsplit('_', 1)
      h, w = map(int, size.split('x'))
      if kind == 'nearest':
        rows, columns = (np.floor(np.arange(n) * np.float32(old / n)).astype(int)
                         for n, old in ((h, 23), (w, 31)))
        ours = image[rows][:, columns]
      elif kind == 'bicubic':
        rows, columns = dinov2.cubic_matrix(h, 23, h / 23), dinov2.cubic_matrix(w, 31, w / 31)
        ours = np.einsum('ih,hwd,jw->ijd', rows, image, columns)
      else:
        ours = jax.image.resize(image, (h, w, 2), 'bilinear', antialias=kind == 'bilinear_aa')
      np.testing.assert_allclose(ours, nhwc(GOLDEN[key])[0], atol=5e-5)

  def test_gelu_as_tanh_would_not_pass(self):
    tanh = functools.partial(jax.nn.gelu, approximate=True)
    with mock.patch.object(dinov2, 'exact_gelu', tanh):
      out = apply('plain', nhwc(GOLDEN['plain/56x84/image']))
    self.assertGreater(np.abs(out.cls - GOLDEN['plain/56x84/x_norm_clstoken']).max(), 2e-4)


class ModelTest(parameterized.TestCase):

  def test_every_parameter_has_a_gradient(self):
    model = MODELS['reg']
    image = jax.random.normal(jax.random.key(1), (1, 28, 42, 3))
    mask = np.array([[True, False, False, True, False, False]])

    def loss(params):
      out = model.apply({'params': params}, image, mask)
      return jnp.sum(out.cls[:, 0]) + jnp.sum(jnp.tanh(out.patches)**2)

    grads = jax.jit(jax.grad(loss))(params('reg'))
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
      name = jax.tree_util.keystr(path)
      self.assertTrue(np.isfinite(leaf).all(), name)
      self.assertGreater(np.abs(leaf).max(), 0, name)

  def test_half_precision(self):
    image = nhwc(GOLDEN['plain/56x84/image'])
    half = apply('plain', image, model=MODELS['plain'].copy(dtype='bfloat16'))
    np.testing.assert_allclose(half.cls, apply('plain', image).cls, atol=3e-2)

  def test_init_std_is_that_of_kernels_and_positions(self):
    for std in (.02, .3):
      model = DINOv2(64, 1, 2, grid=5, init_std=std)
      made = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 28, 28, 3), np.float32))['params']
      block = made['blocks_0']
      for kernel in (block['attn']['qkv']['kernel'], block['mlp']['fc2']['kernel'],
                     made['pos_embed']):
        np.testing.assert_allclose(kernel.std(), std, rtol=.1)

  def test_remat_changes_nothing(self):
    image = nhwc(GOLDEN['plain/56x84/image'])
    again = apply('plain', image, model=MODELS['plain'].copy(remat=True))
    np.testing.assert_allclose(again.cls, apply('plain', image).cls, atol=1e-5)

  @parameterized.parameters(('vits14', 22.06), ('vitb14', 86.58), ('vitl14', 304.37),
                            ('vitg14', 1136.5), ('vits14_reg', 22.06))
  def test_sizes(self, name, millions):
    shapes = dinov2_weights.param_shapes(dinov2.make_encoder(name))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6
    self.assertLess(abs(count / millions - 1), 1e-3)

  @parameterized.parameters((np.int64(2), {1, 2}), (np.array([2, 0]), {0, 2}))
  def test_numbers_of_numpy(self, layers, wanted):
    self.assertEqual(dinov2.wanted_layers(layers, 3), wanted)

  @parameterized.parameters(
      ((1, 30, 28, 3), 1, 'image: expected sides that are multiples of 14, got 30 x 28'),
      ((1, 28, 28, 3), [0, 3], 'layers: expected numbers of 3 blocks, or how many, got'),
      ((1, 28, 28, 3), 4, 'layers: expected numbers of 3 blocks'),
      ((1, 28, 28, 3), [0, 0], r'layers: expected each block once, got \[0, 0\]'),
      ((1, 28, 28, 3), [], 'layers: expected numbers of 3 blocks'))
  def test_errors(self, shape, layers, message):
    with self.assertRaisesRegex(ValueError, message):
      jax.eval_shape(functools.partial(MODELS['plain'].apply, layers=layers),
                     {'params': params('plain')}, jnp.zeros(shape))


class WeightsTest(parameterized.TestCase):

  @parameterized.parameters('plain', 'reg', 'swiglu')
  def test_round_trip(self, variant):
    back = dinov2_weights.params_to_torch(params(variant), MODELS[variant])
    self.assertEqual(back.keys(), state_dict(variant).keys())
    for name, value in state_dict(variant).items():
      np.testing.assert_array_equal(back[name], value)

  def test_names_of_training_and_of_transformers(self):
    official = state_dict('swiglu')
    chunked = {name.replace('blocks.', 'blocks.0.', 1): value for name, value in official.items()}
    theirs = {}
    for name, value in official.items():
      module, leaf = name.rsplit('.', 1) if '.' in name else ('', name)
      prefix, block = '', ''
      if module.startswith('blocks.'):
        _, number, block = module.split('.', 2)
        prefix = f'encoder.layer.{number}.'
      if block == 'attn.qkv':
        for part, rows in zip(('query', 'key', 'value'), np.split(value, 3)):
          theirs[f'{prefix}attention.attention.{part}.{leaf}'] = rows
      elif block in ('ls1', 'ls2'):
        theirs[f'{prefix}layer_scale{block[-1]}.lambda1'] = value
      else:
        module = {'attn.proj': 'attention.output.dense', 'mlp.w12': 'mlp.weights_in',
                  'mlp.w3': 'mlp.weights_out', '': module}.get(block, block)
        module = {'patch_embed.proj': 'embeddings.patch_embeddings.projection',
                  'norm': 'layernorm'}.get(module, module)
        leaf = {'pos_embed': 'position_embeddings'}.get(leaf, leaf)
        theirs[f'{prefix}{module}.{leaf}' if module else f'embeddings.{leaf}'] = value
    for other in (chunked, theirs):
      same = dinov2_weights.params_from_torch(other, MODELS['swiglu'])
      jax.tree.map(np.testing.assert_array_equal, same, params('swiglu'))

  def test_another_native_grid_is_kept(self):
    other = {**state_dict('plain'), 'pos_embed': np.zeros((1, 10, 24), np.float32)}
    loaded = dinov2_weights.params_from_torch(other, MODELS['plain'])
    self.assertEqual(loaded['pos_embed'].shape, (1, 10, 24))
    MODELS['plain'].apply({'params': loaded}, jnp.zeros((1, 28, 28, 3)))

  def test_what_does_not_fit_is_listed(self):
    wrong = {**state_dict('plain'), 'more': np.zeros(1), 'norm.bias': np.zeros(3)}
    del wrong['cls_token']
    message = (r'not of this model: cls_token is missing; more is left over; norm.bias has shape '
               r'\(3,\), expected \(24,\)')
    with self.assertRaisesRegex(ValueError, message):
      dinov2_weights.params_from_torch(wrong, MODELS['plain'])


if __name__ == '__main__':
  absltest.main()
