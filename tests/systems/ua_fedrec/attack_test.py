"""UA-FedRec's attack: golden vectors, properties of the message, rounds with and without it."""
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxlab import federated, parallel
from jaxlab.data import news as news_data
from jaxlab.data import pipeline
from jaxlab.federated import aggregators
from jaxlab.federated.round import run_clients
from jaxlab.models import news as models
from jaxlab.models import news_weights
from jaxlab.systems.ua_fedrec import attack as attack_lib
from jaxlab.tasks import news as news_task
from jaxlab.train import task_gradient
from tests import conftest
from tests.golden_reader import Golden

assert conftest.FLAGS  # several devices
GOLDEN = Golden('ua_fedrec')
GOLDEN_NAMES = GOLDEN.unread()  # all, before any is read
SIDES = {'news': 'text_encoder.', 'user': 'user_encoder.'}
PAPER = attack_lib.Strength()


def torch_arrays(prefix):
  """{'news', 'user': {official name: array}} of the golden's arrays under `prefix`."""
  names = [name for name in GOLDEN_NAMES if name.startswith(prefix)]
  return {side: {name[len(prefix + start):]: GOLDEN[name] for name in names
                 if name.startswith(prefix + start)} for side, start in SIDES.items()}


def to_flax(arrays, name='nrms'):
  """Flax trees {'news', 'user'} of official names."""
  return {side: jax.tree.map(jnp.float32, news_weights.params_from_torch(arrays[side],
                                                                         f'{name}_{side}'))
          for side in SIDES if arrays[side]}


