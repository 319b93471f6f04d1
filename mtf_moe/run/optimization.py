"""The optimizer and the learning rate, as mesh_tensorflow's `run` uses them.

What users and their parameters do wrong in there is told with the parameter of
`run` that names them.
"""

from collections.abc import Callable, Iterable, Mapping
import functools
import inspect
import math
import re
from typing import Any

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import learning_rate_schedules
import tensorflow.compat.v1 as tf

from mtf_moe.run import mistakes
from mtf_moe.run import sessions

_SCHEDULE = "learning_rate_schedule"


def learning_rate(given: Any, total_steps: int, step: tf.Tensor) -> Any:
  """The learning rate of a step.

  Args:
    given: the value of run.learning_rate_schedule.
    total_steps: an integer, for how many steps a schedule is made.
    step: the global step.

  Returns:
    a number, a scalar tensor, or None, the optimizer's own

  Raises:
    ValueError: if the schedule cannot be evaluated.
  """
  shown = f"run.{_SCHEDULE} = {_shown(_SCHEDULE)}"
  if isinstance(given, list):
    if not given:
      raise ValueError(
          f"{shown} has no factor: give the numbers and schedules whose "
          "product is the learning rate, or one number.")
    given = functools.partial(
        learning_rate_schedules.product_learning_rate, factors=given)
  if not callable(given):
    return given
  try:
    rate = given(step=step, total_train_steps=total_steps)
    tf.cast(rate, tf.float32).shape.assert_is_compatible_with([])
  except Exception as error:  # It may be anybody's.
    raise ValueError(
        f"{shown} gives no learning rate ({_said(error)}): set it to a number, "
        "to a schedule such as @learning_rate_schedules.truncated_rsqrt, or to "
        "a list of both, and the parameters of the schedules to numbers."
    ) from error
  return rate


def rates(given: Any, total_steps: int, steps: Iterable[int]) -> list[float]:
  """The learning rates of some steps.

  Args:
    given: the value of run.learning_rate_schedule, not None.
    total_steps: an integer, for how many steps a schedule is made.
    steps: numbers of steps, 0 for the first.

  Raises:
    ValueError: if the schedule cannot be evaluated.
  """
  with tf.Graph().as_default():
    step = tf.train.get_or_create_global_step()
    rate = tf.cast(learning_rate(given, total_steps, step), tf.float32)
    number_fed = tf.placeholder(step.dtype.base_dtype, [])
    assign = step.assign(number_fed)
    found = []
    with sessions.on_cpu() as session:
      for number in steps:
        session.run(assign, {number_fed: number})
        found.append(float(session.run(rate)))
  return found


def check_rates(
    given: Any, total_steps: int, first_step: int, last_step: int):
  """Sees that the learning rate is a number to train with.

  Args:
    given: the value of run.learning_rate_schedule.
    total_steps: an integer, for how many steps a schedule is made.
    first_step: an integer, where training begins.
    last_step: an integer, where it ends.

  Raises:
    ValueError: if it is infinite, negative or not a number in the first two
      steps or the last.
  """
  if given is None:
    return
  steps = sorted({first_step, first_step + 1, last_step})
  for number, value in zip(steps, rates(given, total_steps, steps)):
    if not math.isfinite(value) or value < 0:
      raise ValueError(
          f"run.{_SCHEDULE} = {_shown(_SCHEDULE)} is {value} at step "
          f"{number:,} of {total_steps:,}, and a learning rate is a number "
          "that is not negative: look at the parameters of the schedule, "
          "such as warmup_steps and steps_or_fraction, which are above 0.")


def apply(optimizer: Callable[..., Any], rate: Any,
          gradients: list[mtf.Tensor], variables: list[mtf.Variable]
          ) -> list[mtf.Operation]:
  """Builds the update of the variables.

  Args:
    optimizer: the value of run.optimizer.
    rate: what `learning_rate` returned.
    gradients: those of the variables.
    variables: which are trained.

  Returns:
    the assignments

  Raises:
    ValueError: if the optimizer cannot do it.
  """
  if rate is None and not _has_own_rate(optimizer):
    raise ValueError(
        f"run.{_SCHEDULE} = None, and run.optimizer = {_shown('optimizer')} "
        "has no learning rate of its own: set one, such as 0.01.")
  try:
    return optimizer(learning_rate=rate).apply_grads(gradients, variables)
  except Exception as error:  # It may be anybody's.
    raise ValueError(
        f"run.optimizer = {_shown('optimizer')} cannot train this model with "
        f"run.{_SCHEDULE} = {_shown(_SCHEDULE)} ({_said(error)}): correct the "
        "parameters of the optimizer, or use another, such as "
        "@optimize.AdafactorOptimizer.") from error


def update(run: Mapping[str, Any], rate: Any, gradients: list[mtf.Tensor],
           variables: list[mtf.Variable]) -> list[mtf.Operation]:
  """Builds the update of the variables that a run trains.

  Args:
    run: the parameters of `run`; its optimizer and variable_filter are used.
    rate: what `learning_rate` returned.
    gradients: those of all trainable variables.
    variables: these.

  Returns:
    the assignments

  Raises:
    ValueError: if no optimizer is configured, it cannot train the model, or
      nothing is trained.
  """
  optimizer = run.get("optimizer")
  if not callable(optimizer):
    raise ValueError(
        f"run.optimizer = {optimizer!r} cannot train: set it to a class, "
        "such as @optimize.AdafactorOptimizer.")
  is_trained = _variable_filter(run.get("variable_filter"))
  pairs = [(gradient, variable)
           for gradient, variable in zip(gradients, variables)
           if is_trained(variable)]
  if not pairs:
    raise ValueError(
        f"run.variable_filter = {run.get('variable_filter')!r} finds no "
        "variable to train: give a part of the names of some, such as "
        f"{variables[0].name!r}, or None for all of them.")
  return apply(optimizer, rate, *map(list, zip(*pairs)))


def _variable_filter(given):
  """Which variables are trained, from the value of run.variable_filter."""
  if given is None:
    return lambda variable: True
  if callable(given):
    return functools.partial(_asked, given)
  try:
    pattern = re.compile(given)
  except (re.error, TypeError) as error:
    raise ValueError(
        f"run.variable_filter = {given!r} is no regular expression ({error}): "
        "give one that finds the names of the variables to train, or None for "
        "all of them.") from error
  return lambda variable: pattern.search(variable.name)


def _asked(variable_filter, variable):
  """What a function of the user says of a variable."""
  try:
    return variable_filter(variable)
  except Exception as error:  # It may be anybody's.
    raise ValueError(
        f"run.variable_filter = {variable_filter!r} fails for {variable.name} "
        f"({type(error).__name__}: {error}): give a function of a variable of "
        "mesh_tensorflow, or a regular expression.") from error


def _has_own_rate(optimizer):
  """Whether an optimizer may be made without a learning rate."""
  rate = inspect.signature(optimizer).parameters.get("learning_rate")
  return rate is None or rate.default is None


def _shown(name):
  """The value of a parameter of `run`, as gin writes it."""
  return repr(gin.get_bindings("utils.run", resolve_references=False).get(name))


def _said(error):
  said = mistakes.in_one_line(error)
  return said if isinstance(error, ValueError | RuntimeError) else (
      f"{type(error).__name__}: {said}")
