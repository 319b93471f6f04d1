"""Rows that move by index, between tokens and the slots of experts' buffers.

The operations under the index dispatcher, with their gradients, which move rows
by index too. Each works on the whole groups that a slice of the mesh holds: all
batch dimensions may be split over the mesh, and the depth of a row. The group,
the experts and the capacity may not.

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
  """

  tokens: mtf.Tensor
  group_dim: mtf.Dimension
  choices: mtf.Tensor | None = None

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

    def occupants(weights, *choices):
      experts, positions = (
          tf.stack(choices[i:i + k.size]) for i in (0, k.size))
      batch = weights.shape.as_list()[1:-1]
      num_groups, capacity = math.prod(batch), capacity_dim.size
      first_slot = np.arange(num_groups, dtype=np.int32) * capacity
      slots = (experts * (num_groups * capacity) + positions
               + first_slot.reshape([*batch, 1]))  # [k, <batch>, s]
      numbers = _sums(
          tf.reshape(tf.range(1, slots.shape.num_elements() + 1), slots.shape),
          tf.where(tf.not_equal(weights, 0), slots, tf.fill(slots.shape, -1)),
          [experts_dim.size, *batch, capacity]) - 1  # Of one number, or none.
      num_tokens = num_groups * group_dim.size
      tokens = tf.where(
          numbers >= 0, numbers % num_tokens, tf.fill(numbers.shape, -1))
      return numbers, tokens

    in_slots = mtf.Shape([experts_dim, *batch_dims, capacity_dim])
    choices, tokens = operations.slicewise(
        occupants, [weights, *experts, *positions],
        output_shape=[in_slots, in_slots], output_dtype=[tf.int32, tf.int32],
        splittable_dims=batch_dims, grad_function=0, name="slot_table")
    return cls(tokens, group_dim, choices)

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
  return _filled(tokens, table.tokens)


def _filled(tokens, numbers):
  """See `fill_slots`; `numbers` [x, <batch dims>, c] is of the tokens."""
  *batch_dims, group_dim, depth = tokens.shape.dims

  def fill(rows, numbers):
    filled = tf.cast(numbers >= 0, rows.dtype)
    # Some devices raise an error where a number is out of range.
    return tf.gather(
        tf.reshape(rows, [-1, rows.shape.as_list()[-1]]),
        tf.maximum(numbers, 0)) * filled[..., tf.newaxis]

  def gradient(op, grad):
    return [_summed(grad, op.inputs[1], None, group_dim), None]

  return mtf.slicewise(
      fill, [tokens, numbers], output_shape=numbers.shape + depth,
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
  return _summed(rows, table.tokens, weights, table.group_dim)


def _summed(rows, numbers, weights, group_dim):
  """See `sum_of_slots`; `numbers` [x, <batch dims>, c] is of the tokens."""
  _, *batch_dims, _, depth = rows.shape.dims

  def add_up(rows, numbers, weights=None):
    weighted = tf.cast(rows, tf.float32)
    if weights is not None:
      weighted *= tf.cast(weights, tf.float32)[..., tf.newaxis]
    batch = numbers.shape.as_list()[1:-1]
    return tf.cast(
        _sums(weighted, numbers, [*batch, group_dim.size]), rows.dtype)

  def gradient(op, grad):
    rows, numbers, *weights = op.inputs
    at_slots = _filled(grad, numbers)  # [x, <batch dims>, c, m]
    if not weights:
      return [at_slots, None]
    products = mtf.reduce_sum(
        mtf.to_float(rows) * mtf.to_float(at_slots), reduced_dim=depth)
    return [at_slots * weights[0], None, mtf.cast(products, weights[0].dtype)]

  return mtf.slicewise(
      add_up, [rows, numbers] + ([] if weights is None else [weights]),
      output_shape=mtf.Shape([*batch_dims, group_dim, depth]),
      output_dtype=rows.dtype, splittable_dims=batch_dims + [depth],
      grad_function=gradient, name="sum_of_slots")


def weights_in_slots(table: SlotTable, weights: mtf.Tensor) -> mtf.Tensor:
  """The weight of the choice in each slot, 0 in an empty one.

  Args:
    table: a `SlotTable`.
    weights: a Tensor [k, <batch dims>, s].

  Returns:
    a Tensor [x, <batch dims>, c]
  """
  choices_dim, *batch_dims, group_dim = weights.shape.dims
  assert table.choices is not None  # Else there are no choices with weights.

  def take(weights, numbers):
    taken = tf.gather(tf.reshape(weights, [-1]), tf.maximum(numbers, 0))
    return tf.where(numbers >= 0, taken, tf.zeros_like(taken))

  def put_back(grad, numbers):
    batch = numbers.shape.as_list()[1:-1]
    return _sums(grad, numbers, [choices_dim.size, *batch, group_dim.size])

  def gradient(op, grad):
    weights, numbers = op.inputs
    return [mtf.slicewise(
        put_back, [grad, numbers], output_shape=weights.shape,
        splittable_dims=batch_dims, grad_function=0), None]

  return mtf.slicewise(
      take, [weights, table.choices], output_shape=table.choices.shape,
      output_dtype=weights.dtype, splittable_dims=batch_dims,
      grad_function=gradient, name="weights_in_slots")


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
