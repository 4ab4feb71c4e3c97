"""VLA-JEPA against its golden vectors: encoder, predictors, head, readout, losses, names."""
import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.models import vjepa2, vjepa2_weights, vlm, vlm_weights
from jaxlab.models.decoder_config import DecoderConfig
from jaxlab.systems.vla_jepa import flow_head, world_model
from tests.golden_reader import Golden

GOLDEN = Golden('vla_jepa')
KEYS = GOLDEN.unread()  # all of them, as yet
ENCODER = vjepa2.VJEPA2Config(
    crop_size=16, patch_size=8, tubelet_size=2, hidden_size=32, num_attention_heads=2,
    num_hidden_layers=2, pred_hidden_size=24, pred_num_attention_heads=2,
    pred_num_hidden_layers=2, pred_num_mask_tokens=3)
WORLD_ENCODER = vjepa2.VJEPA2Config(
    crop_size=16, patch_size=8, tubelet_size=2, hidden_size=16, num_attention_heads=2,
    num_hidden_layers=2, pred_hidden_size=0)
QWEN = vlm.QwenVLConfig(
    DecoderConfig(64, 32, 2, 4, 64, 2, 8, qk_norm=True, rope_theta=5e6),
    vlm.VisionConfig(3, 32, 2, 64, 4, 32, num_position_embeddings=16,
                     deepstack_visual_indexes=(0, 1)), (2, 1, 1), 60)


def tensors(group):
  """The tensors of a group under their official names and in PyTorch's layout."""
  found = {}
  for key in [key for key in KEYS if key.startswith(group)]:
    value, (name, _, leaf) = GOLDEN[key], key.removeprefix(group).rpartition('.')
    if leaf == 'kernel':
      value = value.T if value.ndim == 2 else value.transpose(4, 3, 0, 1, 2)
    if leaf == 'mask_tokens':
      found[f'{name}.{leaf}'] = value
    else:
      found[f'{name}.{"bias" if leaf == "bias" else "weight"}'] = value
  return found


def close(tolerance):
  return functools.partial(np.testing.assert_allclose, atol=tolerance, rtol=0)


def frames(pixels):
  """[..., T, H, W, C] of PyTorch's [..., T, C, H, W]."""
  return np.moveaxis(pixels, -3, -1)


def setUpModule():
  jax.config.update('jax_default_matmul_precision', 'highest')


