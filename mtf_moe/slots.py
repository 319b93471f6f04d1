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
import tensorflow.compat.v1 as tf


@dataclasses.dataclass(frozen=True)
class SlotTable:
  """Which token is in which slot, seen from both sides.

  Numbers count within a slice of the mesh; -1 stands for none. No gradient
  flows through.

  Attributes:
    slots: int32 [k, <batch dims>, s], the slot of each choice, as a number in
      the flattened [x, <batch dims>, c].
    sources: int32 [x, <batch dims>, c], the choice in each slot, as a number in
      the flattened [k, <batch dims>, s].
  """

  slots: mtf.Tensor
  sources: mtf.Tensor

  @property
  def batch_dims(self) -> list[mtf.Dimension]:
    return self.slots.shape.dims[1:-1]

  @classmethod
  def of(cls, experts: Sequence[mtf.Tensor], positions: Sequence[mtf.Tensor],
         used: Sequence[mtf.Tensor], experts_dim, capacity_dim) -> "SlotTable":
    """Numbers the slots that choices occupy.

    Args:
      experts: k times int32 [<batch dims>, s], the chosen experts.
      positions: k times int32 [<batch dims>, s], the slots in their buffers.
      used: k times bool [<batch dims>, s]. No two choices that are used have
        the same slot.
      experts_dim: the Dimension x.
      capacity_dim: the Dimension c.

    Returns:
      a SlotTable
    """
    *batch_dims, group_dim = experts[0].shape.dims
    k = mtf.Dimension("choices", len(experts))

    def number(*choices):
      experts, positions, used = (
          tf.stack(choices[i:i + k.size])  # [k, <batch>, s]
          for i in range(0, len(choices), k.size))
      batch = experts.shape.as_list()[1:-1]
      num_groups = math.prod(batch)
      group = tf.reshape(tf.range(num_groups), batch + [1])
      slots = (experts * num_groups + group) * capacity_dim.size + positions
      num_slots = experts_dim.size * num_groups * capacity_dim.size
      # Choices without a slot go to one more, behind the others.
      targets = tf.where(used, slots, tf.fill(slots.shape, num_slots))
      num_choices = slots.shape.num_elements()
      sources = tf.scatter_nd(
          tf.reshape(targets, [-1, 1]), tf.range(1, num_choices + 1),
          [num_slots + 1])[:-1] - 1
      sources = tf.reshape(
          sources, [experts_dim.size, *batch, capacity_dim.size])
      return tf.where(used, slots, tf.fill(slots.shape, -1)), sources

    return cls(*mtf.slicewise(
        number, [*experts, *positions, *used],
        output_shape=[mtf.Shape([k, *batch_dims, group_dim]),
                      mtf.Shape([experts_dim, *batch_dims, capacity_dim])],
        output_dtype=[tf.int32, tf.int32], splittable_dims=batch_dims,
        grad_function=0, name="slot_table"))


def fill_slots(table: SlotTable, tokens: mtf.Tensor) -> mtf.Tensor:
  """Copies tokens to their slots; empty slots are zero.

  Args:
    table: a `SlotTable`.
    tokens: a Tensor [<batch dims>, s, m].

  Returns:
    a Tensor [x, <batch dims>, c, m]
  """
  depth = tokens.shape.dims[-1]

  def fill(tokens, sources):
    filled = tf.cast(sources >= 0, tokens.dtype)
    num_tokens = math.prod(tokens.shape.as_list()[:-1])
    return _rows(tokens, sources % num_tokens) * filled[..., tf.newaxis]

  return mtf.slicewise(
      fill, [tokens, table.sources],
      output_shape=table.sources.shape + depth,
      splittable_dims=table.batch_dims + [depth],
      grad_function=lambda op, grad: [sum_of_slots(table, grad), None],
      name="fill_slots")


def sum_of_slots(table: SlotTable, rows: mtf.Tensor,
                 weights: mtf.Tensor | None = None) -> mtf.Tensor:
  """Adds up the weighted rows in the slots of each token, in float32.

  Args:
    table: a `SlotTable`.
    rows: a Tensor [x, <batch dims>, c, m].
    weights: a Tensor [k, <batch dims>, s] of the same type, or None for ones.

  Returns:
    a Tensor of that type, [<batch dims>, s, m]
  """
  depth = rows.shape.dims[-1]

  def add_up(rows, slots, weights=None):
    used = tf.cast(slots >= 0, tf.float32)
    if weights is not None:
      used *= tf.cast(weights, tf.float32)
    weighted = [
        tf.cast(_rows(rows, slot), tf.float32) * weight[..., tf.newaxis]
        for slot, weight in zip(tf.unstack(slots), tf.unstack(used))]
    return tf.cast(tf.add_n(weighted), rows.dtype)

  def gradient(op, grad):
    del op
    if weights is None:
      return [fill_slots(table, grad), None]
    at_slots = fill_slots(table, grad)  # [x, <batch dims>, c, m]
    products = mtf.reduce_sum(
        mtf.to_float(rows) * mtf.to_float(at_slots), reduced_dim=depth)
    return [at_slots * weights_in_slots(table, weights), None,
            mtf.cast(_numbers(table, products, table.slots), weights.dtype)]

  inputs = [rows, table.slots] + ([] if weights is None else [weights])
  return mtf.slicewise(
      add_up, inputs,
      output_shape=mtf.Shape(table.slots.shape.dims[1:] + [depth]),
      output_dtype=rows.dtype, splittable_dims=table.batch_dims + [depth],
      grad_function=gradient, name="sum_of_slots")


def weights_in_slots(table: SlotTable, weights: mtf.Tensor) -> mtf.Tensor:
  """The weight of the choice in each slot, 0 in an empty one.

  Args:
    table: a `SlotTable`.
    weights: a Tensor [k, <batch dims>, s].

  Returns:
    a Tensor [x, <batch dims>, c]. No gradient flows through it.
  """
  return _numbers(table, weights, table.sources)


def _numbers(table, values, indices):
  """Elements by their number, and 0 for the number -1; without a gradient."""
  def take(values, indices):
    taken = tf.gather(tf.reshape(values, [-1]), tf.maximum(indices, 0))
    return tf.where(indices >= 0, taken, tf.zeros_like(taken))

  return mtf.slicewise(
      take, [values, indices], output_shape=indices.shape,
      output_dtype=values.dtype, splittable_dims=table.batch_dims,
      grad_function=0, name="take")


def _rows(rows, numbers):
  """Rows of a tf.Tensor [..., m] by their number, and any row for -1."""
  depth = rows.shape.as_list()[-1]
  # Some devices raise an error where a number is out of range.
  return tf.gather(tf.reshape(rows, [-1, depth]), tf.maximum(numbers, 0))
