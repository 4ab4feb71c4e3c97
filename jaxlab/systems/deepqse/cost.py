"""What a query costs, in tokens that pass through a layer of a text encoder."""
from typing import NamedTuple


class Cost(NamedTuple):
  """Tokens of each part of answering one query on one page.

  Attributes:
    joint: DeepQSE.
    cache: of Efficient-DeepQSE what does not depend on the query.
    coarse: its first stage online.
    fine: its second stage online.
  """
  joint: int
  cache: int
  coarse: int
  fine: int

  @property
  def online(self):
    """Tokens of Efficient-DeepQSE with a warm cache."""
    return self.coarse + self.fine


def tokens(sentences, candidates, query, title, sentence):
  """The Cost of a page.

  Args:
    sentences: n.
    candidates: K, at most n.
    query: tokens of the query.
    title: of the title.
    sentence: of a sentence.

  The document encoders, which see n + 1 and K + 1 vectors, are left out.

  >>> cost = tokens(160, 20, 20, 20, 30)
  >>> cost.joint, cost.online
  (11200, 680)
  """
  return Cost(joint=sentences * (query + title + sentence), cache=sentences * (title + sentence),
              coarse=query + title, fine=query + title + candidates * sentence)
