"""Prompts: static places of the query tokens, left padding, errors."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxlab.config import ConfigError
from jaxlab.systems.vla_jepa import prompt

QUERIES = prompt.Queries((90, 91), 2, 99, 3, (70, 71))


def encode(text):
  return [len(word) for word in text.split()]


class PromptTest(parameterized.TestCase):

  def test_places_are_those_of_every_row(self):
    tokens, mask, places = prompt.build(
        '{images}do {instruction} see {actions} then act {e_actions} now', ['a', 'a bb ccc'],
        encode, QUERIES, length=20)
    np.testing.assert_array_equal(tokens[:, list(places.latent)], [[90, 90, 91, 91]] * 2)
    np.testing.assert_array_equal(tokens[:, list(places.embodied)], [[99] * 3] * 2)
    self.assertEqual(mask.sum(1).tolist(), [15, 17])
    self.assertEqual(tokens[1, 3:].tolist(),
                     [70, 71, 2, 1, 2, 3, 3, 90, 90, 91, 91, 4, 3, 99, 99, 99, 3])
    self.assertTrue((mask[:, 5:]).all())

  def test_a_prompt_for_video_has_no_embodied_tokens(self):
    _, _, places = prompt.build('{instruction}{actions}', ['a'], encode, QUERIES, length=5)
    self.assertEqual(places, ((1, 2, 3, 4), ()))

  def test_text_between_insertions_is_encoded_in_one_piece(self):
    seen = []
    prompt.build('{images}Do {instruction}. See {actions} and {e_actions}.', ['it', 'that'],
                 lambda text: seen.append(text) or [1], QUERIES, length=20)
    self.assertEqual(seen, ['Do it. See ', ' and ', '.', 'Do that. See ', ' and ', '.'])

  @parameterized.parameters(('{instruction} {e_actions}', 9), ('{actions} {instruction}', 9),
                            ('{instruction}{actions}{actions}', 19))
  def test_a_template_without_order(self, template, length):
    with self.assertRaisesRegex(ConfigError, 'prompt: expected {instruction}, {actions}'):
      prompt.build(template, ['a'], encode, QUERIES, length=length)

  def test_too_long(self):
    with self.assertRaisesRegex(ConfigError, "prompt.length: expected at least 6 for 'a b'"):
      prompt.build('{instruction}{actions}', ['a b'], encode, QUERIES, length=5)

  def test_words(self):
    encode_words, size = prompt.word_encoder(('red', 'block'))
    self.assertEqual((encode_words('Red block'), size), ([1, 2], 3))
    with self.assertRaisesRegex(ConfigError, "did you mean 'red'"):
      encode_words('rod block')


if __name__ == '__main__':
  absltest.main()
