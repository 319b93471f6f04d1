"""The value that flows from a router to everything downstream of it.

Shapes: `s` is the group size, `x` the experts and `c` the capacity, after any
number of batch dimensions.
"""

from collections.abc import Sequence
import dataclasses
import functools

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import operations


@dataclasses.dataclass(frozen=True)
class Choice:
  """One choice of every token, say its second.

  Attributes:
    expert: int32 [..., s], the chosen expert.
    position: int32 [..., s], the slot in that expert's buffer. Meaningless
      where the weight is 0.
    weight: float32 [..., s], the share of that expert's output in the token's
      result; 0 where the choice is not used or did not fit into the buffer.
    demand: float32 [..., x], how many tokens of the group wanted each expert.
    load: float32 [..., x], how many of them got a slot.
  """

  expert: mtf.Tensor
  position: mtf.Tensor
  weight: mtf.Tensor
  demand: mtf.Tensor
  load: mtf.Tensor


@dataclasses.dataclass(frozen=True)
class Routing:
  """Where every token goes, and what steers the router there.

  Attributes:
    choices: a `Choice` for each of the k experts a token may use, in order of
      preference.
    experts_dim: the dimension x of the experts.
    capacity_dim: the dimension c of one expert's buffer.
    balance_loss: float32 scalar, the balancing losses, 1 for each at perfect
      balance.
    gates: float32 [..., s, x], the router's probabilities of all experts.
    importance: a Tensor [..., s], 0 for padding, or None where all tokens count
      in full.
    z_loss: float32 scalar, the router z-loss times its own weight, or None.
    first_choice_above: a float. A choice of a larger weight is its token's
      first, which a level below may give two experts again.
  """

  choices: tuple[Choice, ...]
  experts_dim: mtf.Dimension
  capacity_dim: mtf.Dimension
  balance_loss: mtf.Tensor
  gates: mtf.Tensor
  importance: mtf.Tensor | None = None
  z_loss: mtf.Tensor | None = None
  first_choice_above: float = 0.5

  def combine_tensor(self, dtype):
    """The dense view: each token's weight at the slot that it occupies.

    Args:
      dtype: a tf.DType, that of the layer's activations.

    Returns:
      a Tensor of that type, [..., s, x, c], nearly all zeros.
    """
    weights = [
        choice.weight
        * mtf.one_hot(choice.expert, self.experts_dim)
        * mtf.one_hot(choice.position, self.capacity_dim)
        for choice in self.choices]  # k times [..., s, x, c]
    return mtf.cast(mtf.add_n(weights), dtype)


def dispatch_tensor(combine_tensor):
  """The dense view of which token occupies which slot.

  Taken from the combine tensor in its own type: a weight that is zero there
  keeps its slot, but nothing is sent to it. No gradient flows through.

  Args:
    combine_tensor: a Tensor [..., s, x, c].

  Returns:
    a Tensor of zeros and ones with the same shape and type.
  """
  return mtf.cast(mtf.not_equal(combine_tensor, 0), combine_tensor.dtype)


def fill_buffers(
    experts: Sequence[mtf.Tensor], gates: Sequence[mtf.Tensor],
    wanted: Sequence[mtf.Tensor], experts_dim, capacity_dim
    ) -> tuple[Choice, ...]:
  """Gives every wanted choice a slot in its expert's buffer, if one is left.

  Slots are filled in the order of the tokens in the group, all first choices
  before any second one. A choice that finds the buffer full is dropped; the
  weights of the others stay as they are.

  Args:
    experts: k times int32 [<batch dims>, s], the chosen experts.
    gates: k times float32 [<batch dims>, s], the weights the choices would
      have.
    wanted: k times float32 [<batch dims>, s], one where a token wants that
      choice, zero elsewhere.
    experts_dim: the dimension x.
    capacity_dim: the dimension c.

  Returns:
    k times a `Choice`
  """
  tokens = experts[0].shape  # [<batch dims>, s]
  batch_dims = tokens.dims[:-1]
  per_expert = mtf.Shape(batch_dims + [experts_dim])
  k = len(experts)
  filled = operations.slicewise(
      functools.partial(_fill, experts_dim.size, capacity_dim.size),
      [*experts, *wanted],
      output_shape=[tokens] * 2 * k + [per_expert] * 2 * k,
      output_dtype=[tf.int32] * k + [tf.float32] * 3 * k,
      splittable_dims=batch_dims, grad_function=0, name="fill_buffers")
  return tuple(
      Choice(expert=expert, position=position, demand=demand, load=load,
             weight=_weight_if_kept(gate, kept))
      for expert, gate, position, kept, demand, load in zip(
          experts, gates, *(filled[i:i + k] for i in range(0, 4 * k, k))))


def _weight_if_kept(gate, kept):
  """The gate where `kept` is one; zero elsewhere, even if the gate is NaN.

  Then what has a weight has a slot of its own, also in a router that diverged.
  """
  return mtf.cwise(
      tf.math.multiply_no_nan, [gate, kept],
      grad_function=lambda op, grad: [grad * op.inputs[1], None],
      name="weight_if_kept")


def _fill(num_experts, capacity, *choices):
  """Fills the buffers.

  Args:
    num_experts: an integer, x.
    capacity: an integer, c.
    *choices: k times `expert`, int32 [<batch>, s], then k times `wants`,
      float32 [<batch>, s].

  Returns:
    k times each of these, one after the other:
    position: int32 [<batch>, s], counted from the first slot of the buffer.
    kept: float32 [<batch>, s], one where the choice is wanted and fits.
    demand: float32 [<batch>, x], how many tokens want each expert.
    load: float32 [<batch>, x], how many of them get a slot.
  """
  k = len(choices) // 2
  # All first choices, then all second ones: the order in which slots go.
  experts, wants = (tf.concat(choices[i:i + k], -1) for i in (0, k))
  wanted = wants > 0  # [<batch>, ks]
  # Tokens come last, so that sums run along contiguous memory.
  mask = tf.one_hot(
      tf.where(wanted, experts, tf.fill(experts.shape, -1)), num_experts,
      axis=experts.shape.ndims - 1, dtype=tf.int32)  # [<batch>, x, ks]
  position = tf.reduce_sum(
      tf.cumsum(mask, axis=-1, exclusive=True) * mask, axis=-2)  # [<batch>, ks]
  kept = tf.logical_and(wanted, position < capacity)

  def counts(mask):
    return [tf.cast(tf.reduce_sum(of_one, axis=-1), tf.float32)
            for of_one in tf.split(mask, k, axis=-1)]

  return (*tf.split(position, k, axis=-1),
          *tf.split(tf.cast(kept, tf.float32), k, axis=-1), *counts(mask),
          *counts(mask * tf.cast(kept, tf.int32)[..., tf.newaxis, :]))
