"""Move: tokens to the buffers of their experts, and the results back.

Two ways with the same answer: `OneHotDispatcher` multiplies by matrices of
zeros and ones, `IndexDispatcher` copies rows. Neither knows how a router came
to its choices.

Shapes: `s` is the group size, `x` the experts, `c` the capacity, `m` and `n`
the depths of inputs and outputs, after any number of batch dimensions.
"""

import mesh_tensorflow as mtf

from mtf_moe import slots
from mtf_moe.gating import routing


class OneHotDispatcher:
  """Moves by matrix multiplication with the dense view of a routing.

  The product with a matrix of zeros and ones is a gather that every
  accelerator does well, at a cost that grows with the size of a group.
  """

  def __init__(self, routed: routing.Routing, dtype):
    """Makes the dense tensors.

    Args:
      routed: where every token goes.
      dtype: a tf.DType, that of the tokens.
    """
    self._combine_tensor = routed.combine_tensor(dtype)  # [..., s, x, c]
    self._dispatch_tensor = routing.dispatch_tensor(self._combine_tensor)
    self._experts_dim = routed.experts_dim
    self._capacity_dim = routed.capacity_dim

  def dispatch(self, tokens):
    """Fills the experts' buffers; empty slots are zero.

    Args:
      tokens: a Tensor [<batch dims>, s, m].

    Returns:
      a Tensor [x, <batch dims>, c, m]. Experts come first, which makes the
      exchange that follows a plain all-to-all.
    """
    *batch_dims, _, depth = tokens.shape.dims
    return mtf.einsum(
        [tokens, self._dispatch_tensor],
        [self._experts_dim] + batch_dims + [self._capacity_dim, depth])

  def combine(self, expert_outputs):
    """Adds up the weighted results of the experts of each token.

    Args:
      expert_outputs: a Tensor [x, <batch dims>, c, n].

    Returns:
      a Tensor [<batch dims>, s, n], zero for tokens that no expert took.
    """
    *batch_dims, group_dim, _, _ = self._combine_tensor.shape.dims
    return mtf.einsum(
        [expert_outputs, self._combine_tensor],
        batch_dims + [group_dim, expert_outputs.shape.dims[-1]])

  def slot_weights(self):
    """The weight of the token in each slot, 0 for an empty one.

    Returns:
      a Tensor [x, <batch dims>, c]
    """
    *batch_dims, _, _, _ = self._combine_tensor.shape.dims
    return mtf.reduce_sum(
        self._combine_tensor,
        output_shape=[self._experts_dim] + batch_dims + [self._capacity_dim])


class IndexDispatcher:
  """Moves by copying rows, at a cost that the size of a group does not change.

  The methods are those of `OneHotDispatcher`.
  """

  def __init__(self, routed: routing.Routing, dtype):
    """Finds the choice in each slot.

    Args:
      routed: where every token goes.
      dtype: a tf.DType, that of the tokens.
    """
    # A weight that is zero in this type keeps its slot, but nothing is sent.
    self._weights = mtf.cast(mtf.stack(
        [choice.weight for choice in routed.choices], "choices"),
        dtype)  # [k, <batch dims>, s]
    self._table = slots.SlotTable.of(
        [choice.expert for choice in routed.choices],
        [choice.position for choice in routed.choices], self._weights,
        routed.experts_dim, routed.capacity_dim)

  def dispatch(self, tokens):
    return slots.fill_slots(self._table, tokens)

  def combine(self, expert_outputs):
    return slots.sum_of_slots(
        self._table, expert_outputs, self.slot_weights())

  def slot_weights(self):
    return slots.weights_in_slots(self._table, self._weights)


DISPATCHERS = {"einsum": OneHotDispatcher, "index": IndexDispatcher}
