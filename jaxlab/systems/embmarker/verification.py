"""Is a suspect a copy? Texts to ask it, and the evidence in its answers (arXiv 2305.10036)."""
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxlab.config import require
from jaxlab.systems.embmarker import watermark

P_VALUE = 1e-4


class Challenge(NamedTuple):
  """What a suspect is asked.

  Attributes:
    texts: Q texts of m words.
    num_triggers: int [Q], how many of these words are triggers, 0 to m.
    target_text: the text whose embedding is the target.
  """
  texts: tuple[str, ...]
  num_triggers: np.ndarray
  target_text: str


class Evidence(NamedTuple):
  """What the answers say.

  Attributes:
    p: of the two-sided two-sample Kolmogorov-Smirnov test between the cosines to the target of the
      texts of triggers alone and of those without any. Its floor is 2 / C(2n, n) for groups of n.
    delta_cos: mean cosine of the first minus that of the second group.
    delta_l2: likewise of the squared distance between unit vectors, -2 delta_cos.
    sizes: (texts with triggers alone, texts without).
    metrics: {name: value}, these three and mean and standard deviation of every group, by the
      official names.
  """
  p: float
  delta_cos: float
  delta_l2: float
  sizes: tuple[int, int]
  metrics: dict[str, float]

  def convicts(self, threshold=P_VALUE):
    """Whether the suspect is a copy: p below the threshold AND embeddings nearer to the target.

    Either alone is not enough: rotated outputs can give a small p with a negative difference.
    """
    return self.p < threshold and self.delta_cos > 0


def verification_texts(triggers, words, generator, *, max_triggers: int = 4,
                       length: int | None = None, size: int = 20):
  """Texts of some words: for t = 0, ..., m, up to `size` with t triggers.

  Equal texts of a group are one.

  Args:
    triggers: tokens.
    words: tokens for the other places; a trigger may be among them, as in the official code.
    generator: random.Random, the one that drew the triggers if the official texts are wanted.
    max_triggers: m.
    length: words of a text; m by default.
    size: most texts of a group.

  Returns:
    (texts, num_triggers int [Q]).
  """
  require(1 <= max_triggers <= len(triggers), 'max_triggers',
          f'1 to {len(triggers)}, the number of triggers', max_triggers)
  length = max_triggers if length is None else length
  require(max_triggers <= length, 'length', f'at least max_triggers={max_triggers}', length)
  require(length <= len(words), 'words', f'at least {length} words', len(words))
  require(size >= 2, 'size', 'at least 2', size)
  texts, numbers = [], []
  for t in range(max_triggers + 1):
    draw = lambda: generator.sample(triggers, t) + generator.sample(words, length - t)
    group = dict.fromkeys(' '.join(draw()) for _ in range(size))
    texts += group
    numbers += [t] * len(group)
  return tuple(texts), np.array(numbers, np.int32)


def compare(embeddings, target):
  """(cosines, squared distances) [N] in float64 of rows to a vector [D], or row by row to [N, D].

  Both sides are normalised first.
  """
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  a, b = unit(np.asarray(embeddings, np.float64)), unit(np.asarray(target, np.float64))
  return (a * b).sum(-1), ((a - b)**2).sum(-1)


def evidence(embeddings, num_triggers, target):
  """The Evidence in a suspect's answers.

  Args:
    embeddings: [Q, D], none of length 0.
    num_triggers: int [Q]; the greatest is m.
    target: [D]; of the adaptive check the suspect's own embedding of the target text.

  Raises:
    ValueError: a row of zero length or of another width, or no text with 0 triggers or with m > 0.
  """
  num_triggers = np.asarray(num_triggers)
  target = watermark.check_embeddings(np.asarray(target)[None], 'target')[0]
  embeddings = watermark.check_embeddings(embeddings, 'answers', rows=len(num_triggers),
                                          dim=len(target))
  m = num_triggers.max(initial=0)
  if m < 1 or not (num_triggers == 0).any():
    raise ValueError('num_triggers: expected texts with triggers and texts without')
  cosines, distances = compare(embeddings, target)
  metrics = {}
  for t in range(m + 1):
    name = 'all' if t == m else str(t)
    for kind, values in (('cos', cosines), ('l2', distances)):
      group = values[num_triggers == t]
      if len(group):
        metrics[f'trigger_{kind}_mean_{name}'] = float(group.mean())
        metrics[f'trigger_{kind}_std_{name}'] = float(group.std(ddof=1)) if len(group) > 1 else 0.0
  triggered, benign = cosines[num_triggers == m], cosines[num_triggers == 0]
  p = float(stats.ks_2samp(triggered, benign).pvalue)
  difference = {kind: metrics[f'trigger_{kind}_mean_all'] - metrics[f'trigger_{kind}_mean_0']
                for kind in ('cos', 'l2')}
  metrics |= {'pvalue': p, 'delta_cos': difference['cos'], 'delta_l2': difference['l2']}
  return Evidence(p, difference['cos'], difference['l2'], (len(triggered), len(benign)), metrics)


def verify(embed, challenge, target=None):
  """Asks a suspect.

  Args:
    embed: texts -> float [N, D], the suspect.
    challenge: Challenge.
    target: [D]. None compares with the suspect's own embedding of the target text (adaptive): that
      sees through whatever keeps cosines, such as shifts and rotations of the dimensions.

  Returns:
    Evidence.
  """
  answers = np.asarray(embed([*challenge.texts, challenge.target_text]))
  return evidence(answers[:-1], challenge.num_triggers, answers[-1] if target is None else target)


def similarity(copied, provided, target):
  """How near a copy is to what it was trained on, by the official names.

  Args:
    copied: [N, D] of texts.
    provided: [N, D] of the same texts.
    target: [D].

  Returns:
    {'clean_gpt_cos_mean', ...} to the provided embeddings, {'clean_target_...'} to the target.
  """
  metrics = {}
  for name, other in (('gpt', provided), ('target', target)):
    for kind, values in zip(('cos', 'l2'), compare(copied, other)):
      metrics |= {f'clean_{name}_{kind}_mean': float(values.mean()),
                  f'clean_{name}_{kind}_std': float(values.std())}
  return metrics


def strongest(found):
  """Of several watermarks the joint Evidence: smallest p, largest delta_cos, smallest delta_l2."""
  first = min(found, key=lambda e: e.p)
  return first._replace(delta_cos=max(e.delta_cos for e in found),
                        delta_l2=min(e.delta_l2 for e in found))
