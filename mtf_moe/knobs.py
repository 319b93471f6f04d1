"""Knobs: fields of a dataclass that say what they may be.

A check is a function of a field's name and its value. It returns the value, as
it is kept, or raises a `Mistake`.
"""

from collections.abc import Callable
import dataclasses
import math
import numbers
import operator
from typing import Any

PREFIX = "moe_"


class Mistake(ValueError):
  """A knob has a value that is not allowed.

  Who knows how the user calls it says so: `except Mistake as mistake: raise
  mistake.of("MoE2D")`.

  Attributes:
    name: of the knob, without prefix.
    value: what it was set to.
    explanation: the rest of a sentence.
  """

  def __init__(self, name: str, value, explanation: str, owner: str = ""):
    self.name, self.value, self.explanation = name, value, explanation
    self.owner = owner
    super().__init__(f"{owner or PREFIX}{name} = {value!r} {explanation}")

  def of(self, layer: str,
         called: Callable[[str], str] = lambda name: name) -> "Mistake":
    """The same, of a layer that has the knob as a parameter.

    Args:
      layer: such as "MoE2D", or "wide/MoE2D" in a gin scope.
      called: what a knob is called there.
    """
    if self.owner:
      return self
    return Mistake(
        called(self.name), self.value, self.explanation, f"{layer}.")

  def of_level(self, number: int) -> "Mistake":
    """The same, of a level that has settings of its own; 0 is the first."""
    name = "router" if self.name == "gating" else self.name
    return Mistake(f"levels[{number}].{name}", self.value, self.explanation)


def knob(default, check: Callable[[str, Any], Any], by_level=False):
  """A field of a dataclass.

  Args:
    default: its default.
    check: see above.
    by_level: a boolean, whether levels can have it for themselves.
  """
  return dataclasses.field(
      default=default, metadata={"check": check, "by_level": by_level})


def check(values, owner: str = ""):
  """Checks all knobs of a dataclass, and sets them to what is kept.

  Args:
    values: the object.
    owner: how it is called in messages, where names have no prefix.
  """
  for field in dataclasses.fields(values):
    if "check" not in field.metadata:
      continue
    name = field.name.removeprefix(PREFIX)
    try:
      kept = field.metadata["check"](name, getattr(values, field.name))
    except Mistake as mistake:
      raise (mistake.of(owner) if owner else mistake) from None
    object.__setattr__(values, field.name, kept)


def one_of(*allowed: str):
  def check_choice(name, value):
    if value not in allowed:
      raise Mistake(name, value, (
          f"is not known. Choose one of: {', '.join(map(repr, allowed))}."))
    return value

  return check_choice


def boolean(name, value):
  if not isinstance(value, bool):
    # mesh_tensorflow has 0 for one of its own.
    if name == "use_second_place_loss" and value in (0, 1):
      return bool(value)
    raise Mistake(
        name, value, "is neither on nor off: set it to True or False.")
  return value


def is_positive_integer(value) -> bool:
  """Whether a value is an integer of any kind, and above 0."""
  try:
    return not isinstance(value, bool) and operator.index(value) > 0
  except TypeError:
    return False


def positive_integer(name, value):
  if not is_positive_integer(value):
    raise Mistake(
        name, value, "must be a positive integer: set it to 1 or more.")
  return operator.index(value)


def positive_integers(name, value):
  """Accepts a positive integer, or several, which are kept as a tuple."""
  if isinstance(value, (list, tuple)) and value:
    return tuple(positive_integer(f"{name}[{number}]", one)
                 for number, one in enumerate(value))
  return positive_integer(name, value)


def number(remedy: str, positive=False, below=math.inf):
  """Accepts 0 <= value < below (0 < value where `positive`)."""
  lowest = "above 0" if positive else "0 or more"
  highest = "finite" if below == math.inf else f"below {below:g}"

  def check_number(name, value):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    fits = is_number and 0 <= float(value) < below and not (
        positive and value == 0)
    if not fits:
      raise Mistake(name, value, (
          f"must be a number, {lowest} and {highest}; {remedy}."))
    return value

  return check_number


def dimension(name, value):
  if not (hasattr(value, "name") and hasattr(value, "size")):
    raise Mistake(
        name, value, "is no mtf.Dimension: give one, or None for the model's.")
  return value


def optional(check_value):
  return lambda name, value: None if value is None else check_value(name, value)
