"""What a program costs."""
import functools
import logging
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab.train import TrainState, telemetry, train_step
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
M, K, N = 8, 16, 32
FLOPS = 2 * M * K * N


class CompileTest(parameterized.TestCase):

  @parameterized.parameters(1, 4)
  def test_flops_of_a_matrix_product_on_each_device(self, count):
    program = jax.pmap(lambda x, w: x @ w, in_axes=(0, None), devices=jax.devices()[:count])
    x, w = np.ones((count, M, K), np.float32), np.ones((K, N), np.float32)
    compiled = telemetry.compile_program(program, (x, w))
    self.assertEqual(compiled.flops, FLOPS)
    self.assertGreater(compiled.seconds, 0)
    np.testing.assert_array_equal(compiled.run(x, w), np.full((count, M, N), K))

  @parameterized.parameters(3, 10)
  def test_a_scan_of_steps_counts_as_one(self, steps):
    def many(x, w):
      return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=steps)[0]

    arguments = np.ones((1, K, K), np.float32), np.ones((K, K), np.float32)
    compiled = telemetry.compile_program(
        jax.pmap(many, in_axes=(0, None), devices=jax.devices()[:1]), arguments, steps)
    self.assertEqual(compiled.flops, 2 * K ** 3)

  def test_the_log_says_what_it_cost(self):
    program = jax.pmap(lambda x, w: x @ w, in_axes=(0, None), devices=jax.devices()[:1])
    arguments = np.ones((1, 100, 100), np.float32), np.ones((100, 100), np.float32)
    with self.assertLogs('jaxlab', logging.INFO) as logs:
      telemetry.compile_program(program, arguments, 5, 'round')
    self.assertRegex(
        logs.output[0], r'compiled in \d+\.\d s; 0.4 MFLOP a round a device, 5 round\(s\) a call')

  def test_the_executable_does_not_compile_again(self):
    events = []
    listen = lambda event, *_, **__: events.append(event)
    x = np.ones(4, np.float32)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
      compiled = telemetry.compile_program(jax.pmap(lambda x: x * 7), (x,))
      self.assertIn('/jax/core/compile/backend_compile_duration', events)
      events.clear()
      np.testing.assert_array_equal(compiled.run(x), 7)
    finally:
      jax.monitoring.unregister_event_duration_listener(listen)
    self.assertNotIn('/jax/core/compile/backend_compile_duration', events)


class FlopsTest(parameterized.TestCase):

  def count(self, function, *arguments):
    return telemetry.matmul_flops(jax.make_jaxpr(function)(*arguments).jaxpr)

  @parameterized.parameters(1, 2, 8)
  def test_microbatches_change_nothing(self, accumulate):
    task, sgd = toy.softmax_task(), optax.sgd(0.1)
    params, zero = task.init(jax.random.key(0))['params'], jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, {}, sgd.init(params), jax.random.key(1), zero, zero, {})
    step = functools.partial(train_step, task=task, optimizer=sgd, accumulate=accumulate,
                             trainable=jax.tree.map(lambda _: True, params))
    batch = {**toy.columns(rows=16), 'weight': np.ones(16, np.float32)}
    # Forwards and the gradient of the weights.
    self.assertEqual(self.count(lambda state, batch: step(state, {}, batch), state, batch),
                     2 * 2 * 16 * 4 * 3)

  def test_what_is_inside(self):
    x = np.ones((K, K), np.float32)
    one = 2 * K ** 3
    square = lambda x: x @ x
    layers = lambda count: lambda x: jax.lax.scan(
        lambda x, _: (jax.checkpoint(square)(x), None), x, None, length=count)[0]
    self.assertEqual(self.count(layers(5), x), 5 * one)
    self.assertEqual(self.count(jax.vmap(layers(5)), np.stack([x, x])), 10 * one)
    self.assertEqual(self.count(lambda x: jax.lax.cond(
        x[0, 0] > 0, jax.jit(layers(2)), lambda x: x, x), x), 2 * one)
    self.assertEqual(self.count(lambda x: jax.lax.while_loop(
        lambda x: x[0, 0] > 0, square, x), x), one)

  @parameterized.parameters(1, 2)
  def test_a_convolution(self, groups):
    x, kernel = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4 // groups, 6), np.float32)
    convolve = lambda x: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups)
    self.assertEqual(self.count(convolve, x), 2 * 2 * 8 * 8 * 6 * 9 * 4 // groups)


class SpeedTest(parameterized.TestCase):

  def speed(self, kind, flops, batch_size=0):
    device = types.SimpleNamespace(device_kind=kind)
    with mock.patch.object(jax, 'local_devices', return_value=[device]):
      return telemetry.Compiled(None, flops, 1.0).speed(10.0, batch_size)

  def test_the_cpu_has_no_peak(self):
    self.assertEqual(self.speed('cpu', 1e12), {'steps_per_s': 10.0})
    self.assertEqual(self.speed('cpu', 1e12, 32), {'steps_per_s': 10.0, 'examples_per_s': 320.0})

  @parameterized.parameters(('NVIDIA H100 80GB HBM3', 989e12), ('TPU v5 lite', 197e12),
                            ('NVIDIA A100-SXM4-40GB', 312e12), ('TPU v5p', 459e12))
  def test_share_of_the_peak(self, kind, peak):
    self.assertAlmostEqual(self.speed(kind, 1e12)['mfu'], 1e13 / peak)

  def test_no_share_where_the_flops_are_unknown(self):
    self.assertNotIn('mfu', self.speed('NVIDIA H100 80GB HBM3', 0))


if __name__ == '__main__':
  absltest.main()
