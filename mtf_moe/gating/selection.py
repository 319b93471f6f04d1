"""Finding the largest of gates.

Shapes: `s` is the group size and `x` the experts, after any number of batch
dimensions.
"""

import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import knobs
from mtf_moe import operations


def check_number(name: str, k: int, experts_dim):
  """Raises ValueError if a token would use more experts than there are.

  Args:
    name: the knob that says how many.
    k: an integer, its value.
    experts_dim: the Dimension x.
  """
  if k > experts_dim.size:
    raise knobs.Mistake(
        name, k, f"is more than the {experts_dim.size} experts of a level: "
        "lower it, or use another router there.")


def top_1(values: mtf.Tensor, dim) -> tuple[mtf.Tensor, mtf.Tensor]:
  """`mtf.top_1`: the largest of any values, the first of equal ones.

  Args:
    values: a Tensor [..., <dim>, ...].
    dim: a Dimension.

  Returns:
    the largest, [...], and where it is, int32 [...]
  """
  one = mtf.Dimension("_one", 1)
  return tuple(mtf.reshape(result, result.shape - one)
               for result in operations.top_k(values, dim, one))


def likeliest(gates: mtf.Tensor, experts_dim) -> tuple[mtf.Tensor, mtf.Tensor]:
  """A token's largest gate and its expert, the first of equal ones.

  The same as `top_1`, but faster, and only for what is not negative.

  Args:
    gates: float32 [..., s, x], none of them negative.
    experts_dim: the Dimension x.

  Returns:
    float32 [..., s], and int32 [..., s]
  """
  token_dims = gates.shape.dims[:-1]
  # Falls from one expert to the next, so that the first has the most.
  rank = np.arange(experts_dim.size, 0, -1, dtype=np.int32)[:, np.newaxis]

  def largest(gates):
    # Tokens come last, so that maxima are taken of whole rows at a time; and as
    # the bits of positive numbers are ordered as they are, they are integers,
    # which a CPU transposes and compares at less cost.
    *others, s, x = range(gates.shape.ndims)
    bits = tf.transpose(tf.bitcast(gates, tf.int32), [*others, x, s])
    most = tf.reduce_max(bits, -2, keepdims=True)
    ranks = tf.reduce_max(tf.cast(tf.equal(bits, most), tf.int32) * rank, -2)
    return (tf.bitcast(tf.squeeze(most, -2), tf.float32),
            experts_dim.size - ranks)

  def gradient(op, grad, _):
    return [grad * mtf.one_hot(op.outputs[1], experts_dim, dtype=grad.dtype)]

  return operations.slicewise(
      largest, [gates], output_shape=[mtf.Shape(token_dims)] * 2,
      output_dtype=[gates.dtype, tf.int32], splittable_dims=token_dims,
      grad_function=gradient, name="likeliest")


def top_k_tokens(gates: mtf.Tensor, group_dim, capacity_dim
                 ) -> tuple[mtf.Tensor, mtf.Tensor]:
  """For each expert the tokens of its largest gates, as many as it has slots.

  Args:
    gates: float32 [..., s, x].
    group_dim: the Dimension s.
    capacity_dim: the Dimension c. Where there are fewer tokens than slots, the
      last slots are empty.

  Returns:
    int32 [..., x, c], numbers of tokens in their group, the first of equal
    ones, -1 in an empty slot; and their gates, float32 [..., x, c], 0 there.
  """
  taken_dim = mtf.Dimension(
      capacity_dim.name, min(capacity_dim.size, group_dim.size))
  values, tokens = operations.top_k(
      gates, group_dim, taken_dim)  # [..., x, <= c]
  missing = capacity_dim.size - taken_dim.size
  if missing:
    values, tokens = (
        mtf.pad(x, [0, missing], capacity_dim.name)
        for x in (values, tokens + 1))
    tokens -= 1
  return tokens, values
