"""Move: tokens to the buffers of their experts, and the results back.

Two ways with the same answer: `OneHotDispatcher` multiplies by matrices of
zeros and ones, `IndexDispatcher` copies rows. Neither knows how a router came
to its choices.

Shapes: `s` is the group size, `x` the experts, `c` the capacity, `m` and `n`
the depths of inputs and outputs, after any number of batch dimensions.
"""

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import slots
from mtf_moe.gating import routing


class Dispatcher:
  """What both ways have in common; the other methods are their own."""

  def __init__(self, routed: routing.Routing, dtype):
    """Prepares to move.

    Args:
      routed: where every token goes.
      dtype: a tf.DType, that of the tokens.
    """
    self._routed = routed

  def dispatch(self, tokens: mtf.Tensor) -> mtf.Tensor:
    """Fills the experts' buffers; empty slots are zero.

    Args:
      tokens: a Tensor [<batch dims>, s, m].

    Returns:
      a Tensor [x, <batch dims>, c, m]. Experts come first, which makes the
      exchange that follows a plain all-to-all.
    """
    raise NotImplementedError

  def combine(self, expert_outputs: mtf.Tensor) -> mtf.Tensor:
    """Adds up the weighted results of the experts of each token.

    Args:
      expert_outputs: a Tensor [x, <batch dims>, c, n].

    Returns:
      a Tensor [<batch dims>, s, n], zero for tokens that no expert took.
    """
    raise NotImplementedError

  def collect(self, rows: mtf.Tensor) -> mtf.Tensor:
    """Adds up what is in the slots of each token, without weights.

    Args:
      rows: a Tensor [x, <batch dims>, c, n].

    Returns:
      a Tensor [<batch dims>, s, n]
    """
    raise NotImplementedError

  def slot_weights(self) -> mtf.Tensor:
    """The weight of the token in each slot, 0 for an empty one.

    Returns:
      a Tensor [x, <batch dims>, c]
    """
    raise NotImplementedError

  def slot_importance(self) -> mtf.Tensor:
    """How much the token in each slot matters to the next level.

    Returns:
      float32 [x, <batch dims>, c]; see `Routing.slot_importance`
    """
    return self._routed.slot_importance(
        self.slot_weights(),
        lambda routed: type(self)(routed, tf.float32).slot_weights())


class OneHotDispatcher(Dispatcher):
  """Moves by matrix multiplication with the dense view of a routing.

  The product with a matrix of zeros and ones is a gather that every
  accelerator does well, at a cost that grows with the size of a group.
  """

  def __init__(self, routed, dtype):
    super().__init__(routed, dtype)
    self._combine_tensor = routed.combine_tensor(dtype)  # [..., s, x, c]
    self._dispatch_tensor = routed.dispatch_tensor(self._combine_tensor)

  def dispatch(self, tokens):
    depth = tokens.shape.dims[-1]
    return mtf.einsum(
        [tokens, self._dispatch_tensor], [*self._routed.slot_dims, depth])

  def combine(self, expert_outputs):
    routed = self._routed
    return mtf.einsum(
        [expert_outputs, self._combine_tensor],
        [*routed.batch_dims, routed.group_dim, expert_outputs.shape.dims[-1]])

  def collect(self, rows):
    routed, dtype = self._routed, self._dispatch_tensor.dtype
    return mtf.cast(mtf.einsum(
        [mtf.cast(rows, dtype), self._dispatch_tensor],
        [*routed.batch_dims, routed.group_dim, rows.shape.dims[-1]]),
                    rows.dtype)

  def slot_weights(self):
    return mtf.reduce_sum(
        self._combine_tensor, output_shape=self._routed.slot_dims)


class IndexDispatcher(Dispatcher):
  """Moves by copying rows, at a cost that the size of a group does not change.
  """

  def __init__(self, routed, dtype):
    super().__init__(routed, dtype)
    self._table, self._weights = routed.slots(dtype)

  def dispatch(self, tokens):
    return slots.fill_slots(self._table, tokens)

  def combine(self, expert_outputs):
    return slots.sum_of_slots(self._table, expert_outputs, self._weights)

  def collect(self, rows):
    return slots.sum_of_slots(self._table, rows)

  def slot_weights(self):
    return self._weights


DISPATCHERS = {"einsum": OneHotDispatcher, "index": IndexDispatcher}
