"""Move: tokens to the buffers of their experts, and the results back.

Shapes: `s` is the group size, `x` the experts, `c` the capacity, `m` and `n`
the depths of inputs and outputs, after any number of batch dimensions.
"""

import mesh_tensorflow as mtf

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
