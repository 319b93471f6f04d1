"""The value that flows from a router to everything downstream of it.

Shapes: `s` is the group size, `x` the experts and `c` the capacity, after any
number of batch dimensions.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import operations
from mtf_moe import slots as slots_lib
from mtf_moe.gating import fill_order


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
    wanted: float32 [..., s], above zero where a token wanted it.
    kept: float32 [..., s], one where that got a slot.
  """

  expert: mtf.Tensor
  position: mtf.Tensor
  weight: mtf.Tensor
  demand: mtf.Tensor
  load: mtf.Tensor
  wanted: mtf.Tensor
  kept: mtf.Tensor


@dataclasses.dataclass(frozen=True)
class Routing:
  """Where every token goes, and what steers the router there.

  There are two views of it, which hold the same: dense tensors for movement by
  matrix products (`combine_tensor`, `dispatch_tensor`), and slots for movement
  by index (`slots`).

  Attributes:
    experts_dim: the dimension x of the experts.
    group_dim: the dimension s of the tokens in a group.
    capacity_dim: the dimension c of one expert's buffer.
    balance_loss: float32 scalar, the balancing losses, 1 for each at perfect
      balance.
    gates: float32 [..., s, x], the router's probabilities of all experts.
    importance: a Tensor [..., s], 0 for padding, or None where all tokens count
      in full.
    z_loss: float32 scalar, the router z-loss times its own weight, or None.
    load: float32 [<outer expert dims>, x], see `router.TokenChoice`, or None.
  """

  experts_dim: mtf.Dimension
  group_dim: mtf.Dimension
  capacity_dim: mtf.Dimension
  balance_loss: mtf.Tensor
  gates: mtf.Tensor
  importance: mtf.Tensor | None = None
  z_loss: mtf.Tensor | None = None
  load: mtf.Tensor | None = None

  @property
  def batch_dims(self) -> list[mtf.Dimension]:
    return self.gates.shape.dims[:-2]

  @property
  def slot_dims(self) -> list[mtf.Dimension]:
    """[x, <batch dims>, c]."""
    return [self.experts_dim, *self.batch_dims, self.capacity_dim]

  def combine_tensor(self, dtype) -> mtf.Tensor:
    """The dense view: each token's weight at the slots that it occupies.

    Args:
      dtype: a tf.DType, that of the layer's activations.

    Returns:
      a Tensor of that type, [..., s, x, c], nearly all zeros.
    """
    raise NotImplementedError

  def dispatch_tensor(self, combine_tensor: mtf.Tensor) -> mtf.Tensor:
    """The dense view of which token occupies which slot.

    Taken from the combine tensor in its own type: a weight that is zero there
    keeps its slot, but nothing is sent to it. No gradient flows through.

    Args:
      combine_tensor: a Tensor [..., s, x, c].

    Returns:
      a Tensor of zeros and ones with the same shape and type.
    """
    return mtf.cast(mtf.not_equal(combine_tensor, 0), combine_tensor.dtype)

  def slots(self, dtype) -> tuple[slots_lib.SlotTable, mtf.Tensor]:
    """The view by slot.

    Args:
      dtype: a tf.DType, that of the layer's activations.

    Returns:
      a `SlotTable`, and the weights of the tokens in its slots, of that type,
      [x, <batch dims>, c], 0 in an empty one.
    """
    raise NotImplementedError

  def slot_importance(self, weights: mtf.Tensor,
                      in_slots: Callable[["Routing"], mtf.Tensor]
                      ) -> mtf.Tensor:
    """How much a slot's token matters to the next level.

    Args:
      weights: a Tensor [x, <batch dims>, c], those of the tokens in the slots.
      in_slots: finds the weights of another routing in the same way.

    Returns:
      float32 [x, <batch dims>, c], 1 if a token there may use as many experts
      as any, less if it is there by a later choice, 0 if the slot is empty.
    """
    raise NotImplementedError

  def total_weights(self) -> mtf.Tensor:
    """The sum of each token's weights, 0 where no expert took it: [..., s]."""
    raise NotImplementedError

  def demand(self) -> mtf.Tensor:
    """How many tokens wanted each expert, before any was dropped: [..., x]."""
    raise NotImplementedError

  def lost(self) -> mtf.Tensor:
    """How many experts that a token wanted had no slot for it: [..., s].

    None of those that choose tokens, which want none.
    """
    return mtf.zeros(
        self.gates.mesh, mtf.Shape(self.gates.shape.dims[:-1]), tf.float32)

  def tally(self) -> dict[str, mtf.Tensor]:
    """What became of choices, by name: counts, float32 scalars."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TokenRouting(Routing):
  """Tokens have chosen experts.

  Attributes:
    choices: a `Choice` for each of the k experts a token may use, in order of
      preference.
    importance_below: what each choice counts at the next level, or None for 1
      where the weight is above 0.5, else 0.5.
    tries_again: whether a choice that found no slot is made up for by the next.
  """

  choices: tuple[Choice, ...] = ()
  importance_below: tuple[float, ...] | None = None
  tries_again: bool = False

  def combine_tensor(self, dtype):
    weights = [
        choice.weight
        * mtf.one_hot(choice.expert, self.experts_dim)
        * mtf.one_hot(choice.position, self.capacity_dim)
        for choice in self.choices]  # k times [..., s, x, c]
    return mtf.cast(mtf.add_n(weights), dtype)

  def slots(self, dtype):
    # A weight that is zero in this type keeps its slot, but nothing is sent.
    weights = mtf.cast(mtf.stack(
        [choice.weight for choice in self.choices], "choices"),
        dtype)  # [k, <batch dims>, s]
    table = slots_lib.SlotTable.of(
        [choice.expert for choice in self.choices],
        [choice.position for choice in self.choices], weights,
        self.experts_dim, self.capacity_dim)
    return table, slots_lib.weights_in_slots(table, weights)

  def slot_importance(self, weights, in_slots):
    used = mtf.to_float(mtf.greater(weights, 0.0))
    if self.importance_below is None:
      return 0.5 * (mtf.to_float(mtf.greater(weights, 0.5)) + used)
    if set(self.importance_below) == {1.0}:
      return used
    return in_slots(dataclasses.replace(self, choices=tuple(
        dataclasses.replace(choice, weight=value * mtf.to_float(
            mtf.not_equal(mtf.cast(choice.weight, weights.dtype), 0)))
        for choice, value in zip(self.choices, self.importance_below))))

  def total_weights(self):
    return mtf.add_n([choice.weight for choice in self.choices])

  def demand(self):
    return mtf.add_n([choice.demand for choice in self.choices])

  def lost(self):
    choices = self.choices[-1:] if self.tries_again else self.choices
    return mtf.add_n([
        mtf.to_float(mtf.greater(choice.wanted, 0.0)) * (1.0 - choice.kept)
        for choice in choices])

  def tally(self):
    entries = {}
    used = _num_used(self)
    for number, choice in enumerate(self.choices, 1):
      wanted = mtf.reduce_sum(choice.demand)
      kept = mtf.reduce_sum(choice.load)
      entries[f"choices_{number}/kept"] = kept
      entries[f"choices_{number}/dropped"] = wanted - kept
      if number > 1:
        entries[f"choices_{number}/refused"] = used - wanted
    return entries


@dataclasses.dataclass(frozen=True)
class ExpertRouting(Routing):
  """Experts have chosen tokens.

  Attributes:
    tokens: int32 [..., x, c], numbers of tokens in their group, -1 for none.
    weights: float32 [..., x, c].
    sends_zero_weights: a boolean, whether a token moves whose weight is 0.
    wanted: float32 [..., x], how many tokens wanted each expert, or None where
      tokens want nothing.
  """

  tokens: mtf.Tensor | None = None
  weights: mtf.Tensor | None = None
  sends_zero_weights: bool = False
  wanted: mtf.Tensor | None = None

  def combine_tensor(self, dtype):
    in_slots = self.weights * mtf.one_hot(self.tokens, self.group_dim)
    return mtf.cast(
        mtf.transpose(in_slots, [*self.gates.shape.dims, self.capacity_dim]),
        dtype)

  def dispatch_tensor(self, combine_tensor):
    if not self.sends_zero_weights:
      return super().dispatch_tensor(combine_tensor)
    return mtf.transpose(
        mtf.one_hot(self.tokens, self.group_dim, dtype=combine_tensor.dtype),
        combine_tensor.shape)

  def slots(self, dtype):
    weights = mtf.transpose(
        mtf.cast(self.weights, dtype), self.slot_dims)
    tokens = mtf.transpose(self.tokens, self.slot_dims)
    if not self.sends_zero_weights:
      tokens = mtf.where(mtf.not_equal(weights, 0), tokens, -1)
    return slots_lib.SlotTable.of_tokens(tokens, self.group_dim), weights

  def slot_importance(self, weights, in_slots):
    return mtf.to_float(mtf.greater(weights, 0.0))

  def total_weights(self):
    return mtf.reduce_sum(
        self.weights * mtf.one_hot(self.tokens, self.group_dim),
        output_shape=self.gates.shape.dims[:-1])

  def demand(self):
    if self.wanted is not None:
      return self.wanted
    return mtf.reduce_sum(
        self._filled(), reduced_dim=self.capacity_dim)  # [..., x]

  def tally(self):
    kept = mtf.reduce_sum(self._filled())
    entries = {"choices_1/kept": kept}
    if self.wanted is not None:
      entries["choices_1/dropped"] = mtf.reduce_sum(self.wanted) - kept
    return entries

  def _filled(self):
    return mtf.to_float(mtf.greater(self.weights, 0.0))


def _num_used(routed: Routing) -> mtf.Tensor:
  """How many tokens are no padding, a float32 scalar."""
  return mtf.reduce_sum(
      mtf.to_float(mtf.greater(importance(routed), 0.0)))


def importance(routed: Routing) -> mtf.Tensor:
  """The importance of every token, [..., s]."""
  if routed.importance is not None:
    return routed.importance
  gates = routed.gates
  return mtf.ones(gates.mesh, gates.shape.dims[:-1], gates.dtype)


def fill_buffers(
    experts: Sequence[mtf.Tensor], gates: Sequence[mtf.Tensor],
    wanted: Sequence[mtf.Tensor], experts_dim, capacity_dim,
    priority: mtf.Tensor | None = None) -> tuple[Choice, ...]:
  """Gives every wanted choice a slot in its expert's buffer, if one is left.

  Slots are filled in the order of the tokens in the group, or of their
  priority, all first choices before any second one. A choice that finds the
  buffer full is dropped; the weights of the others stay as they are.

  Args:
    experts: k times int32 [<batch dims>, s], the chosen experts.
    gates: k times float32 [<batch dims>, s], the weights the choices would
      have.
    wanted: k times float32 [<batch dims>, s], one where a token wants that
      choice, zero elsewhere.
    experts_dim: the dimension x.
    capacity_dim: the dimension c.
    priority: an optional float32 [<batch dims>, s], see `fill_order`.

  Returns:
    k times a `Choice`
  """
  tokens = experts[0].shape  # [<batch dims>, s]
  batch_dims = tokens.dims[:-1]
  per_expert = mtf.Shape(batch_dims + [experts_dim])
  k = len(experts)
  filled = operations.slicewise(
      functools.partial(_fill, experts_dim.size, capacity_dim.size, k),
      [*experts, *wanted, *([] if priority is None else [priority])],
      output_shape=[tokens] * 2 * k + [per_expert] * 2 * k,
      output_dtype=[tf.int32] * k + [tf.float32] * 3 * k,
      splittable_dims=batch_dims, grad_function=0, name="fill_buffers")
  return tuple(
      Choice(expert=expert, position=position, demand=demand, load=load,
             weight=_weight_if_kept(gate, kept), wanted=wants, kept=kept)
      for expert, gate, wants, position, kept, demand, load in zip(
          experts, gates, wanted,
          *(filled[i:i + k] for i in range(0, 4 * k, k))))


def _weight_if_kept(gate, kept):
  """The gate where `kept` is one; zero elsewhere, even if the gate is NaN.

  Then what has a weight has a slot of its own, also in a router that diverged.
  """
  return mtf.cwise(
      tf.math.multiply_no_nan, [gate, kept],
      grad_function=lambda op, grad: [grad * op.inputs[1], None],
      name="weight_if_kept")


def _fill(num_experts, capacity, k, *choices):
  """Fills the buffers.

  Args:
    num_experts: an integer, x.
    capacity: an integer, c.
    k: an integer, how many choices a token has.
    *choices: k times `expert`, int32 [<batch>, s], then k times `wants`,
      float32 [<batch>, s], then the priority, float32 [<batch>, s], if any.

  Returns:
    k times each of these, one after the other:
    position: int32 [<batch>, s], counted from the first slot of the buffer.
    kept: float32 [<batch>, s], one where the choice is wanted and fits.
    demand: float32 [<batch>, x], how many tokens want each expert.
    load: float32 [<batch>, x], how many of them get a slot.
  """
  in_order, back = fill_order.orders(*choices[2 * k:])
  # All first choices, then all second ones: the order in which slots go.
  experts, wants = (
      tf.concat([in_order(one) for one in choices[i:i + k]], -1)
      for i in (0, k))
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

  def of_tokens(x):
    return [back(one) for one in tf.split(x, k, axis=-1)]

  return (*of_tokens(position), *of_tokens(tf.cast(kept, tf.float32)),
          *counts(mask),
          *counts(mask * tf.cast(kept, tf.int32)[..., tf.newaxis, :]))
