"""What kinds of values gin may bind to parameters, checked before a run.

Gin takes any value for any parameter, and mesh_tensorflow uses what it gets: a
string such as "no" turns a switch on, 2.0 layers end in the middle of a graph.
Here a parameter of this package or of mesh_tensorflow that is True or False by
default must be True or False, one that is an integer an integer, one that is a
float a number. Tables have what no default tells.

A float that means an integer (1e3) becomes one. Nothing else is converted: no
strings, and no numbers to switches.
"""

import inspect
import math

import gin
from gin import config as gin_config

from mtf_moe.run import checks
from mtf_moe.run import gin_bindings
from mtf_moe.run import references


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
    if check_one is None or gin_bindings.is_call(value):
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


def _check_of(configurable, parameter) -> checks.Check | None:
  """The check of a parameter, or None where any value may be right."""
  found = (_TABLE.get(f"{configurable.name}.{parameter}")
           or _TABLE.get(parameter))
  if found is not None:
    return None if found is checks.anything else found
  default = _default(configurable.wrapped, parameter)
  if default is inspect.Parameter.empty:
    return None
  if inspect.isroutine(default) or inspect.isclass(default):
    return references.function(
        "@" + default.__name__, classes=inspect.isclass(default))
  if isinstance(default, bool):
    return checks.boolean
  if isinstance(default, int):
    return checks.integer(min(default, 1))
  if isinstance(default, float):
    return checks.number(below=1.0 if "dropout_rate" in parameter else math.inf)
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


# By the parameter, or by configurable and parameter, where the default does not
# tell enough.
_TABLE: dict[str, checks.Check] = {
    "run.batch_size": checks.batch_size,
    "held_out_steps.batch_size": checks.integer(none=True),
    "run.ensemble_inputs": checks.integer(none=True),
    "run.eval_checkpoint_step": checks.steps,
    "run.export_checkpoint_step": checks.steps,
    "run.keep_checkpoint_max": checks.integer(0, none=True),
    "run.learning_rate_schedule": checks.factors,
    "run.model_type": checks.choice(
        "bitransformer", "lm", "delimited_lm", "aligned", "bi_student_teacher"),
    "run.optimizer": references.function("@optimize.AdafactorOptimizer"),
    "run.train_dataset_fn": references.dataset_function,
    "run.eval_dataset_fn": references.dataset_function,
    "run.predict_fn": references.function("@mtf_moe.BeamSearch()", none=True),
    "run.mesh_devices": checks.devices,
    "infer_model.checkpoint_paths": checks.paths,
    "files": references.function("@mtf_moe.TextFiles()", none=True),
    "Unitransformer.loss_fn": references.loss_function,
    "run.perplexity_eval_steps": checks.integer(none=True),
    "run.sequence_length": checks.lengths,
    "run.total_run_steps": checks.integer(none=True),
    "run.train_steps": checks.integer(functions=True),
    "vocabulary": references.vocabulary,
    "get_variable_dtype.activation_dtype": checks.dtype,
    "get_variable_dtype.master_dtype": checks.dtype,
    "get_variable_dtype.slice_dtype": checks.dtype,
    "make_layer_stack.layers": references.layers,
    "relative_attention_type": checks.choice(
        None, "bias", "bias_shared", "contextual"),
    # None and 0 make no such dimension.
    "tpu_estimator_model_fn.outer_batch_size": checks.integer(0, none=True),
    "serialize_num_microbatches.tokens_per_microbatch_per_replica":
        checks.integer(0, none=True),
    "Unitransformer.max_length": checks.integer(),
    "BeamSearch.max_length": checks.integer(none=True),
    "Unitransformer.ensemble": checks.integer(none=True),
    "Unitransformer.loss_denominator": checks.number(above=0, none=True),
    "Unitransformer.label_smoothing": checks.number(below=1.0),
    "decode.max_decode_length": checks.integer(none=True),
    "decode.decode_length_constant": checks.integer(0),
    "sample_autoregressive.max_steps": checks.integer(none=True),
    "sampling_keep_top_k": checks.integer(-1),
    "score_with_estimator.num_examples": checks.integer(none=True),
    "LayerStack.dropout_rate": checks.number(below=1.0, none=True),
    "LayerStack.norm_epsilon": checks.number(none=True),
    "clipping_threshold": checks.number(none=True),
    "min_dim_size_to_factor": checks.integer(0),
    "z_loss": checks.number(none=True),
    "z_loss_coeff": checks.number(none=True),
    "sublayer_rezero.initial_value": checks.number(lowest=None),
    "constant_learning_rate.learning_rate": checks.number(),
    "linear_warmup.steps_or_fraction": checks.number(),
    # Of 0, none decays.
    "linear_decay.steps_or_fraction": checks.number(above=0),
    "offset": checks.number(lowest=None),
    "factors": checks.factors,
    "warmup_steps": checks.number(),
    "ratio": checks.number(),
    "eos_id": checks.integer(0),
    "stop_at_token": checks.integer(0),
    "seed": checks.integer(None),
    "shuffle_seed": checks.integer(None, none=True),
    "train_model.max_minutes": checks.number(above=0, none=True),
    "train_model.seconds_per_line": checks.number(),
    "TextFiles.held_out": checks.anything,  # A pattern, or a fraction.
}