def make_task():
  """The NRMS NewsTask of the golden's news, samples and sizes."""
  candidates, history = GOLDEN['candidates'], GOLDEN['history']
  count, width = candidates.shape
  train = {'row': np.arange(count, dtype=np.int32), 'user': GOLDEN['user_index'].astype(np.int32),
           'click': candidates[:, 0].astype(np.int32), 'pool': candidates[:, 1:].astype(np.int32),
           'pool_size': np.full(count, width - 1, np.int32), 'history': history.astype(np.int32)}
  params = torch_arrays('nrms/param/')
  words, embed = params['news']['word_embedding.weight'].shape
  queries, features = params['news']['additive_attention.att_fc1.weight'].shape
  heads = dict(heads=2, head_dim=features // 2, queries=queries)
  table = news_data.NewsTable({'title': GOLDEN['news_tokens'].astype(np.int32)},
                              {i: i for i in range(words - 1)}, 1, 1)
  return news_task.from_models(models.NRMSNews(words, embed=embed, dropout=0.0, **heads),
                               models.NRMSUser(**heads),
                               news_task.Data(table, {'train': train}, width - 1))


@functools.cache
def world():
  """(task, params, constants, FedSGD, columns, index [users, 1, B], sizes [users])."""
  task = make_task()
  constants = task.init(jax.random.key(0))['constants']
  algorithm = federated.fedsgd(task_gradient(task, constants), server_learning_rate=0.1)
  columns = jax.tree.map(jnp.asarray, pipeline.columns(task.dataset('train')))
  sizes = GOLDEN['counts'].astype(np.float32)
  index = np.full((len(sizes), 1, int(sizes.max())), -1, np.int32)
  for user, rows in enumerate(index):
    own = np.flatnonzero(GOLDEN['user_index'] == user)
    rows[0, :len(own)] = own
  return (task, to_flax(torch_arrays('nrms/param/')), constants, algorithm, columns,
          jnp.asarray(index), jnp.asarray(sizes))


def features():
  return world()[2]['news']


def make_attack(strength=PAPER, known=5, **options):
  """UA-FedRec whose attackers are the first `known` of the golden's users."""
  task, _, _, algorithm, columns, index, sizes = world()
  sizes = jnp.where(jnp.arange(len(sizes)) < known, sizes, 0)
  learn = attack_lib.own_clients(algorithm, columns, index, sizes)
  return attack_lib.ua_fedrec(task.encode, features(), learn, strength, **options)


@functools.cache
def clean():
  """(clean messages [users, ...], sizes [users]) of the users at the golden's parameters."""
  _, params, _, algorithm, columns, index, sizes = world()
  cohort = federated.Cohort(jnp.arange(len(sizes)), index, sizes)
  run = jax.jit(lambda: run_clients(algorithm, params, (), columns, cohort, jax.random.key(1))[:2])
  return run()


@jax.jit
def send(strength, known):
  """What is sent when two of the five users are malicious and `known` are the attacker's own."""
  attack = make_attack(strength, known)
  params, (messages, sizes) = world()[1], clean()
  return attack.apply(attack.init(params), params, messages, sizes, jnp.arange(len(sizes)) < 2,
                      jax.random.key(2))


@functools.cache
def forged(sign='paper', known=5, **changes):
  """(message, size, state) of the two malicious clients."""
  strength = PAPER._replace(news_sign=attack_lib.NEWS_SIGNS[sign], **changes)
  messages, sizes = clean()
  sent, weights, state = send(jax.tree.map(jnp.float32, strength), known)
  chex.assert_trees_all_equal(*(jax.tree.map(lambda x: x[i], sent) for i in range(2)))
  for before, after in zip(jax.tree.leaves(messages), jax.tree.leaves(sent)):
    np.testing.assert_array_equal(before[2:], after[2:])
  np.testing.assert_array_equal(weights[2:], sizes[2:])
  return jax.tree.map(lambda x: x[0], sent), weights[0], state


def norm(tree):
  return float(optax.tree.norm(tree))


def assert_matches(tree, arrays, scale=1.0, sides=tuple(SIDES), **tolerance):
  """Compares a Flax tree with official arrays of the same message."""
  for side in sides:
    found = news_weights.params_to_torch(tree[side], f'nrms_{side}')
    assert found.keys() == arrays[side].keys()
    for name, value in arrays[side].items():
      np.testing.assert_allclose(scale * found[name], value, err_msg=name, **tolerance)


class GoldenTest(parameterized.TestCase):

  def test_clean_gradients_and_their_moments(self):
    messages, sizes = clean()
    np.testing.assert_array_equal(sizes, GOLDEN['counts'])
    sums = torch_arrays('ua/user_grad_sum/')
    for user in range(len(sizes)):
      one = {side: {name: x[user] for name, x in sums[side].items()} for side in SIDES}
      assert_matches(jax.tree.map(lambda x, u=user: x[u] * sizes[u], messages), one, rtol=1e-3,
                     atol=1e-6)
    present = sizes > 0
    for place, name in enumerate(('mean', 'std')):
      moments = lambda x, p=place: attack_lib.moments(x.reshape(len(x), -1), present)[p].reshape(
          x.shape[1:])
      assert_matches(jax.tree.map(moments, messages), torch_arrays(f'ua/{name}/'), rtol=1e-3,
                     atol=1e-6)
    norms = jax.vmap(optax.tree.norm)(messages['news'])[:, None]
    for values, name in ((norms, 'news_grad_norm'), (sizes[:, None], 'sample_num')):
      found = attack_lib.moments(values, present)
      np.testing.assert_allclose(found[0][0], GOLDEN[f'ua/{name}_mean'], rtol=1e-4)
      np.testing.assert_allclose(found[1][0], GOLDEN[f'ua/{name}_std'], rtol=1e-3)

  def test_near_and_far_news(self):
    task, params, *_ = world()
    vectors = news_task.encode_all(task.encode, params['news'], features())
    pairs = GOLDEN['ua/news_pairs']
    np.testing.assert_array_equal(pairs[:, 0], np.arange(len(vectors)))
    for chunk in (5, 1024):
      near, far = attack_lib.closest_and_farthest(vectors, chunk)
      np.testing.assert_array_equal(near, pairs[:, 1])
      np.testing.assert_array_equal(far, pairs[:, 2])

  def test_similarity_loss_and_gradient(self):
    task, params, *_ = world()
    _, near, far = GOLDEN['ua/news_pairs'].T
    vectors = news_task.encode_all(task.encode, params['news'], features())
    loss = attack_lib.similarity_loss(vectors, near, far)
    np.testing.assert_allclose(loss, GOLDEN['ua/similarity_loss'], rtol=1e-3, atol=1e-6)
    gradient = jax.jit(functools.partial(attack_lib.similarity_gradient, task.encode))(
        features(), params['news'], near, far)
    for prefix, scale in (('similarity_loss_grad', 1.0), ('news_raw', -1.0)):
      arrays = torch_arrays(f'ua/{prefix}/')
      assert_matches({'news': gradient}, arrays, scale, ('news',), rtol=1e-3, atol=1e-6)
      for name, value in arrays['user'].items():  # the user model has no part in it
        np.testing.assert_array_equal(value, 0, err_msg=name)

  def test_message(self):
    message, size, state = forged('release')
    self.assertEqual(size, GOLDEN['ua/mal_sample_num'])
    np.testing.assert_array_equal(np.stack(state[:2], 1), GOLDEN['ua/news_pairs'][:, 1:])
    news, user = (torch_arrays(f'ua/{side}_part_times_num/') for side in SIDES)
    tolerance = dict(rtol=1e-3, atol=1e-5)
    assert_matches(message, news, size, ('news',), **tolerance)
    assert_matches(message, user, size, ('user',), **tolerance)
    assert_matches(message, torch_arrays('ua/official_malicious_message/'), size, **tolerance)
    opposite = {**message, 'news': jax.tree.map(jnp.negative, message['news'])}
    chex.assert_trees_all_close(opposite, forged('paper')[0], rtol=1e-6)

  def test_zz_every_array_of_the_attack_was_compared(self):
    self.assertEmpty([key for key in GOLDEN.unread() if key.startswith('ua/')])


class MessageTest(parameterized.TestCase):

  @parameterized.parameters('paper', 'release')
  def test_norm_size_and_sign(self, sign):
    message, size, _ = forged(sign)
    messages, sizes = clean()
    norms = np.asarray(jax.vmap(optax.tree.norm)(messages['news']))
    rho = norms.mean() + 3 * norms.std(ddof=1)
    self.assertAlmostEqual(norm(message['news']) / rho, 1, places=3)
    self.assertLess(norm(message['news']), rho)  # |g| / (|g| + 1e-6)
    self.assertEqual(size, int(np.mean(sizes) + 3 * np.std(sizes, ddof=1)))
    opposed = 0
    for sent, own in zip(jax.tree.leaves(message['user']), jax.tree.leaves(messages['user'])):
      mean, deviation = np.mean(own, 0), np.std(own, 0, ddof=1)
      clear = (np.abs(mean) < 2.99 * deviation) & (np.abs(mean) > 1e-7)
      np.testing.assert_array_equal(np.sign(sent)[clear], -np.sign(mean)[clear])
      opposed += clear.sum()
    self.assertGreater(opposed, 10)

  def test_descent_on_the_message_does_what_the_sign_says(self):
    task, params, *_ = world()
    state = forged('paper')[2]
    loss = lambda news: attack_lib.similarity_loss(
        news_task.encode_all(task.encode, news, features()), state.near, state.far)
    before = loss(params['news'])
    for sign, lower in (('paper', True), ('release', False)):
      moved = jax.tree.map(lambda p, g: p - 0.03 * g, params['news'], forged(sign)[0]['news'])
      self.assertEqual(bool(loss(moved) < before), lower, sign)

  def test_nothing_perturbed_is_the_clean_mean(self):
    message, size, _ = forged('none', user=0.0, quantity=0.0)
    messages, sizes = clean()
    mean = jax.tree.map(lambda x: x.mean(0), messages)
    chex.assert_trees_all_close(message, mean, rtol=1e-5, atol=1e-7)
    self.assertEqual(size, int(sizes.mean()))

  def test_one_own_client_has_no_deviation(self):
    message, size, _ = forged(known=1)
    messages, sizes = clean()
    one = jax.tree.map(lambda x: x[0], messages)
    chex.assert_trees_all_close(message['user'], one['user'], rtol=1e-5, atol=1e-8)
    self.assertAlmostEqual(norm(message['news']) / norm(one['news']), 1, places=3)
    self.assertEqual(size, sizes[0])

  def test_nan_entries_become_pushed_ones(self):
    own = jnp.array([[1.0, 2.0, 0.0], [3.0, -1.0, 0.0]])
    present = jnp.array([True, True])
    raw = jnp.array([jnp.nan, 1.0, 2.0])
    made = attack_lib.news_part(raw, own, present, PAPER)
    deviation = np.std([1, 3], ddof=1)
    expected = np.array([2 - 3 * deviation, 1, 2])
    norms = np.array([5**0.5, 10**0.5])
    rho = norms.mean() + 3 * norms.std(ddof=1)
    np.testing.assert_allclose(made, expected * rho / np.linalg.norm(expected), rtol=1e-5)

  def test_batches_of_anchors(self):
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)
    near, far = attack_lib.closest_and_farthest(vectors)
    apart = ((vectors - vectors[far])**2).mean(1) - ((vectors - vectors[near])**2).mean(1)
    expected = apart[:3].mean() + apart[3:6].mean() + apart[6:].mean()
    loss = attack_lib.similarity_loss(vectors, near, far, batch_size=3)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


