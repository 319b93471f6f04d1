"""What training records of a layer: where tokens went, and how evenly.

Shapes: `s` is the group size, `x` the experts and `c` the capacity, after any
number of batch dimensions.
"""

from collections.abc import Sequence
import math

import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import dispatch
from mtf_moe import tags
from mtf_moe.gating import routing
from mtf_moe.levels import SizedLevel

# With more experts than this, each one's load is not recorded: the curves would
# be too many to draw, let alone to read.
MAX_EXPERTS_SHOWN = 64


def record(levels: Sequence[SizedLevel], routings: Sequence[routing.Routing],
           finite: mtf.Tensor, outputs: Sequence[mtf.Tensor],
           loss: mtf.Tensor, moves: str):
  """Adds summaries of a layer to the graph, as mtf does: scalars, by name.

  The names are those of `tags`, where the layer's is the current variable
  scope. Nothing is computed in a step that does not fetch them.

  Of the whole layer there are "tokens/not_finite": how many tokens had NaN or
  infinite values and were set aside; "outputs/rms": the root of the mean square
  of what the layer returns; "loss/auxiliary": what it adds to the training
  loss; and the entries of `reached`.

  Args:
    levels: the levels.
    routings: where the tokens of each go.
    finite: a Tensor [..., s], one at a token without such values.
    outputs: Tensors [..., n].
    loss: a scalar.
    moves: how tokens move, a name in `dispatch.DISPATCHERS`.
  """
  finite = mtf.to_float(finite)
  squares = mtf.add_n([
      mtf.reduce_mean(mtf.square(mtf.to_float(one))) for one in outputs])
  _record(tags.LAYER, {
      tags.NOT_FINITE: float(finite.shape.size) - mtf.reduce_sum(finite),
      tags.OUTPUTS: mtf.sqrt(squares * (1.0 / len(outputs))),
      tags.AUXILIARY_LOSS: mtf.to_float(loss),
      **reached(levels, routings, outputs[0].dtype, moves)})
  for level, routed in zip(levels, routings):
    _record(level.names.level, metrics(
        routed, [*reversed(level.experts_above), level.experts_unsplit]))


def _record(level, values):
  scope = tf.get_variable_scope().name
  # mtf puts the variable scope in front of a summary's name.
  with tf.variable_scope(tf.VariableScope(reuse=None, name="")):
    for metric, value in values.items():
      _Record(str(tags.Tag(scope, level, metric)), value)


class _Record(mtf.ScalarSummaryOperation):
  """`mtf.scalar_summary`, made once where a layer is computed twice.

  mtf copies the operations of a function that it computes again on the backward
  pass. A second summary would have the same name, and the same value.
  """

  def __copy__(self):
    copied = _Forgotten.__new__(_Forgotten)
    copied.__dict__.update(vars(self))
    return copied


class _Forgotten(mtf.Operation):
  """The copy of a `_Record`, which is not recorded."""

  def lower(self, lowering):
    lowering.set_tensor_lowering(
        self.outputs[0], lowering.tensors[self.inputs[0]])

  def gradient(self, grad_ys):
    return grad_ys


def metrics(routed: routing.Routing, expert_dims: Sequence[mtf.Dimension]):
  """All that is recorded of a level.

  Args:
    routed: where its tokens go.
    expert_dims: the dimensions that the experts are counted over, x the last:
      [x] at the first level, [x1, y] at the second.

  Returns:
    a dict from name to float32 scalar: the entries of `ledger`, of `balance`
    and of `confidence`, and the losses, "loss/balance" and, where there is one,
    "loss/z" (times its weight).
  """
  found = (ledger(routed) | balance(routed, expert_dims) | confidence(routed)
           | {"loss/balance": routed.balance_loss})
  if routed.z_loss is not None:
    found["loss/z"] = routed.z_loss
  return found


def ledger(routed: routing.Routing):
  """Counts of a level that add up, each a whole number.

      tokens = tokens/padding + tokens/full + tokens/partial
      tokens/full = choices_1/kept + choices_1/dropped
      tokens/full + tokens/partial = (for top_2)
          choices_2/kept + choices_2/dropped + choices_2/refused
      slots = slots/empty + the kept choices

  At the second level a token is a slot of the first one, and padding an empty
  one. "dropped" is what found its expert's buffer full, "refused" what the
  policy does not use. A partial token (importance between 0 and 1) comes from a
  second choice at the level above; `top_2` uses its likeliest expert as its
  second choice.

  Args:
    routed: where the tokens go.

  Returns:
    a dict from name to float32 scalar, exact up to 2^24. Beside the above,
    "tokens/lost": how many that are no padding were taken by no expert
    that they could choose: a shared expert takes all.
  """
  token_dims = routed.gates.shape.dims[:-1]
  num_tokens = math.prod(dim.size for dim in token_dims)
  num_slots = math.prod(dim.size for dim in routed.slot_dims)

  importance = routing.importance(routed)  # [..., s]
  used = mtf.to_float(mtf.greater(importance, 0.0))  # [..., s]
  full = mtf.reduce_sum(mtf.to_float(mtf.equal(importance, 1.0)))
  num_used = mtf.reduce_sum(used)
  taken = mtf.to_float(mtf.greater(
      routed.total_weights(), 0.0))  # [..., s]

  def constant(value):
    return mtf.constant(
        num_used.mesh, value, mtf.Shape([]), dtype=num_used.dtype)

  tally = routed.tally()
  kept = mtf.add_n([count for name, count in tally.items()
                    if name.endswith("/kept")])
  return {
      "tokens": constant(num_tokens),
      "tokens/padding": float(num_tokens) - num_used,
      "tokens/full": full,
      "tokens/partial": num_used - full,
      "tokens/lost": mtf.reduce_sum(used * (1.0 - taken)),
      **tally,
      "slots": constant(num_slots),
      "slots/empty": float(num_slots) - kept,
  }


