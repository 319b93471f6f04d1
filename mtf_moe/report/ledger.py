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


def choices(level: mixtures.Level) -> Whole:
  """Level one: all choices of all tokens, two for each with `top_2`.

  Padding counts as often as a token does. A token that is there with a part of
  its importance has no first choice; at level one this does not occur in a
  transformer, and such choices are counted as padding.

  Args:
    level: the first level.

  Returns:
    a `Whole`; of tokens, where it is the experts that choose
  """
  if not has_choices(level):
    return Whole(level.steps, level["tokens"], [
        *_taken_or_not(level), Part(
            "padding", "padding", level["tokens/padding"])])
  others = range(2, number_of_choices(level) + 1)
  which = "second choice" if len(others) < 2 else "later choices"

  def of_others(metric):
    return sum((level[f"choices_{n}/{metric}"] for n in others),
               np.zeros(len(level.steps)))

  whole = (1 + len(others)) * level["tokens"]
  parts = [
      Part("kept, first choice", "first", level["choices_1/kept"]),
      Part(f"kept, {which}", "second", of_others("kept")),
      Part("dropped, first choice", "dropped_first",
           level["choices_1/dropped"]),
      Part(f"dropped, {which}", "dropped_second", of_others("dropped")),
      Part("refused by policy", "refused", of_others("refused")),
      Part("padding", "padding", (1 + len(others)) * level["tokens/padding"]
           + level["tokens/partial"])]
  return Whole(level.steps, whole, parts)


def arrived(level: mixtures.Level) -> Whole:
  """Level two and below: what arrives there, by whether an expert takes it.

  Those are the choices that were kept one level above: a token that reaches two
  groups arrives twice.

  Args:
    level: any level but the first.

  Returns:
    a `Whole`
  """
  if not has_choices(level):
    return Whole(level.steps, level.used, _taken_or_not(level))
  which = ("second choice" if number_of_choices(level) < 3 else
           "later choices")
  by_first = level["choices_1/kept"]
  lost = level["tokens/lost"]
  return Whole(level.steps, level.used, [
      Part("taken by the first choice", "first", by_first),
      Part(f"taken by the {which} only", "second",
           level.used - lost - by_first),
      Part("dropped: no expert had room", "dropped_first", lost)])


def has_choices(level: mixtures.Level) -> bool:
  """Whether tokens choose: else nothing tells what they would have wanted."""
  return "choices_1/dropped" in level


def number_of_choices(level: mixtures.Level) -> int:
  """How many a token has, at most."""
  number = 1
  while f"choices_{number + 1}/kept" in level:
    number += 1
  return number


def _taken_or_not(level):
  lost = level["tokens/lost"]
  return [Part("taken by an expert", "first", level.used - lost),
          Part("taken by no expert", "dropped_first", lost)]
