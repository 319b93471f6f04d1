"""Rows that move by index, between tokens and the slots of experts' buffers.

The operations under the index dispatcher, with their gradients, which move rows
by index too. Where tokens choose, all of them look rows up: slots their token,
tokens the slots of their choices. That is what a device does best; rows that
are added to others would have to wait for each other. Only where experts
choose, any number of slots may have the same token, and rows are added.

Each works on the whole groups that a slice of the mesh holds: all batch
dimensions may be split over the mesh, and the depth of a row. The group, the
experts and the capacity may not.

Shapes: `s` is the group size, `x` the experts, `c` the capacity, `k` the
choices of a token, `m` the depth of a row.
"""

from collections.abc import Sequence
import dataclasses
import math

import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import operations


@dataclasses.dataclass(frozen=True)
class SlotTable:
  """Which token is in which slot.

  Numbers count within a slice of the mesh; -1 stands for none. No gradient
  flows through.

  Attributes:
    tokens: int32 [x, <batch dims>, c], the token in each slot, as a number in
      the flattened [<batch dims>, s].
    group_dim: the Dimension s.
    choices: int32 [x, <batch dims>, c], the choice of that token, as a number
      in the flattened [k, <batch dims>, s]; None where tokens do not choose.
    slots: int32 [k, <batch dims>, s], the slot of each choice, as a number in
      the flattened [x, <batch dims>, c]; None where tokens do not choose.
  """

  tokens: mtf.Tensor
  group_dim: mtf.Dimension
  choices: mtf.Tensor | None = None
  slots: mtf.Tensor | None = None

  @classmethod
  def of(cls, experts: Sequence[mtf.Tensor], positions: Sequence[mtf.Tensor],
         weights: mtf.Tensor, experts_dim, capacity_dim) -> "SlotTable":
    """Finds the choice in each slot.

    Args:
      experts: k times int32 [<batch dims>, s], the chosen experts.
      positions: k times int32 [<batch dims>, s], the slots in their buffers.
      weights: a Tensor [k, <batch dims>, s], 0 where a choice is not used. No
        two choices that are used have the same slot.
      experts_dim: the Dimension x.
      capacity_dim: the Dimension c.

    Returns:
      a SlotTable
    """
    k, *batch_dims, group_dim = weights.shape.dims

    def numbers(weights, *choices):
      experts, positions = (
          tf.stack(choices[i:i + k.size]) for i in (0, k.size))
      batch = weights.shape.as_list()[1:-1]
      num_groups, capacity = math.prod(batch), capacity_dim.size
      first_slot = np.arange(num_groups, dtype=np.int32) * capacity
      slots = (experts * (num_groups * capacity) + positions
               + first_slot.reshape([*batch, 1]))  # [k, <batch>, s]
      slots = tf.where(
          tf.not_equal(weights, 0), slots, tf.fill(slots.shape, -1))
      in_slots = _sums(
          tf.reshape(tf.range(1, slots.shape.num_elements() + 1), slots.shape),
          slots,
          [experts_dim.size, *batch, capacity]) - 1  # Of one number, or none.
      num_tokens = num_groups * group_dim.size
      tokens = tf.where(
          in_slots >= 0, in_slots % num_tokens, tf.fill(in_slots.shape, -1))
      return in_slots, tokens, slots

    in_slots = mtf.Shape([experts_dim, *batch_dims, capacity_dim])
    choices, tokens, slots = operations.slicewise(
        numbers, [weights, *experts, *positions],
        output_shape=[in_slots, in_slots, weights.shape],
        output_dtype=[tf.int32] * 3, splittable_dims=batch_dims,
        grad_function=0, name="slot_table")
    return cls(tokens, group_dim, choices, slots)

  @classmethod
  def of_tokens(cls, tokens: mtf.Tensor, group_dim) -> "SlotTable":
    """Makes a table of tokens that are known by their number in the group.

    Args:
      tokens: int32 [x, <batch dims>, c], -1 in an empty slot.
      group_dim: the Dimension s.

    Returns:
      a SlotTable
    """
    _, *batch_dims, _ = tokens.shape.dims

    def within_slice(tokens):
      batch = tokens.shape.as_list()[1:-1]
      first = np.arange(math.prod(batch), dtype=np.int32) * group_dim.size
      return tf.where(
          tokens >= 0, tokens + first.reshape([*batch, 1]), tokens)

    return cls(mtf.slicewise(
        within_slice, [tokens], splittable_dims=batch_dims, grad_function=0,
        name="slot_table"), group_dim)


def fill_slots(table: SlotTable, tokens: mtf.Tensor) -> mtf.Tensor:
  """Copies tokens to their slots; empty slots are zero.

  Args:
    table: a `SlotTable`.
    tokens: a Tensor [<batch dims>, s, m].

  Returns:
    a Tensor [x, <batch dims>, c, m]
  """
  return _filled(tokens, table.tokens, table.slots)


def _filled(tokens, numbers, slots):
  """See `fill_slots`; `numbers` and `slots` are those of a table."""
  *batch_dims, group_dim, depth = tokens.shape.dims

  def fill(rows, numbers, *unused_slots):
    return _looked_up(rows, numbers, depth=1)

  def gradient(op, grad):
    _, numbers, *others = op.inputs
    slots = others[0] if others else None
    return [_summed(grad, numbers, slots, None, group_dim), None,
            *[None] * len(others)]

  return mtf.slicewise(
      fill, [tokens, numbers] + ([] if slots is None else [slots]),
      output_shape=numbers.shape + depth,
      splittable_dims=batch_dims + [depth], grad_function=gradient,
      name="fill_slots")


