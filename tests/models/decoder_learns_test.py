"""A small decoder learns to look up a key: minutes, so marked slow."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest

from jaxlab.models import decoder_lm, generate, scoring

KEYS, VALUES = 4, 16
PAD, BOS, EOS, QUESTION, CONTEXT, END = range(KEYS + VALUES, KEYS + VALUES + 6)
CONFIG = decoder_lm.DecoderConfig(
    vocab_size=KEYS + VALUES + 6, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=128, init='scaled')


def prompts(rng, rows):
  """'bos CTX k v k v k v (k v) END Q k', padded at the left, and the value of the asked key."""
  made = []
  for _ in range(rows):
    facts = rng.integers(3, 5)
    keys, values = rng.permutation(KEYS)[:facts], KEYS + rng.integers(0, VALUES, facts)
    asked = rng.integers(facts)
    text = [BOS, CONTEXT, *np.stack([keys, values], 1).ravel(), END, QUESTION, keys[asked]]
    made.append((text, values[asked]))
  tokens, mask = generate.pad_left([text for text, _ in made], 13, PAD)
  return tokens, mask, np.array([value for _, value in made], np.int32)


@pytest.mark.slow
class LookupTest(absltest.TestCase):

  def test_98_percent_in_800_steps(self):
    model, steps = decoder_lm.DecoderLM(CONFIG), 800
    rng = np.random.default_rng(0)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
    schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, 40, steps, 1.5e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=.01))

    def step(carry, batch):
      tokens, mask, value = batch
      answer = jnp.stack([value, jnp.full_like(value, EOS)], axis=1)
      whole = jnp.concatenate([tokens, answer], axis=1)
      seen = jnp.concatenate([mask, jnp.ones_like(answer, bool)], axis=1)
      loss = lambda p: -scoring.token_logprobs(model, p, whole, seen, first=13).mean()
      updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
      return (optax.apply_updates(carry[0], updates), state), None

    batches = [prompts(rng, 64) for _ in range(steps)]
    (params, _), _ = jax.jit(lambda c, b: jax.lax.scan(step, c, b))(
        (params, optimizer.init(params)), jax.tree.map(lambda *x: np.stack(x), *batches))
    tokens, mask, value = prompts(rng, 500)
    out = jax.jit(lambda p: generate.generate(
        model, p, tokens, mask, jax.random.key(0), max_new=2, temperature=0,
        eos_ids=(EOS,)))(params)
    right = (np.asarray(out.tokens) == np.stack([value, np.full(500, EOS)], 1)).all(1)
    self.assertGreater(right.mean(), 0.98)


if __name__ == '__main__':
  absltest.main()