class GoldenTest(parameterized.TestCase):

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    assert not GOLDEN.unread(), GOLDEN.unread()

  def assert_round_trip(self, given, back, unused=()):
    given = {name: value for name, value in given.items() if not name.startswith(unused)}
    self.assertEqual(set(given), set(back))
    for name, value in given.items():
      np.testing.assert_array_equal(value, back[name], err_msg=name)

  def test_encoder(self):
    given = tensors('vjepa2/w/')
    params = vjepa2_weights.params_from_torch(given, ENCODER)
    self.assert_round_trip(given, vjepa2_weights.params_to_torch(params, ENCODER))
    encoder, video = vjepa2.Encoder(ENCODER), frames(GOLDEN['vjepa2/pixel_values_videos'])
    apply = jax.jit(lambda x: encoder.apply({'params': params['encoder']}, x,
                                            mutable=['intermediates']))
    hidden, sown = apply(video)
    sown, check = sown['intermediates'], close(2e-5)
    check(sown['embedded'][0], GOLDEN['vjepa2/patch_embeddings'])
    for i in range(2):
      check(sown[f'layers_{i}']['hidden'][0], GOLDEN[f'vjepa2/encoder_layer{i}'])
    check(hidden, GOLDEN['vjepa2/encoder_last_hidden'])
    for k in (1, 2):
      check(apply(video[:, :2 * k])[0], GOLDEN[f'vjepa2/prefix_encoding_{k}'])

  def test_masked_predictor(self):
    params = vjepa2_weights.params_from_torch(tensors('vjepa2/w/'), ENCODER)
    predict = jax.jit(lambda *args: vjepa2.MaskedPredictor(ENCODER).apply(
        {'params': params['predictor']}, *args, mask_index=1))
    encoded = GOLDEN['vjepa2/encoder_last_hidden']
    context, target = GOLDEN['vjepa2/context_mask'], GOLDEN['vjepa2/target_mask']
    close(2e-5)(predict(encoded, context, target), GOLDEN['vjepa2/predictor_masked'])
    np.testing.assert_array_equal(np.take_along_axis(encoded, target[..., None], 1),
                                  GOLDEN['vjepa2/predictor_target_hidden'])
    every = np.broadcast_to(np.arange(8), (2, 8))
    close(2e-5)(predict(encoded, every, every), GOLDEN['vjepa2/predictor_full'])

  def test_ac_predictor(self):
    given = tensors('ac_predictor/w/')
    model = world_model.ACPredictor(24, 2, 3, width=32, num_layers=2, num_heads=2)
    params = world_model.params_from_torch(given, model, 20)
    self.assert_round_trip(given, world_model.params_to_torch(params),
                           ('state_encoder', 'extrinsics_encoder'))
    pred = jax.jit(lambda *args: model.apply({'params': params}, *args))(
        GOLDEN['ac_predictor/states_in'], GOLDEN['ac_predictor/action_tokens'])
    close(2e-5)(pred, GOLDEN['ac_predictor/pred'])
    l1 = world_model.l1(pred, GOLDEN['ac_predictor/states_gt']).mean()
    close(2e-5)(l1, GOLDEN['ac_predictor/l1_loss'])
    np.testing.assert_array_equal(vjepa2.block_causal_bias(3, 7)[0, 0] == 0,
                                  GOLDEN['ac_predictor/attn_mask'])

  @parameterized.parameters('action_head', 'action_head_nostate')
  def test_flow_head(self, group):
    has_state = group == 'action_head'
    head = flow_head.FlowHead(7, 7, 8 if has_state else 0, width=24, num_heads=2, num_layers=2,
                              hidden=28, out_width=28, future_tokens=4, max_positions=16)
    given = tensors(f'{group}/w/')
    params = flow_head.params_from_torch(given, head, 20)
    self.assert_round_trip(given, flow_head.params_to_torch(params),
                           () if has_state else ('state_encoder',))
    read = lambda name: GOLDEN[f'{group}/{name}']
    state = read('state')[:, 0] if has_state else None
    actions, noise, t, check = read('actions'), read('noise'), read('t'), close(5e-5)

    def velocity(x, bucket, **options):
      return head.apply({'params': params}, x, bucket, read('vl_tokens'), state, **options)

    np.testing.assert_array_equal(flow_head.bucket_of(t), read('t_bucket'))
    mix = t[:, None, None]
    _, sown = velocity((1 - mix) * noise + mix * actions, read('t_bucket'),
                       mutable=['intermediates'])
    for name, key in (('action_features', 'act/action_features'), ('time', 'act/temb'),
                      ('out', 'act/dit_out')):
      check(sown['intermediates'][name][0], read(key))
    check(flow_head.loss(velocity, actions, noise, t).mean(), read('fm_loss'))
    # The head with a state was sampled in 4 steps, as all releases are.
    check(jax.jit(lambda x: flow_head.sample(velocity, x, 4))(noise), read('sampled_actions'))

  def test_qwen3_vl(self):
    given = tensors('qwen3vl/w/')
    params = vlm_weights.params_from_torch(given, QWEN)
    self.assert_round_trip(given, vlm_weights.params_to_torch(params, QWEN))
    read = lambda name: GOLDEN[f'qwen3vl/{name}']
    images, check = np.moveaxis(read('images_normalised'), 1, -1), close(1e-4)
    np.testing.assert_array_equal(
        np.concatenate(vlm.patches(images, QWEN.vision)), read('pixel_values'))
    self.assertEqual(read('image_grid_thw').tolist(), [[1, 4, 4]] * 2)
    (merged, deep), sown = jax.jit(
        lambda x: vlm.Vision(QWEN.vision, np.float32).apply(
            {'params': params['visual']}, x, mutable=['intermediates']))(images)
    flat = np.concatenate
    check(flat(sown['intermediates']['hidden'][0]), read('vision_tokens_last_hidden'))
    check(flat(merged), read('vision_merged'))
    for i, features in enumerate(deep):
      check(flat(features), read(f'vision_deepstack{i}'))
    tokens, mask = read('input_ids'), read('attention_mask').astype(bool)
    positions = vlm.mrope_positions((tokens == 60) & mask, mask, 2, 2)
    np.testing.assert_array_equal(np.where(mask, positions, 0),
                                  np.where(mask, read('position_ids_thw'), 0))
    run = lambda config: jax.jit(lambda: vlm.QwenVL(config).apply(
        {'params': params}, images[:, None], tokens, mask))()
    hidden = run(QWEN)
    check(np.where(mask[..., None], hidden, 0), read('last_hidden_pre_norm'))
    after = run(vlm.QwenVLConfig(QWEN.text, QWEN.vision, (2, 1, 1), 60, 'post_norm'))
    check(np.where(mask[..., None], after, 0), read('last_hidden_state'))
    chosen = lambda *ids: np.asarray(hidden)[np.isin(tokens, ids)].reshape(2, -1, 32)
    check(chosen(52, 53), read('latent_action_tokens_pre_norm'))
    check(chosen(54), read('embodied_tokens_pre_norm'))

  @parameterized.parameters('intended', 'released_code', 'causal_prefix')
  def test_world_model_loss(self, group):
    encoder_params = vjepa2_weights.params_from_torch(tensors('world_model/enc_w/'),
                                                      WORLD_ENCODER)['encoder']
    model = world_model.ACPredictor(32, 2, 2, width=32, num_layers=2, num_heads=2)
    params = world_model.params_from_torch(tensors('world_model/pred_w/'), model, 12)
    encode = lambda x: vjepa2.Encoder(WORLD_ENCODER).apply({'params': encoder_params}, x)
    order = 'released_code' if group == 'released_code' else 'intended'
    how = 'causal_prefix' if group == 'causal_prefix' else 'shared'

    @jax.jit
    def run(videos, actions):
      context, target = world_model.encode_views(encode, videos, how=how, tubelet=2, order=order)
      return context, target, model.apply({'params': params}, context, actions)

    context, target, pred = run(frames(GOLDEN['world_model/videos']),
                                GOLDEN['world_model/latent_action_tokens'])
    read, check = lambda name: GOLDEN[f'world_model/{group}/{name}'], close(2e-5)
    if how == 'shared':
      check(np.concatenate([context, target[:, -4:]], axis=1), read('states'))
    else:
      check(context, read('context'))
    check(pred, read('pred'))
    close(1e-5)(world_model.l1(pred, target).mean(), read('l1'))


if __name__ == '__main__':
  absltest.main()
