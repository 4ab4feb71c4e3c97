"""What a sampling run costs in floating-point operations, in closed form."""


def block_flops(tokens, width, mlp_ratio=4):
  """Matrix products of one block on n tokens: (8 + 4 r) n d^2 + 4 n^2 d (r = 4: 24 n d^2 + ...)."""
  return (8 + 4 * mlp_ratio) * tokens * width**2 + 4 * tokens**2 * width


def sampling_flops(model, n_txt, n_target, kept, total, *, first_layer, scored=0):
  """All blocks of a sampling run of one sample.

  Args:
    model: DiT.
    n_txt: text tokens.
    n_target: target tokens.
    kept: reference tokens in the late layers of each step, as `Sampled.kept`.
    total: reference tokens.
    first_layer: first layer without the pruned ones.
    scored: anchor steps x pivotal layers: each computes the target's logits once more.
  """
  rest = n_txt + n_target
  late = model.num_layers - first_layer
  block = lambda tokens: block_flops(rest + tokens, model.width, model.mlp_ratio)
  blocks = sum(first_layer * block(total) + late * block(k) for k in kept)
  return blocks + scored * 2 * n_target * (rest + total) * model.width