def sum_of_slots(table: SlotTable, rows: mtf.Tensor,
                 weights: mtf.Tensor | None = None) -> mtf.Tensor:
  """Adds up the weighted rows in the slots of each token, in float32.

  Args:
    table: a `SlotTable`.
    rows: a Tensor [x, <batch dims>, c, m].
    weights: a Tensor [x, <batch dims>, c] of the same type, or None for ones.

  Returns:
    a Tensor of that type, [<batch dims>, s, m]
  """
  return _summed(rows, table.tokens, table.slots, weights, table.group_dim)


def _summed(rows, numbers, slots, weights, group_dim):
  """See `sum_of_slots`; `numbers` and `slots` are those of a table."""
  _, *batch_dims, _, depth = rows.shape.dims
  optional = {"slots": slots, "weights": weights}
  names = [name for name, tensor in optional.items() if tensor is not None]

  def add_up(rows, numbers, *given):
    others = dict(zip(names, given))
    if "slots" in others:
      total = _sums_of_choices(rows, others["slots"], others.get("weights"))
    else:
      total = _sums_of_rows(
          rows, numbers, others.get("weights"), group_dim.size)
    return tf.cast(total, rows.dtype)

  def gradient(op, grad):
    rows, numbers, *given = op.inputs
    others = dict(zip(names, given))
    at_slots = _filled(
        grad, numbers, others.get("slots"))  # [x, <batch dims>, c, m]
    none = [None] * (1 + ("slots" in others))
    if "weights" not in others:
      return [at_slots, *none]
    products = mtf.reduce_sum(
        mtf.to_float(rows) * mtf.to_float(at_slots), reduced_dim=depth)
    weights = others["weights"]
    return [at_slots * weights, *none, mtf.cast(products, weights.dtype)]

  return mtf.slicewise(
      add_up, [rows, numbers, *(optional[name] for name in names)],
      output_shape=mtf.Shape([*batch_dims, group_dim, depth]),
      output_dtype=rows.dtype, splittable_dims=batch_dims + [depth],
      grad_function=gradient, name="sum_of_slots")


def _sums_of_choices(rows, slots, weights):
  """For each token, the sum of the weighted rows in its slots, float32.

  Args:
    rows: a tf.Tensor [x, <batch>, c, m].
    slots: int32 [k, <batch>, s], as in a table.
    weights: a tf.Tensor [x, <batch>, c], or None for ones.

  Returns:
    float32 [<batch>, s, m]
  """
  if weights is None:
    weights = tf.ones(rows.shape[:-1], tf.float32)
  return tf.add_n([
      # A choice without a slot has a weight of zero, and a row that may be NaN.
      tf.math.multiply_no_nan(
          tf.cast(_taken(rows, of_choice, depth=1), tf.float32),
          tf.cast(_looked_up(weights, of_choice), tf.float32)[..., tf.newaxis])
      for of_choice in tf.unstack(slots)])


def _sums_of_rows(rows, numbers, weights, group_size):
  """The same by adding rows to tokens, of which `numbers` are those."""
  weighted = tf.cast(rows, tf.float32)
  if weights is not None:
    weighted *= tf.cast(weights, tf.float32)[..., tf.newaxis]
  return _sums(weighted, numbers, [*numbers.shape.as_list()[1:-1], group_size])


def _looked_up(values, numbers, depth=0):
  """The values, or rows of values, of these numbers; 0 for the number -1.

  Args:
    values: a tf.Tensor [..., <dims of a row>].
    numbers: int32, numbers in the flattened [...].
    depth: an integer, how many dims a row has.

  Returns:
    a tf.Tensor [<dims of the numbers>, <dims of a row>]
  """
  is_one = tf.reshape(numbers >= 0, [*numbers.shape.as_list(), *[1] * depth])
  return tf.where_v2(
      is_one, _taken(values, numbers, depth), tf.zeros([], values.dtype))


def _taken(values, numbers, depth=0):
  """As `_looked_up`, but any value for the number -1."""
  row = values.shape.as_list()[values.shape.ndims - depth:]
  # Some devices raise an error where a number is out of range.
  return tf.gather(tf.reshape(values, [-1, *row]), tf.maximum(numbers, 0))


def weights_in_slots(table: SlotTable, weights: mtf.Tensor) -> mtf.Tensor:
  """The weight of the choice in each slot, 0 in an empty one.

  Args:
    table: a `SlotTable`.
    weights: a Tensor [k, <batch dims>, s].

  Returns:
    a Tensor [x, <batch dims>, c]
  """
  _, *batch_dims, _ = weights.shape.dims
  assert table.choices is not None  # Else there are no choices with weights.

  def take(weights, choices, unused_slots):
    return _looked_up(weights, choices)

  def put_back(grad, slots):
    return _looked_up(grad, slots)

  def gradient(op, grad):
    weights, _, slots = op.inputs
    return [mtf.slicewise(
        put_back, [grad, slots], output_shape=weights.shape,
        splittable_dims=batch_dims, grad_function=0), None, None]

  return mtf.slicewise(
      take, [weights, table.choices, table.slots],
      output_shape=table.choices.shape, output_dtype=weights.dtype,
      splittable_dims=batch_dims, grad_function=gradient,
      name="weights_in_slots")


def _sums(rows, numbers, shape):
  """Adds up rows that have the same number.

  Args:
    rows: a tf.Tensor [..., <dims of a row>].
    numbers: int32 [...], where the sum belongs, as a number in the flattened
      result; rows of the number -1 are left out.
    shape: a list of integers, that of the result without the dims of a row.

  Returns:
    a tf.Tensor [<shape>, <dims of a row>], zero where there is no row
  """
  sums = tf.math.unsorted_segment_sum(rows, numbers, math.prod(shape))
  return tf.reshape(sums, [*shape, *sums.shape.as_list()[1:]])
