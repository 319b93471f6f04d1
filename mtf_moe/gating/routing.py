"""The value that flows from a router to everything downstream of it.

Shapes: `s` is the group size, `x` the experts and `c` the capacity, after any
number of batch dimensions.
"""

from collections.abc import Sequence
import dataclasses
import functools

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf


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
  choices = []
  filled = mtf.zeros(
      experts[0].mesh, per_expert, tf.int32)  # Slots of earlier choices.
  for expert, gate, wants in zip(experts, gates, wanted):
    position, kept, demand, load = mtf.slicewise(
        functools.partial(_fill, experts_dim.size, capacity_dim.size),
        [expert, wants, filled],
        output_shape=[tokens, tokens, per_expert, per_expert],
        output_dtype=[tf.int32, tf.float32, tf.int32, tf.int32],
        splittable_dims=batch_dims, grad_function=0, name="fill_buffers")
    choices.append(Choice(
        expert=expert, position=position, weight=gate * kept,
        demand=mtf.to_float(demand), load=mtf.to_float(load)))
    filled += load
  return tuple(choices)


def _fill(num_experts, capacity, expert, wants, filled):
  """Fills the buffers with one choice of every token.

  Args:
    num_experts: an integer, x.
    capacity: an integer, c.
    expert: int32 [<batch>, s].
    wants: float32 [<batch>, s].
    filled: int32 [<batch>, x], slots that are taken before.

  Returns:
    position: int32 [<batch>, s], counted from the first slot of the buffer.
    kept: float32 [<batch>, s], one where the choice is wanted and fits.
    demand: int32 [<batch>, x], how many tokens want each expert.
    load: int32 [<batch>, x], how many of them get a slot.
  """
  # Tokens come last, so that the sum runs along contiguous memory.
  mask = tf.one_hot(
      tf.where(wants > 0, expert, tf.fill(expert.shape, -1)), num_experts,
      axis=expert.shape.ndims - 1, dtype=tf.int32)  # [<batch>, x, s]
  position = filled[..., tf.newaxis] + tf.cumsum(mask, axis=-1, exclusive=True)
  kept = mask * tf.cast(position < capacity, tf.int32)
  return (tf.reduce_sum(position * mask, axis=-2),
          tf.cast(tf.reduce_sum(kept, axis=-2), tf.float32),
          tf.reduce_sum(mask, axis=-1),
          tf.reduce_sum(kept, axis=-1))