class OwnClientsTest(absltest.TestCase):

  def test_padding_and_the_number_drawn(self):
    _, params, _, algorithm, columns, index, sizes = world()
    gap = jnp.where(jnp.arange(len(sizes)) == 1, 0, sizes)
    learn = attack_lib.own_clients(algorithm, columns, index, gap, count=4)
    messages, drawn = jax.jit(learn)(params, jax.random.key(0))
    self.assertCountEqual(np.asarray(drawn), np.delete(sizes, 1))
    for leaf in jax.tree.leaves(messages):
      self.assertLen(leaf, 4)
    every = attack_lib.own_clients(algorithm, columns, index, gap, count=50)
    self.assertEqual(jax.jit(every)(params, jax.random.key(0))[1][-1], 0)

  def test_not_always_the_same(self):
    _, params, _, algorithm, columns, index, sizes = world()
    learn = jax.jit(attack_lib.own_clients(algorithm, columns, index, sizes, count=2))
    draws = {tuple(np.asarray(learn(params, jax.random.key(i))[1])) for i in range(8)}
    self.assertGreater(len(draws), 2)


@functools.cache
def program(devices, attacked):
  """Three rounds of all users on some devices: (cohort, malicious, refresh_every) -> state."""
  _, params, _, algorithm, columns, *_ = world()
  aggregator = aggregators.weighted_mean()

  def run(cohort, malicious, refresh_every):
    attack = make_attack(refresh_every=refresh_every)
    threat = federated.Threat(attack, malicious) if attacked else None
    state = federated.RoundState.start(algorithm, aggregator, params,
                                       attack=attack if attacked else None)

    def one(state, number):
      state, metrics = federated.federated_round(
          state, cohort, columns, jax.random.fold_in(jax.random.key(3), number),
          algorithm=algorithm, aggregator=aggregator, threat=threat)
      return state, metrics['refused']

    return jax.lax.scan(one, state, jnp.arange(3))

  return jax.pmap(run, axis_name=parallel.CLIENTS, in_axes=(0, None, None),
                  out_axes=(None, None), devices=jax.devices()[:devices])


