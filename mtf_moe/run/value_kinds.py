"""What kinds of values gin may bind to parameters, checked before a run.

Gin takes any value for any parameter, and mesh_tensorflow uses what it gets: a
string such as "no" turns a switch on, 2.0 layers end in the middle of a graph.
Here a parameter of this package or of mesh_tensorflow that is True or False by
default must be True or False, one that is an integer an integer, one that is a
float a number. Tables have what no default tells.

A float that means an integer (1e3) becomes one. Nothing else is converted: no
strings, and no numbers to switches.
"""

from collections.abc import Callable
import functools
import inspect
import math
from typing import Any

import gin
from gin import config as gin_config
import tensorflow.compat.v1 as tf

from mtf_moe.run import gin_bindings
from mtf_moe.run import references

# A check returns the value to use, or raises ValueError with what is allowed.
_Check = Callable[[Any], Any]


def check():
  """Checks all values that are bound, and binds integers in place of floats.

  What a function returns is not known yet, and not looked at.

  Raises:
    ValueError: with the parameter, its value, and what is allowed.
  """
  for (scope, selector), parameters in list(gin_config._CONFIG.items()):
    configurable = gin_config._REGISTRY[selector]
    if not gin_bindings.is_of_packages(configurable):
      continue
    for parameter, bound in list(parameters.items()):
      value, macro = gin_bindings.resolved(bound)
      name = gin_config._format_binding_key(scope, selector, parameter)
      references.check(f"{configurable.name}.{parameter}", name, value)
      accepted = _accepted(configurable, parameter, value, name, macro)
      if accepted is not value:
        gin.bind_parameter(
            (scope, selector, parameter) if macro is None
            else (macro, "gin.macro", "value"), accepted)


def _accepted(configurable, parameter, value, name, macro):
  """The value to use; itself where it may stay."""
  check_one = _check_of(configurable, parameter)
  try:
    if check_one is None or _comes_from_a_function(value):
      return value
    accepted = check_one(value)
  except ValueError as error:
    where = f", the macro {macro}," if macro else ""
    raise ValueError(f"{name} = {_shown(value)}{where} {error}.") from None
  same = accepted == value and type(accepted) is type(value) and (
      repr(accepted) == repr(value))
  return value if same else accepted


def _shown(value):
  if isinstance(value, gin_config.ConfigurableReference):
    return str(value)
  return repr(value)


def _comes_from_a_function(value):
  return (isinstance(value, gin_config.ConfigurableReference)
          and value.evaluate)


def _check_of(configurable, parameter) -> _Check | None:
  """The check of a parameter, or None where any value may be right."""
  found = (_TABLE.get(f"{configurable.name}.{parameter}")
           or _TABLE.get(parameter))
  if found is not None:
    return None if found is _anything else found
  default = _default(configurable.wrapped, parameter)
  if default is inspect.Parameter.empty:
    return None
  if inspect.isroutine(default) or inspect.isclass(default):
    return references.function(
        "@" + default.__name__, classes=inspect.isclass(default))
  if isinstance(default, bool):
    return _boolean
  if isinstance(default, int):
    return _integer(min(default, 1))
  if isinstance(default, float):
    return _number(below=1.0 if "dropout_rate" in parameter else math.inf)
  return None


def _default(function, parameter):
  """The default of a parameter, in a class also of those that it extends."""
  if not inspect.isclass(function):
    functions = [function]
  else:  # Gin's own wrapper of a class would hide the parameters.
    functions = [vars(cls)["__init__"] for cls in function.__mro__
                 if "__init__" in vars(cls)]
  for one in functions:
    try:
      found = inspect.signature(one).parameters.get(parameter)
    except (TypeError, ValueError):  # Of object.
      continue
    if found is not None:
      return found.default
  return None


def _boolean(value):
  if not isinstance(value, bool):
    raise ValueError("is neither on nor off: set it to True or False")
  return value


def _anything(value):
  return value


def _check_that(convert: Callable[[Any], Any], allowed: str, none: bool,
                functions: bool) -> _Check:
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
    number = convert(value)
    if number is None:
      raise ValueError(f"must be {allowed}")
    return number

  return check_number


def _integer(lowest: int | None = 1, none=False, functions=False) -> _Check:
  """A check for integers, from `lowest` on where there is one."""

  def convert(value):
    number = as_integer(value)
    if number is None or (lowest is not None and number < lowest):
      return None
    return number

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


def _positive(value):
  """The positive integer that a value means, or None.

  Or a call, for what that returns, as the lengths in gin files of T5 are.
  """
  if _comes_from_a_function(value):
    return value
  number = as_integer(value)
  return number if number is not None and number > 0 else None


def _number(lowest=0.0, below=math.inf, none=False, above=None,
            functions=False) -> _Check:
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


def _factors(value):
  """A learning rate: a number, a function, or a list of both."""
  if value is None:
    return value
  one = _number(functions=True)
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


def _batch_size(value):
  is_pair = (isinstance(value, (list, tuple)) and len(value) == 2
             and value[0] in _METHODS)
  number = _positive(value[1] if is_pair else value)
  if number is None:
    raise ValueError(
        "must be a positive integer, or a pair such as "
        f'("tokens_per_batch", 2048), with one of {", ".join(_METHODS)}')
  return (value[0], number) if is_pair else number


