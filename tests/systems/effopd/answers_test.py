"""Finding and comparing answers."""
from absl.testing import absltest, parameterized

from jaxlab.systems.effopd import answers


class AnswersTest(parameterized.TestCase):

  @parameterized.parameters(
      (r'\boxed{3}', '3'), (r'a \boxed{1} b \boxed{x_{2}^{3}} c', 'x_{2}^{3}'),
      (r'\boxed{1} then \boxed{2', '1'), ('none', None), (r'\boxed{}', ''), (r'\boxed{a}}', 'a'))
  def test_boxed(self, text, expected):
    self.assertEqual(answers.boxed(text), expected)

  @parameterized.parameters(('so 3 #### 1,234 ', '1,234'), ('7', '7'), ('#### 1 #### 2', '2'))
  def test_final_number(self, text, expected):
    self.assertEqual(answers.final_number(text), expected)

  @parameterized.parameters(
      ('1/2', '0.5', True), (r'\frac{3}{4}', '.75', True), ('50%', '1/2', True), ('-3', '3', False),
      ('1,234,567', '1234567', True), ('1,2', '12', False), (r'\text{Yes}.', 'yes', True),
      ('x + 1', 'x+1', True), ('1/0', '1/0', True), ('2', 'two', False), (r'50\%', '0.5', True),
      (r'\left(1, 2\right)', '(1,2)', True), ('', '0', False), ('1e2', '100', True),
      (r'1\frac{1}{2}', '5.5', False), (r'1\frac{1}{2}', '1.5', True), ('1 1/2', '1.5', True),
      (r'-2\tfrac12', '-2.5', True), (r'x\frac{-1}{2}', 'x-1/2', False),
      (r'\frac{a+b}{c}', 'a+b/c', False), (r'\frac{a+b}{c}', '(a+b)/c', True),
      (r'\frac{\frac{1}{2}}{3}', '1/2/3', False), (r'\frac{1}{2}3', '1/23', False),
      (r'\dfrac{\sqrt{2}}{2}', r'\frac{\sqrt{2}}{2}', True), (r'\frac{\pi}{2}', r'\pi/2', True),
      (r'\frac{1}{-2}', '-1/2', True), (r'\frac{1.5}{2}', '0.75', True), ('1,2345', '12345', False),
      ('-1,234.5', '-1234.5', True), (r'\$5', '5', True), ('1_0', '10', False),
      ('1e999999999', '1', False), (r'\frac{1', r'\frac{1', True))
  def test_same_answer(self, first, second, same):
    self.assertEqual(answers.same_answer(first, second), same)
    self.assertEqual(answers.same_answer(second, first), same)


if __name__ == '__main__':
  absltest.main()
