"""VLA-JEPA (arXiv 2602.10098) at the release's size, on robot data in the format LeRobot v2.1.

  python -m launch.train --config=configs/vla_jepa/libero.py --workdir=/tmp/jaxlab/libero \\
      --config.prompt.tokenizer=QWEN3_VL_2B --config.encoder.checkpoint=VJEPA2_VITL \\
      --config.data.folders='("LIBERO_GOAL",)'

Eight devices or more; no run has been made here. The paper reports a LIBERO average of 97.2 %. The
default is stage 2, 30 000 steps of 256 robot samples; 'pretrain' is stage 1, 50 000 cycles of a
robot and a video batch of 128 each (clips in --config.data.clips, labels in --config.data.labels).
The trunk's weights come by launch.convert and --config.init_from. The shape of the trunk is
unverified (README).
"""
import ml_collections


def _schedule(peak, steps):
  return {'name': 'warmup_cosine_decay_schedule', 'init_value': 0.0, 'peak_value': peak,
          'warmup_steps': 5000, 'decay_steps': steps, 'end_value': 1e-6}


def get_config(variant='finetune'):
  """Returns the experiment; `variant` is 'finetune' or 'pretrain'."""
  if variant not in ('finetune', 'pretrain'):
    raise ValueError(f"variant: expected 'finetune' or 'pretrain', got {variant!r}")
  pretrain = variant == 'pretrain'
  steps = 50000 if pretrain else 30000
  config = ml_collections.ConfigDict()
  config.task = 'vla_jepa'
  config.seed = 0
  config.data = {
      'name': 'lerobot', 'folders': ('LIBERO_OBJECT', 'LIBERO_GOAL', 'LIBERO_SPATIAL', 'LIBERO_10'),
      'cameras': ('observation.images.image', 'observation.images.wrist_image'),
      'action_dim': 7, 'state_dim': 8, 'frames': 8, 'horizon': 7, 'size': 256,
      'normalise': 'minmax', 'gripper': 6,
      'clips': ml_collections.config_dict.placeholder(str),
      'labels': ml_collections.config_dict.placeholder(str)}
  config.prompt = {'length': 256, 'per_transition': 8, 'num_embodied': 32,
                   'tokenizer': 'QWEN3_VL_2B',
                   'robot': '<|im_start|>user\n{images}Your task is {instruction}. Infer the '
                            'temporal dynamics from frames {actions} and produce the corresponding '
                            'policy actions {e_actions}.<|im_end|>\n<|im_start|>assistant\n',
                   'video': '<|im_start|>user\n{images}Your task is {instruction}. Infer the '
                            'temporal dynamics of future frames {actions}.<|im_end|>\n'
                            '<|im_start|>assistant\n'}
  config.trunk = {
      'name': 'qwen3_vl', 'image_size': 224, 'readout': 'pre_norm', 'first_query_id': 151669,
      'num_action_tokens': 28,
      'image_token_id': 151655, 'vision_start_id': 151652, 'vision_end_id': 151653,
      'mrope_section': (24, 20, 20),
      'text': {'vocab_size': 151936, 'hidden_size': 2048, 'num_hidden_layers': 28,
               'num_attention_heads': 16, 'num_key_value_heads': 8, 'head_dim': 128,
               'intermediate_size': 6144, 'rope_theta': 5e6, 'dtype': 'bfloat16', 'remat': True},
      'vision': {'depth': 24, 'hidden_size': 1024, 'num_heads': 16, 'intermediate_size': 4096,
                 'patch_size': 16, 'out_hidden_size': 2048,
                 'deepstack_visual_indexes': (5, 11, 17)}}
  config.encoder = {'checkpoint': 'VJEPA2_VITL', 'dtype': 'bfloat16', 'zoom': True,
                    'crop_size': 256, 'patch_size': 16, 'tubelet_size': 2, 'hidden_size': 1024,
                    'num_attention_heads': 16, 'num_hidden_layers': 24}
  config.predictor = {'width': 1024, 'num_layers': 12, 'num_heads': 8, 'dtype': 'bfloat16'}
  config.head = {'name': 'flow', 'width': 768, 'num_heads': 12, 'num_layers': 16, 'hidden': 1024,
                 'out_width': 1024, 'future_tokens': 32, 'dropout': 0.2}
  config.world_model = {'beta': 0.1, 'context_encoding': 'causal_prefix', 'repeats': 8}
  config.batch_size = 128 if pretrain else 256
  config.optimizer = {
      'name': 'adamw', 'learning_rate': 0.0, 'b1': 0.9, 'b2': 0.95, 'eps': 1e-8,
      'weight_decay': 1e-8, 'clip_norm': 1.0,
      'groups': ({'match': 'trunk/.*', 'learning_rate': _schedule(1e-5, steps)},
                 {'match': 'head/.*', 'learning_rate': _schedule(1e-4, steps)},
                 {'match': 'predictor/.*', 'learning_rate': _schedule(3e-5, steps)})}
  config.init_from = ml_collections.config_dict.placeholder(str)  # folder of a checkpoint
  config.phases = ({'steps': steps, 'arms': ('robot', 'video') if pretrain else ('robot',)},)
  config.log_every, config.save_every = 100, 1000
  config.eval_splits = ()  # all episodes train; the paper's test is the closed loop
  return config
