"""The value that flows from a router to everything downstream of it.

Shapes: `s` is the group size, `x` the experts and `c` the capacity, after any
number of batch dimensions.
"""

from collections.abc import Sequence
import dataclasses

import mesh_tensorflow as mtf


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
    masks: Sequence[mtf.Tensor], group_dim, capacity_dim) -> tuple[Choice, ...]:
  """Gives every wanted choice a slot in its expert's buffer, if one is left.

  Slots are filled in the order of the tokens in the group, all first choices
  before any second one. A choice that finds the buffer full is dropped; the
  weights of the others stay as they are.

  Args:
    experts: k times int32 [..., s], the chosen experts.
    gates: k times float32 [..., s], the weights the choices would have.
    masks: k times float32 [..., s, x], one at the chosen expert of each token
      that wants it, zero elsewhere.
    group_dim: the dimension s.
    capacity_dim: the dimension c.

  Returns:
    k times a `Choice`
  """
  choices = []
  filled = None  # [..., x], slots that earlier choices hold
  for expert, gate, mask in zip(experts, gates, masks):
    position = mtf.cumsum(mask, group_dim, exclusive=True)  # [..., s, x]
    if filled is not None:
      position += filled
    position *= mask
    fits = mtf.to_float(mtf.less(position, float(capacity_dim.size)))
    kept = mask * fits  # [..., s, x]
    experts_dim = mask.shape.dims[-1]
    load = mtf.reduce_sum(kept, reduced_dim=group_dim)  # [..., x]
    choices.append(Choice(
        expert=expert,
        position=mtf.to_int32(
            mtf.reduce_sum(position, reduced_dim=experts_dim)),
        weight=gate * mtf.reduce_sum(kept, reduced_dim=experts_dim),
        demand=mtf.reduce_sum(mask, reduced_dim=group_dim),
        load=load))
    filled = load if filled is None else filled + load
  return tuple(choices)
