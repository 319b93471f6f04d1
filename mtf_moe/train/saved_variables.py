"""The variables of a checkpoint beside those of a configuration, both ways."""

import dataclasses
import re

import tensorflow.compat.v1 as tf

from mtf_moe.run import console
from mtf_moe.run.configured_model import ConfiguredModel

STEP = tf.GraphKeys.GLOBAL_STEP

_NAMED = 3  # Variables that a message names.


@dataclasses.dataclass(frozen=True)
class Variable:
  """What a checkpoint says of a variable.

  Attributes:
    shape: a list of integers.
    dtype: a tf.DType.
  """

  shape: list[int]
  dtype: tf.DType


def of_checkpoint(path: str) -> dict[str, Variable]:
  """The variables of a checkpoint, by name.

  Raises:
    ValueError: if it cannot be read.
  """
  try:
    reader = tf.train.load_checkpoint(path)
  except (ValueError, tf.errors.OpError) as error:
    raise ValueError(
        f"{path} cannot be read as a checkpoint: "
        f"{str(error).splitlines()[0]}") from error
  dtypes = reader.get_variable_to_dtype_map()
  return {name: Variable(list(shape), dtypes[name])
          for name, shape in reader.get_variable_to_shape_map().items()}


def of_graph(graph: tf.Graph) -> dict[str, Variable]:
  """The variables of a TensorFlow graph, by name."""
  with graph.as_default():
    return {v.op.name: Variable(v.shape.as_list(), v.dtype.base_dtype)
            for v in tf.global_variables()}


def of_model(configured: ConfiguredModel) -> dict[str, Variable]:
  """The variables of the configured model, without those of training."""
  dtypes = configured.dtypes
  return {name: Variable(shape, dtypes[name])
          for name, shape in configured.variables.items()}


def without_slots(names) -> set[str]:
  """The names that are not of what an optimizer keeps of other variables.

  Such a variable is named after the one that it belongs to, with something
  behind it: .../kernel_slot_v, .../kernel/adam_m.

  Args:
    names: all variables of a checkpoint.
  """
  return {name for name in names if name != STEP and not any(
      name[:end.start()] in names for end in re.finditer("[/_]", name))}


def names_of(names) -> str:
  """Some names, and how many more there are."""
  names = sorted(names)
  more = len(names) - _NAMED
  return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def check(path: str, configured: ConfiguredModel, place: str, refuse: bool):
  """Sees that a checkpoint has the model's variables, and no others.

  Args:
    path: a string, the path of the checkpoint.
    configured: a ConfiguredModel.
    place: what holds the checkpoint, as a user gave it, for the messages.
    refuse: a boolean. False warns of variables that are too many, which can be
      left aside, where True refuses.

  Raises:
    ValueError: if it does not.
  """
  saved = of_checkpoint(path)
  expected = of_model(configured)
  for name, variable in sorted(expected.items()):
    _check_variable(name, variable, saved, path, place)
  unused = {name for name in without_slots(saved) if name not in expected}
  if not unused:
    return
  message = (
      f"{place} holds a checkpoint of another model: this configuration has no "
      f"variable {names_of(unused)}, as {path} has, {len(unused)} in all. Look "
      "at the number of layers (make_layer_stack.num_layers) and their kinds "
      "(make_layer_stack.layers)")
  if refuse:
    raise ValueError(
        f"{message}, or set compare_made_with.refuse = False if these are to "
        "be left aside.")
  console.warn(f"{message}.")


def check_training(path: str, configured: ConfiguredModel, place: str,
                   optimizer_before: str | None):
  """Sees that a checkpoint has what the optimizer keeps, too.

  Args:
    path: a string, the path of the checkpoint.
    configured: a ConfiguredModel that is trained.
    place: what holds the checkpoint, as a user gave it, for the messages.
    optimizer_before: run.optimizer as it was, where that is known.

  Raises:
    ValueError: if it does not.
  """
  saved = of_checkpoint(path)
  expected = of_graph(configured.training_graph)
  model = configured.variables
  was = f" (it was made with {optimizer_before})" if optimizer_before else ""
  slots = {name for name in saved.keys() - without_slots(saved)
           if name != STEP}
  for name, variable in sorted(expected.items()):
    if name in model:
      continue
    there = saved.get(name)
    if there is None or there.shape != variable.shape:
      what = ("is not in" if there is None
              else f"has the shape {there.shape}, not {variable.shape}, in")
      found = (f" has {names_of(slots)} of another" if slots
               else " has none of an optimizer")
      raise ValueError(
          f"{place} holds a checkpoint of another optimizer than run.optimizer "
          f"= {optimizer_name(configured)}{was}: its variable {name} {what} "
          f"{path}, which{found}. Go back to that optimizer and its parameters "
          "(and run.variable_filter), or begin anew from this checkpoint with "
          "run.init_checkpoint and another --model_dir.")
    _check_type(name, variable, there, path, place)
  lost = slots - expected.keys()
  if lost:
    console.warn(
        f"run.optimizer = {optimizer_name(configured)}{was} does not use what "
        f"{path} has of another: {names_of(lost)}. It will not be saved again.")


def optimizer_name(configured: ConfiguredModel) -> str:
  """The class of the optimizer, as gin refers to it."""
  return f"@{configured.run['optimizer'].__name__}"


def _check_variable(name, variable, saved, path, place):
  there = saved.get(name)
  if there is None or there.shape != variable.shape:
    says = (f"has the shape {there.shape}" if there is not None
            else "does not exist")
    raise ValueError(
        f"{place} holds a checkpoint of another model: variable {name} has the "
        f"shape {variable.shape} in this configuration, and {says} in {path}. "
        "Choose a new --model_dir, or go back to the configuration in its "
        "operative_config.gin.")
  _check_type(name, variable, there, path, place)


def _check_type(name, variable, there, path, place):
  if there.dtype != variable.dtype:
    raise ValueError(
        f"{place} holds a checkpoint of other types: variable {name} is "
        f"{variable.dtype.name} in this configuration, and {there.dtype.name} "
        f"in {path}. Set get_variable_dtype.master_dtype = "
        f'"{there.dtype.name}", as it was.')
