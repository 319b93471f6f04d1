"""Arguments of the layer, in the ways in which programs pass them."""

from collections.abc import Mapping
import numbers

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf


def variable_dtype(given, master_dtype, slice_dtype, activation_dtype,
                   inputs_dtype: tf.DType) -> mtf.VariableDType:
  """The types of a variable.

  Args:
    given: a mtf.VariableDType, or one type for all three, or None.
    master_dtype: that of checkpoints, or None for float32.
    slice_dtype: that of training, or None for the first.
    activation_dtype: that of computation, or None for that of the inputs.
    inputs_dtype: that of what the variable is multiplied by.

  Returns:
    a mtf.VariableDType

  Raises:
    ValueError: if a type is none of floating-point numbers, or there is `given`
      beside others.
  """
  parts = {"master_dtype": master_dtype, "slice_dtype": slice_dtype,
           "activation_dtype": activation_dtype}
  if given is None:
    master, slices, activations = (
        None if part is None else _floating(name, part)
        for name, part in parts.items())
    return mtf.VariableDType(
        master or tf.float32, slices or master or tf.float32,
        activations or inputs_dtype)
  doubled = [name for name, part in parts.items() if part is not None]
  if doubled:
    raise ValueError(
        f"variable_dtype = {given!r} already says what {', '.join(doubled)} "
        "says: pass one or the other.")
  if isinstance(given, mtf.VariableDType):
    return given
  dtype = _floating("variable_dtype", given)
  return mtf.VariableDType(dtype, dtype, dtype)


def _floating(name, value):
  try:
    dtype = tf.as_dtype(value)
  except TypeError:
    dtype = None
  if dtype is None or not dtype.is_floating:
    raise ValueError(
        f"{name} = {value!r} is no type of floating-point numbers: pass one "
        "such as tf.float32 or tf.bfloat16"
        + (", or a mtf.VariableDType." if name == "variable_dtype" else "."))
  return dtype


def nonpadding(given, inputs: mtf.Tensor) -> mtf.Tensor:
  """What is no padding, one number for every token.

  Args:
    given: a Tensor whose dimensions are among those of the tokens, of any type,
      or a number for all of them.
    inputs: a Tensor [<token dims>, m].

  Returns:
    a Tensor [<token dims>] with the type of `inputs`

  Raises:
    ValueError: if it is neither.
  """
  token_dims = mtf.Shape(inputs.shape.dims[:-1])
  if isinstance(given, mtf.Tensor) and (
      set(given.shape.dims) <= set(token_dims.dims)):
    given = mtf.cast(given, inputs.dtype)
  elif isinstance(given, numbers.Real):
    given = float(given)
  else:
    raise ValueError(
        f"nonpadding = {given!r} is neither a number nor a mtf.Tensor whose "
        f"dimensions are among the tokens' {token_dims}: pass ones at tokens "
        "and zeros at padding, or None where there is no padding.")
  return mtf.zeros(inputs.mesh, token_dims, inputs.dtype) + given


def token_ids(given, inputs: mtf.Tensor) -> mtf.Tensor:
  """Which token is where.

  Args:
    given: an integer Tensor whose dimensions are among those of the tokens.
    inputs: a Tensor [<token dims>, m].

  Returns:
    int32 [<token dims>]

  Raises:
    ValueError: if it is something else.
  """
  token_dims = mtf.Shape(inputs.shape.dims[:-1])
  if not (isinstance(given, mtf.Tensor) and given.dtype.is_integer
          and set(given.shape.dims) <= set(token_dims.dims)):
    raise ValueError(
        f"token_ids = {given!r} is no integer mtf.Tensor whose dimensions are "
        f"among the tokens' {token_dims}: pass the ids that were embedded, or "
        "None where no router needs them.")
  return mtf.broadcast(mtf.cast(given, tf.int32), token_dims)


def layout_rules(given) -> mtf.LayoutRules:
  """Layout rules from all that is usual.

  Args:
    given: what mtf.convert_to_layout_rules takes, pairs as lists, a mapping, or
      None for no rules.

  Raises:
    ValueError: if it is none of them.
  """
  return _converted(
      mtf.convert_to_layout_rules, "layout", given,
      '"batch:outer,expert_x:inner", or pairs of such names')


def mesh_shape(given) -> mtf.Shape:
  """The shape of a mesh from all that is usual.

  Args:
    given: what mtf.convert_to_shape takes, pairs as lists, a mapping, or None
      for a mesh of one slice.

  Raises:
    ValueError: if it is none of them.
  """
  return _converted(
      mtf.convert_to_shape, "mesh_shape", given,
      '"outer:2,inner:4", or pairs of a name and an integer')


def _converted(convert, name, given, usual):
  """Converts what may be a string, an mtf object, pairs, a mapping or None."""
  value = given
  try:
    if value is None:
      value = []
    elif isinstance(value, Mapping):
      value = list(value.items())
    if not isinstance(value, (str, mtf.LayoutRules, mtf.Shape)):
      value = [_pair(pair) for pair in value]
    return convert(value)
  except (TypeError, ValueError, AttributeError):
    raise ValueError(
        f"{name} = {given!r} is not understood: pass {usual}.") from None


def _pair(pair):
  """A Dimension as it is; a name and a name or an integer as a tuple."""
  if isinstance(pair, mtf.Dimension):
    return pair
  name, value = pair
  if not isinstance(name, str):
    raise ValueError("not a name")
  if isinstance(value, numbers.Integral) and not isinstance(value, bool):
    return name, int(value)
  if not isinstance(value, str):
    raise ValueError("neither a name nor an integer")
  return name, value