def reached(levels: Sequence[SizedLevel], routings: Sequence[routing.Routing],
            dtype, moves: str) -> dict[str, mtf.Tensor]:
  """Which experts tokens reach in the end, through all levels.

  What a level drops takes with it all that the levels below would have done.
  Counts are added up on the way back, as results are.

  Args:
    levels: the levels.
    routings: where the tokens of each go.
    dtype: a tf.DType, that of the tokens on their way.
    moves: how they move, a name in `dispatch.DISPATCHERS`.

  Returns:
    a dict from name to float32 scalar: counts of tokens, "tokens/used" (no
    padding), "tokens/no_expert" and "tokens/fewer_experts" (some of those that
    they chose, not all); "tokens/experts_each", how many experts a token
    reaches, on average. A shared expert does not count.
  """
  both = mtf.Dimension("reached_and_lost", 2)
  counts = None  # Of the level below, [x1, h0, t, 2].
  for level, routed in zip(reversed(levels), reversed(routings)):
    move = dispatch.DISPATCHERS[moves](routed, dtype)
    if counts is None:
      one = mtf.one_hot(
          mtf.constant(routed.gates.mesh, 0, mtf.Shape([]), tf.int32), both)
      in_slots = mtf.broadcast(
          one, mtf.Shape([*routed.slot_dims, both]))  # [x, a0, g1, c, 2]
    else:
      in_slots = level.to_groups(mtf.reshape(counts, mtf.Shape([
          level.experts, *level.batch_dims, level.groups_unsplit,
          level.capacity, both])))
    lost = routed.lost()  # [a0, g1, s]
    counts = move.collect(in_slots) + mtf.stack(
        [mtf.zeros_like(lost), lost], both.name, axis=lost.shape.ndims)
  number, lost = mtf.unstack(counts, both)  # [a0, g1, s]
  used = mtf.to_float(mtf.greater(routing.importance(routings[0]), 0.0))
  any_reached = mtf.to_float(mtf.greater(number, 0.0))
  some_lost = mtf.to_float(mtf.greater(lost, 0.0))
  num_used = mtf.reduce_sum(used)
  return {
      tags.USED: num_used,
      tags.NO_EXPERT: mtf.reduce_sum(used * (1.0 - any_reached)),
      tags.FEWER_EXPERTS: mtf.reduce_sum(used * any_reached * some_lost),
      tags.EXPERTS_EACH:
          mtf.reduce_sum(used * number) / mtf.maximum(num_used, 1.0)}


def balance(routed: routing.Routing, expert_dims: Sequence[mtf.Dimension]):
  """How evenly the tokens that wanted an expert spread over the experts.

  From counts before any was dropped, as in Shazeer et al. 2017,
  https://arxiv.org/abs/1701.06538, table 6.

  Args:
    routed: where the tokens go.
    expert_dims: as of `metrics`.

  Returns:
    a dict from name to float32 scalar: "load/max_over_mean" and
    "load/min_over_mean", 1 at perfect balance;
    "load/coefficient_of_variation", 0 there; and for up to `MAX_EXPERTS_SHOWN`
    experts the share of each one, "load/expert_2" or "load/expert_2_0".
  """
  num_experts = math.prod(dim.size for dim in expert_dims)
  demand = mtf.reduce_sum(
      routed.demand(), output_shape=expert_dims)  # [x], or [x1, y]
  # Where nothing was wanted, the shares are zero.
  share = demand / mtf.maximum(mtf.reduce_sum(demand), 1.0)
  mean = 1.0 / num_experts
  entries = {
      tags.MAX_LOAD: mtf.reduce_max(share) / mean,
      tags.MIN_LOAD: mtf.reduce_min(share) / mean,
      "load/coefficient_of_variation": mtf.sqrt(
          mtf.reduce_mean(mtf.square(share - mean))) / mean,
  }
  if num_experts <= MAX_EXPERTS_SHOWN:
    unsplit = [mtf.Dimension(f"expert_{i}_counted", dim.size)
               for i, dim in enumerate(expert_dims)]
    all_experts = mtf.Dimension("all_experts", num_experts)
    shares = mtf.reshape(mtf.reshape(share, unsplit), [all_experts])
    for number, value in enumerate(mtf.unstack(shares, all_experts)):
      index = np.unravel_index(number, [dim.size for dim in expert_dims])
      name = "_".join(map(str, index))
      entries[tags.EXPERT_LOAD + name] = value
  return entries


def confidence(routed: routing.Routing):
  """How sure the router is, on average over all that is no padding.

  Args:
    routed: where the tokens go.

  Returns:
    a dict from name to float32 scalar: "router/entropy" of its probabilities,
    in nats, 0 where it is certain and the logarithm of x where all experts are
    equal; "router/confidence", the probability of the likeliest expert.
  """
  used = mtf.to_float(mtf.greater(routing.importance(routed), 0.0))  # [..., s]
  total = mtf.maximum(mtf.reduce_sum(used), 1.0)
  gates = routed.gates  # [..., s, x]
  entropy = -mtf.reduce_sum(
      gates * mtf.log(mtf.maximum(gates, 1e-30)),
      reduced_dim=routed.experts_dim)  # [..., s]
  largest = mtf.reduce_max(gates, reduced_dim=routed.experts_dim)  # [..., s]
  return {tags.ENTROPY: mtf.reduce_sum(entropy * used) / total,
          "router/confidence": mtf.reduce_sum(largest * used) / total}