def _lengths(value):
  """None where the data of an evaluation decides."""
  if value is None:
    return value
  if isinstance(value, dict):
    return _lengths_by_feature(value)
  number = _positive(value)
  if number is None:
    raise ValueError(
        "must be a positive integer, or a dict of them, such as "
        '{"inputs": 128, "targets": 128}')
  return number


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


def _devices(value):
  """One for each slice of the mesh, which is seen to later."""
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


def _paths(value):
  if value is not None and not (
      isinstance(value, (list, tuple)) and value
      and all(isinstance(one, str) and one for one in value)):
    raise ValueError(
        "must be a list of checkpoints, such as "
        '["my_model/model.ckpt-1000"], or None')
  return value


def _steps(value):
  """Those of checkpoints."""
  if value is None or value == "all":
    return value
  one = _integer(-1)
  if isinstance(value, (list, tuple)) and value:
    return type(value)(one(item) for item in value)
  try:
    return one(value)
  except ValueError:
    raise ValueError(
        'must be a step, a list of them, "all", -1 for the newest, or None'
        ) from None


def _dtype(value):
  try:
    known = tf.as_dtype(value) in (tf.float32, tf.bfloat16)
  except TypeError:
    known = False
  if not known:
    raise ValueError(
        'is no type of numbers that models have: "float32" and "bfloat16" are')
  return value


def _choice(*allowed) -> _Check:
  """A check for one of a few values."""

  def check_choice(value):
    if value not in allowed:
      raise ValueError(
          f"is not known. Choose one of: {', '.join(map(repr, allowed))}")
    return value

  return check_choice


# By the parameter, or by configurable and parameter, where the default does not
# tell enough.
_TABLE: dict[str, _Check] = {
    "run.batch_size": _batch_size,
    "held_out_steps.batch_size": _integer(none=True),
    "run.ensemble_inputs": _integer(none=True),
    "run.eval_checkpoint_step": _steps,
    "run.export_checkpoint_step": _steps,
    "run.keep_checkpoint_max": _integer(0, none=True),
    "run.learning_rate_schedule": _factors,
    "run.model_type": _choice("bitransformer", "lm", "delimited_lm", "aligned",
                              "bi_student_teacher"),
    "run.optimizer": references.function("@optimize.AdafactorOptimizer"),
    "run.train_dataset_fn": references.dataset_function,
    "run.eval_dataset_fn": references.dataset_function,
    "run.predict_fn": references.function("@mtf_moe.BeamSearch()", none=True),
    "run.mesh_devices": _devices,
    "infer_model.checkpoint_paths": _paths,
    "files": references.function("@mtf_moe.TextFiles()", none=True),
    "Unitransformer.loss_fn": references.loss_function,
    "run.perplexity_eval_steps": _integer(none=True),
    "run.sequence_length": _lengths,
    "run.total_run_steps": _integer(none=True),
    "run.train_steps": _integer(functions=True),
    "vocabulary": references.vocabulary,
    "get_variable_dtype.activation_dtype": _dtype,
    "get_variable_dtype.master_dtype": _dtype,
    "get_variable_dtype.slice_dtype": _dtype,
    "make_layer_stack.layers": references.layers,
    "relative_attention_type": _choice(
        None, "bias", "bias_shared", "contextual"),
    # None and 0 make no such dimension.
    "tpu_estimator_model_fn.outer_batch_size": _integer(0, none=True),
    "serialize_num_microbatches.tokens_per_microbatch_per_replica":
        _integer(0, none=True),
    "Unitransformer.max_length": _integer(),
    "BeamSearch.max_length": _integer(none=True),
    "Unitransformer.ensemble": _integer(none=True),
    "Unitransformer.loss_denominator": _number(above=0, none=True),
    "Unitransformer.label_smoothing": _number(below=1.0),
    "decode.max_decode_length": _integer(none=True),
    "decode.decode_length_constant": _integer(0),
    "sample_autoregressive.max_steps": _integer(none=True),
    "sampling_keep_top_k": _integer(-1),
    "score_with_estimator.num_examples": _integer(none=True),
    "LayerStack.dropout_rate": _number(below=1.0, none=True),
    "LayerStack.norm_epsilon": _number(none=True),
    "clipping_threshold": _number(none=True),
    "min_dim_size_to_factor": _integer(0),
    "z_loss": _number(none=True),
    "z_loss_coeff": _number(none=True),
    "sublayer_rezero.initial_value": _number(lowest=None),
    "constant_learning_rate.learning_rate": _number(),
    "linear_warmup.steps_or_fraction": _number(),
    "linear_decay.steps_or_fraction": _number(above=0),  # Of 0, none decays.
    "offset": _number(lowest=None),
    "factors": _factors,
    "warmup_steps": _number(),
    "ratio": _number(),
    "eos_id": _integer(0),
    "stop_at_token": _integer(0),
    "seed": _integer(None),
    "shuffle_seed": _integer(None, none=True),
    "train_model.max_minutes": _number(above=0, none=True),
    "train_model.seconds_per_line": _number(),
    "TextFiles.held_out": _anything,  # A pattern, or a fraction.
}