class RoundTest(absltest.TestCase):

  def rounds(self, malicious, devices=1, attacked=True, refresh_every=100):
    """The state after three rounds; slots that no device has a user for are padding."""
    *_, index, sizes = world()
    slots = -(-len(sizes) // devices) * devices
    pad = lambda x, value: jnp.pad(x, [(0, slots - len(x)), *[(0, 0)] * (x.ndim - 1)],
                                   constant_values=value).reshape(devices, -1, *x.shape[1:])
    cohort = federated.Cohort(pad(jnp.arange(len(sizes)), -1), pad(index, -1), pad(sizes, 0))
    flags = np.zeros(len(sizes) + 1, bool)
    flags[malicious] = True
    state, refused = program(devices, attacked)(cohort, flags, np.int32(refresh_every))
    parallel.assert_replicated(state)
    self.assertFalse(refused.any())
    return jax.device_get(state)

  def test_nobody_malicious_is_the_plain_run_bit_for_bit(self):
    attacked, plain = self.rounds([]), self.rounds([], attacked=False)
    chex.assert_trees_all_equal(attacked.server.params, plain.server.params)
    self.assertEqual(attacked.attack.age, 100 + 3)

  def test_devices_agree(self):
    one = self.rounds([1, 3])
    moved = jax.tree.map(np.subtract, one.server.params, self.rounds([]).server.params)
    self.assertGreater(norm(moved), 1e-2)
    for devices in (2, 4):
      chex.assert_trees_all_close(self.rounds([1, 3], devices).server.params, one.server.params,
                                  atol=1e-6)

  def test_pairs_are_found_anew_when_they_are_old(self):
    self.assertEqual(self.rounds([0], refresh_every=2).attack.age, 1)
    self.assertEqual(self.rounds([0]).attack.age, 3)


if __name__ == '__main__':
  absltest.main()
