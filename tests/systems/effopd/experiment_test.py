"""Experiments from configs: what is checked, where weights come from, resuming, the launch path."""
import importlib
import json
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab import parallel, systems, train
from jaxlab.config import ConfigError
from jaxlab.data import text
from jaxlab.models import decoder_lm, pretrained
from jaxlab.systems import effopd
from jaxlab.systems.effopd import experiment, loading
from tests import conftest, toy

assert conftest.FLAGS  # importing it is what makes four devices without pytest too
MODEL = {'vocab_size': 16, 'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2,
         'intermediate_size': 12, 'init': 'scaled'}
CONFIG = {
    'task': 'effopd', 'seed': 0, 'batch_size': 8, 'steps': 6, 'log_every': 6, 'eval_splits': (),
    'optimizer': {'name': 'adam', 'learning_rate': 0.01},
    'student': MODEL, 'teachers': (MODEL,), 'distill': {'max_new': 4},
    'data': {'name': 'sorting', 'train': 64, 'test': 16},
    'extrapolation': {'examples': 8, 'score': 'teacher', 'max_k': 2},
}


class Interrupt(Exception):
  """Ends a run as a kill would."""


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'student': None}, 'config.student: missing'),
      ({'student': {**MODEL, 'hidden_sise': 3}}, "student: unknown key 'hidden_sise'; did you"),
      ({'teachers': ({**MODEL, 'head_dim': 3},)}, r'teachers\[0\]: .*head_dim|head_dim: expected'),
      ({'student': {'weights': '/nowhere', 'dtyp': 3}}, "student: unknown key 'dtyp'; did you"),
      ({'teachers': MODEL}, 'config.teachers: expected tuple'),
      ({'data': {'name': 'sortin'}}, "data.name: unknown name 'sortin'; did you mean 'sorting'"),
      ({'data': {'name': 'sorting', 'digit': 3}}, "data: unknown key 'digit'; did you mean"),
      ({'distill': {}}, 'distill.max_new: missing'),
      ({'distill': {'max_new': 4, 'agregation': 'x'}}, "distill: unknown key 'agregation'"),
      ({'distill': {'max_new': 4, 'aggregation': 'mean'}}, 'distill.aggregation: expected'),
      ({'extrapolation': {'max_k': -1}}, 'extrapolation.max_k: expected at least 0'),
      ({'extrapolation': {'anchor': 'last'}}, 'extrapolation.anchor: expected'),
      ({'jump': {}}, "config: unknown key 'jump'"))
  def test_mistakes(self, change, message):
    config = {k: v for k, v in {**CONFIG, **change}.items() if v is not None}
    with self.assertRaisesRegex(ConfigError, message):
      systems.check(config)

  @parameterized.parameters(
      ({'init_from': '/x'}, 'config.init_from: expected student.weights in its place'),
      ({'extrapolation': {'examples': 65}}, 'extrapolation.examples: expected at most the 64'),
      ({'distill': {'max_new': 4, 'objective': 'rkl_full'}},
       "extrapolation.score: expected 'answers'"))
  def test_impossible_hooks(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      effopd.make_hook({**CONFIG, **change})

  @parameterized.parameters('base', 'teacher', 'distill')
  def test_the_config_file(self, variant):
    module = importlib.import_module('configs.effopd.sorting')
    config = module.get_config(variant).to_dict()
    systems.check(config)
    if variant != 'base':
      config['student']['weights'] = '/nowhere'
      with self.assertRaisesRegex(ConfigError, 'student.weights: expected a folder'):
        systems.make_task(config)


class WeightsTest(absltest.TestCase):

  def test_a_public_folder_and_a_run_of_ours(self):
    public = {'model_type': 'qwen3', 'vocab_size': 16, 'hidden_size': 8, 'num_hidden_layers': 2,
              'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 4,
              'intermediate_size': 12, 'rms_norm_eps': 1e-6, 'tie_word_embeddings': True}
    model, draw = loading.load_model({**MODEL, 'num_hidden_layers': 2, 'num_key_value_heads': 1,
                                      'qk_norm': True}, 'student')
    params = parallel.to_host(jax.jit(draw)(jax.random.key(3)))
    with tempfile.TemporaryDirectory() as folder:
      pretrained.write_safetensors_folder(folder, decoder_lm.params_to_torch(params), public)
      again, read = loading.load_model({'weights': folder, 'scan_layers': True}, 'student')
      found = jax.jit(read)(jax.random.key(0))
      toy.assert_trees_equal(pretrained.unstack_layers(parallel.to_host(found)), params)
      self.assertTrue(again.config.scan_layers)
      with self.assertRaisesRegex(ConfigError, "student: unknown key 'hidden_size'"):
        loading.load_model({'weights': folder, 'hidden_size': 8}, 'student')
      to_params, to_tensors = effopd.official_weights(
          {'student': {'weights': folder, 'scan_layers': True}}, found)
      tensors = to_tensors(found)
      toy.assert_trees_equal(tensors, decoder_lm.params_to_torch(params))
      toy.assert_trees_equal(to_params(tensors), parallel.to_host(found))
    with tempfile.TemporaryDirectory() as folder:
      end = train.fit(effopd.make_task(CONFIG), {**CONFIG, 'steps': 1}, workdir=folder,
                      devices=jax.devices()[:1])
      _, read = loading.load_model({**MODEL, 'weights': folder}, 'student')
      toy.assert_trees_equal(jax.jit(read)(jax.random.key(0)), end.params)


  def test_an_id_means_the_same_to_all_models(self):
    public = {**MODEL, 'model_type': 'llama', 'rms_norm_eps': 1e-6}
    del public['init']
    with tempfile.TemporaryDirectory() as root:
      folders = [pathlib.Path(root) / name for name in 'abc']
      for folder, words in zip(folders, ('one two', 'one two', 'other')):
        folder.mkdir()
        (folder / 'config.json').write_text(json.dumps(public))
        text.train_wordpiece([words], 30).save(str(folder / 'tokenizer.json'))
      config = lambda teacher, **data: {
          **CONFIG, 'student': {'weights': str(folders[0])},
          'teachers': ({'weights': str(teacher)},), 'data': {'name': 'problems', **data}}
      loading.load_models(config(folders[1], tokenizer=str(folders[0])))
      with self.assertRaisesRegex(
          ConfigError, r'config.teachers\[0\].weights: expected the vocabulary of .*a/tok.*c/tok'):
        loading.load_models(config(folders[2]))
      with self.assertRaisesRegex(ConfigError, 'config.data.tokenizer: expected the vocabulary of'):
        loading.load_models(config(folders[1], tokenizer=str(folders[2])))


class FitTest(parameterized.TestCase):

  def run_fit(self, config=CONFIG, workdir=None, stop=None):
    def halt(state, step):
      if step == stop:
        raise Interrupt
      return state

    hooks = [effopd.make_hook(config), train.Hook('stop', lambda params: {}, halt)]
    return train.fit(effopd.make_task(config), config, workdir=workdir, hooks=hooks,
                     devices=jax.devices()[:1])

  def test_resumes_between_jumps_to_the_same_end(self):
    config = {**CONFIG, 'save_every': 1}
    whole = self.run_fit(config)
    self.assertGreater(int(whole.hooks['extrapolation'].accepted.max()), 0)
    with tempfile.TemporaryDirectory() as folder:
      with self.assertRaises(Interrupt):
        self.run_fit(config, folder, stop=4)
      self.assertTrue(list((pathlib.Path(folder) / 'checkpoints').iterdir()))
      toy.assert_trees_equal(whole, self.run_fit(config, folder))

  def test_without_candidates_it_is_plain_distillation(self):
    never = self.run_fit({**CONFIG, 'extrapolation': {'max_k': 0}})
    plain = train.fit(effopd.make_task(CONFIG), CONFIG, devices=jax.devices()[:1])
    toy.assert_trees_equal(never._replace(hooks={}), plain._replace(hooks={}))

  def test_several_teachers(self):
    config = {**CONFIG, 'teachers': (MODEL, MODEL), 'steps': 1,
              'data': {**CONFIG['data'], 'teachers': 2}}
    end = train.fit(effopd.make_task(config), config, devices=jax.devices()[:1])
    self.assertEqual(int(end.step), 1)

  def test_the_published_rule_leaves_the_embedding_where_it_is(self):
    mask = experiment.movable_parameters('official')(effopd.make_task(CONFIG).init(
        jax.random.key(0))['params'])
    self.assertFalse(mask['embed']['embedding'] or mask['final_norm']['scale'])
    layer = mask['layers_0']
    self.assertTrue(layer['post_norm']['scale'] and layer['mlp']['up_proj']['kernel'])
    self.assertFalse(layer['input_norm']['scale'])

  def test_examples_are_training_prompts(self):
    problems = experiment.load_problems(CONFIG)
    rows = [experiment.draw_examples(problems, 8, seed)['row'] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(rows[0], rows[1])
    self.assertLen(set(rows[0].tolist()), 8)
    self.assertTrue(np.any(rows[0] != rows[2]))


if __name__ == '__main__':
  absltest.main()
