"""Where tokens went, cut into parts that add up to a whole."""

import dataclasses

import numpy as np

from mtf_moe.report import mixtures


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a whole over time.

  Attributes:
    name: for people.
    kind: "first", "second", "dropped_first", "dropped_second", "refused" or
      "padding"; parts of the same kind have the same colour.
    counts: [n].
  """

  name: str
  kind: str
  counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Whole:
  """What parts add up to.

  Attributes:
    steps: [n].
    counts: [n].
    parts: a list of `Part`s, whose counts sum to `counts`.
  """

  steps: np.ndarray
  counts: np.ndarray
  parts: list[Part]

  def shares(self) -> list[np.ndarray]:
    """Of each part, [n] fractions of the whole."""
    return [part.counts / np.maximum(self.counts, 1) for part in self.parts]


def choices(outer: mixtures.Level) -> Whole:
  """Level one: all choices of all tokens, two for each with `top_2`.

  Padding counts as often as a token does. A token that is there with a part of
  its importance has no first choice; at level one this does not occur in a
  transformer, and such choices are counted as padding.

  Args:
    outer: the first level.

  Returns:
    a `Whole`
  """
  others = _numbers_of_other_choices(outer)

  def of_others(metric):
    return sum((outer[f"choices_{n}/{metric}"] for n in others),
               np.zeros(len(outer.steps)))

  whole = (1 + len(others)) * outer["tokens"]
  parts = [
      Part("kept, first choice", "first", outer["choices_1/kept"]),
      Part("kept, second choice", "second", of_others("kept")),
      Part("dropped, first choice", "dropped_first",
           outer["choices_1/dropped"]),
      Part("dropped, second choice", "dropped_second", of_others("dropped")),
      Part("refused by policy", "refused", of_others("refused")),
      Part("padding", "padding", (1 + len(others)) * outer["tokens/padding"]
           + outer["tokens/partial"])]
  return Whole(outer.steps, whole, parts)


def arrived(inner: mixtures.Level) -> Whole:
  """Level two: the tokens that arrive there, by whether an expert takes them.

  They are the choices that were kept at level one: a token that reaches two
  groups arrives twice.

  Args:
    inner: the second level.

  Returns:
    a `Whole`
  """
  by_first = inner["choices_1/kept"]
  lost = inner["tokens/lost"]
  return Whole(inner.steps, inner.used, [
      Part("taken by the first choice", "first", by_first),
      Part("taken by the second choice only", "second",
           inner.used - lost - by_first),
      Part("dropped: no expert had room", "dropped_first", lost)])


def _numbers_of_other_choices(level):
  numbers = []
  while f"choices_{len(numbers) + 2}/kept" in level:
    numbers.append(len(numbers) + 2)
  return numbers
