"""Checks of one value that gin binds: what it may be, and what it then means.

A check returns the value to use, or raises ValueError with what is allowed, to
be read after "PARAMETER = VALUE".
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from gin import config as gin_config
import tensorflow.compat.v1 as tf

from mtf_moe.run import gin_bindings

Check = Callable[[Any], Any]


def anything(value):
  """A check for parameters whose default says too little to check by."""
  return value


def boolean(value):
  """A check for switches."""
  if not isinstance(value, bool):
    raise ValueError("is neither on nor off: set it to True or False")
  return value


def _check_that(convert: Callable[[Any], Any], allowed: str, none: bool,
                functions: bool) -> Check:
  """A check for what `convert` makes a number of, and not None.

  And for None itself and references to functions, where these are allowed too.
  """
  if none:
    allowed += ", or None"

  def check_number(value):
    if value is None and none:
      return value
    if isinstance(value, gin_config.ConfigurableReference) and functions:
      return value
    meant = convert(value)
    if meant is None:
      raise ValueError(f"must be {allowed}")
    return meant

  return check_number


def integer(lowest: int | None = 1, none=False, functions=False) -> Check:
  """A check for integers, from `lowest` on where there is one."""

  def convert(value):
    meant = as_integer(value)
    if meant is None or (lowest is not None and meant < lowest):
      return None
    return meant

  allowed = {None: "an integer", 1: "a positive integer"}.get(
      lowest, f"an integer of {lowest} or more")
  return _check_that(convert, allowed, none, functions)


def as_integer(value) -> int | None:
  """The integer that a number means, or None if it means none."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  if isinstance(value, float) and not value.is_integer():
    return None
  return int(value)


def number(lowest=0.0, below=math.inf, none=False, above=None,
           functions=False) -> Check:
  """A check for finite numbers, from `lowest` or above `above`, to `below`."""

  def convert(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
        math.isfinite(value) and value < below
        and (lowest is None or value >= lowest)
        and (above is None or value > above)):
      return None
    return value

  allowed = "a number"
  if above is not None:
    allowed += f" above {above:g}"
  elif lowest is not None:
    allowed += f" of {lowest:g} or more"
  if below < math.inf:
    allowed += f" and below {below:g}"
  return _check_that(convert, allowed, none, functions)


def choice(*allowed) -> Check:
  """A check for one of a few values."""

  def check_choice(value):
    if value not in allowed:
      raise ValueError(
          f"is not known. Choose one of: {', '.join(map(repr, allowed))}")
    return value

  return check_choice


def factors(value):
  """A check for a learning rate: a number, a function, or a list of both."""
  if value is None:
    return value
  one = number(functions=True)
  try:
    if isinstance(value, (list, tuple)):
      return type(value)(one(item) for item in value)
    return one(value)
  except ValueError:
    raise ValueError(
        "must be a number of 0 or more, a function such as "
        "@learning_rate_schedules.linear_decay, or a list of them, whose "
        "product is taken") from None


_METHODS = ("sequences_per_batch", "tokens_per_batch", "sequences_per_replica",
            "tokens_per_replica")


def _positive(value):
  """The positive integer that a value means, or None.

  Or a call, for what that returns, as the lengths in gin files of T5 are.
  """
  if gin_bindings.is_call(value):
    return value
  meant = as_integer(value)
  return meant if meant is not None and meant > 0 else None


def batch_size(value):
  """A check for a number of sequences, or a method with its number."""
  is_pair = (isinstance(value, (list, tuple)) and len(value) == 2
             and value[0] in _METHODS)
  size = _positive(value[1] if is_pair else value)
  if size is None:
    raise ValueError(
        "must be a positive integer, or a pair such as "
        f'("tokens_per_batch", 2048), with one of {", ".join(_METHODS)}')
  return (value[0], size) if is_pair else size


def lengths(value):
  """A check for lengths of sequences.

  None are given where the data of an evaluation decides.
  """
  if value is None:
    return value
  if isinstance(value, dict):
    return _lengths_by_feature(value)
  length = _positive(value)
  if length is None:
    raise ValueError(
        "must be a positive integer, or a dict of them, such as "
        '{"inputs": 128, "targets": 128}')
  return length


def _lengths_by_feature(value):
  wrong = {key: length for key, length in value.items()
           if not isinstance(key, str) or _positive(length) is None}
  if wrong:
    raise ValueError(
        f"has {wrong!r}: write positive integers by the name of the feature, "
        'such as {"inputs": 128, "targets": 128}')
  run = functools.partial(gin_bindings.bound, "utils.run")
  # Which else has no inputs.
  continues = run("mode") in ("infer", "export_infer", "export")
  only_targets = run("model_type") in ("lm", "delimited_lm") and not continues
  for feature in ("targets",) if only_targets else ("inputs", "targets"):
    if feature not in value:
      known = filter(None, map(as_integer, value.values()))
      raise ValueError(
          f"has no {feature!r}: add its length, such as {feature!r}: "
          f"{max(known, default=128)}, or write one integer for all")
  return {key: _positive(length) for key, length in value.items()}


def devices(value):
  """A check for the names of devices.

  That there is one for each slice of the mesh is seen to later.
  """
  if value is None:
    return value
  named = isinstance(value, (list, tuple)) and all(
      isinstance(one, str) for one in value)
  try:
    for one in value if named else ():
      tf.DeviceSpec.from_string(one)
  except ValueError:
    named = False
  if not named:
    raise ValueError(
        "must be a list with the name of a device for each slice of the mesh, "
        'such as ["gpu:0", "gpu:1"], or None')
  return value


def paths(value):
  """A check for a list of checkpoints."""
  if value is not None and not (
      isinstance(value, (list, tuple)) and value
      and all(isinstance(one, str) and one for one in value)):
    raise ValueError(
        "must be a list of checkpoints, such as "
        '["my_model/model.ckpt-1000"], or None')
  return value


def steps(value):
  """A check for the steps of checkpoints."""
  if value is None or value == "all":
    return value
  one = integer(-1)
  if isinstance(value, (list, tuple)) and value:
    return type(value)(one(item) for item in value)
  try:
    return one(value)
  except ValueError:
    raise ValueError(
        'must be a step, a list of them, "all", -1 for the newest, or None'
        ) from None


def dtype(value):
  """A check for a type of numbers."""
  try:
    known = tf.as_dtype(value) in (tf.float32, tf.bfloat16)
  except TypeError:
    known = False
  if not known:
    raise ValueError(
        'is no type of numbers that models have: "float32" and "bfloat16" are')
  return value
