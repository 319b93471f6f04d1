"""The two-level mixture of experts.

Tokens choose a group of experts (x), travel to it along one axis of the mesh,
choose an expert inside it (y), travel along the other axis, and come back the
same way.

Dimension letters, here and in every shape comment of the package:

    a, b  batch                     m     depth of the inputs
    l     length                    n     depth of the outputs
    g, h  number of groups          x, y  number of experts
    s, t  tokens in a group         c, d  capacity: slots of one expert's
                                          buffer for one group

The first of each pair belongs to the first level, the second to the second. A
digit after a letter is the axis of the mesh that the dimension is split over, 0
the outer axis and 1 the inner; a letter without one is not split.
"""

from collections.abc import Callable
import dataclasses

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import arguments
from mtf_moe import dispatch
from mtf_moe import experts as experts_lib
from mtf_moe import levels
from mtf_moe import monitoring
from mtf_moe import operations
from mtf_moe.gating import switch
from mtf_moe.gating import top_2
from mtf_moe.hparams import MoeHparams
from mtf_moe.levels import MeshSplit

_ROUTERS = {"top_2": top_2.route, "switch": switch.route}


def transformer_moe_layer_v2(
    inputs, output_dim, hparams, train, variable_dtype=None, layout=None,
    mesh_shape=None, nonpadding=None, num_microbatches=None,
    token_embeddings=None, experts=experts_lib.feed_forward, activation=None,
    master_dtype=None, slice_dtype=None, activation_dtype=None):
  """Two-level mixture of experts in place of a feed-forward layer.

  After Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, appendix B. A
  token is processed by none to three experts: up to two in the group of experts
  it likes best, at most one in its second. The sizes of groups and buffers
  depend on the mesh, since no group may be cut.

  A token with NaN or infinite values goes to no expert, as padding does, and
  its result is zero: no other token notices.

  Variables: "outer_gating/kernel" [m, x], "inner_gating/kernel" [x1, m, y],
  and, of the default experts, "wi/kernel" [y0, x1, m, hidden] and "wo/kernel"
  [y0, x1, hidden, n].

  Args:
    inputs: a Tensor [a, b, l, m], or [b, l, m] where there is one batch
      dimension, or [b, m] where there is one position.
    output_dim: the Dimension n of the outputs (it may be the inputs').
    hparams: a `MoeHparams`, or a mapping or object with `moe_*` names (see
      `MoeHparams.of`).
    train: a boolean.
    variable_dtype: a mtf.VariableDType, or one type for all that it says. The
      default is float32, and computation in the type of what they multiply.
    layout: an optional input to mtf.convert_to_layout_rules, or a mapping.
    mesh_shape: an optional input to mtf.convert_to_shape, or a mapping. Without
      both, nothing is taken to be split.
    nonpadding: an optional Tensor that broadcasts to the shape of `inputs`
      without m, with ones at tokens and zeros at padding, which uses no expert;
      or a number for all of them.
    num_microbatches: an optional integer, into how many parts the training
      step is cut; the balancing losses are divided by it.
    token_embeddings: an optional Tensor shaped as `inputs`, the word
      embeddings, needed where hparams.moe_word_embed_mode is set.
    experts: the network inside the experts, a callable with the signature of
      `experts.feed_forward`.
    activation: if not None, in place of hparams.moe_activation.
    master_dtype, slice_dtype, activation_dtype: in place of `variable_dtype`,
      the parts of it.

  Returns:
    outputs: a Tensor shaped as `inputs`, with n in place of m.
    loss: a scalar of the same type, to be added to the training loss.

  Raises:
    ValueError: if a hyperparameter or an argument is not allowed, the inputs
      have another rank, or the mesh does not divide the batch or the experts.
  """
  hparams = MoeHparams.of(hparams)
  if activation is not None:
    hparams = dataclasses.replace(hparams, moe_activation=activation)
  # Routers compute in float32, experts in the type of the inputs.
  router_dtype, expert_dtype = (
      arguments.variable_dtype(
          variable_dtype, master_dtype, slice_dtype, activation_dtype, dtype)
      for dtype in (tf.float32, inputs.dtype))
  *token_dims, m = inputs.shape.dims
  mesh = MeshSplit(layout, mesh_shape)
  a0, b1, l = _batch_and_length(token_dims, mesh)
  outer, inner = levels.two_levels(a0, b1, l, hparams, train, mesh)

  tokens = mtf.reshape(inputs, outer.token_dims + [m])  # [a0, g1, s, m]
  importance = finite = _is_finite(tokens, m)  # [a0, g1, s]
  tokens = _zero_unless(finite, tokens)
  embeddings = None
  if nonpadding is not None:
    nonpadding = mtf.reshape(
        arguments.nonpadding(nonpadding, inputs), outer.token_dims)
    tokens = operations.with_zero_gradients(tokens, [nonpadding])
    importance *= nonpadding
  if hparams.moe_word_embed_mode is not None and token_embeddings is not None:
    embeddings = mtf.reshape(
        mtf.cast(token_embeddings, inputs.dtype), tokens.shape)

  mixture = Mixture(
      outer, inner, output_dim, hparams, train, router_dtype, expert_dtype,
      num_microbatches, experts)
  outputs, routings = mixture.first_level(tokens, importance, embeddings)
  # Inside the loop over microbatches there is nothing that could be recorded.
  if train and hparams.moe_summaries and (num_microbatches or 1) == 1:
    x, y = outer.experts_unsplit, inner.experts_unsplit
    monitoring.record_layer("outer", finite, outputs)
    monitoring.record("outer", routings[0], [x])
    monitoring.record("inner", routings[1], [outer.experts, y])
  return (mtf.reshape(outputs, token_dims + [output_dim]),
          _auxiliary_loss(routings, hparams, inputs.dtype))


@dataclasses.dataclass(frozen=True)
class Mixture:
  """The two levels, each: choose, move, transform, move back."""

  outer: levels.Level
  inner: levels.Level
  output_dim: mtf.Dimension
  hparams: MoeHparams
  train: bool
  router_dtype: mtf.VariableDType
  expert_dtype: mtf.VariableDType
  num_microbatches: int | None
  experts: Callable[..., mtf.Tensor]

  def first_level(self, tokens, importance, embeddings):
    """Sends tokens to groups of experts; the second level transforms them.

    Args:
      tokens: a Tensor [a0, g1, s, m].
      importance: a Tensor [a0, g1, s].
      embeddings: a Tensor [a0, g1, s, m], or None.

    Returns:
      a Tensor [a0, g1, s, n], and the `Routing` of both levels.
    """
    outer = self.outer
    gating, _ = self.hparams.gating_per_level
    routed = self._route(
        gating, tokens, outer, None, importance, embeddings, "outer_gating")
    move = self._dispatcher(routed, tokens.dtype)

    def sent(x):  # [a0, g1, s, m] -> [x, a0, g1, c, m]
      at_experts = outer.to_experts(move.dispatch(x))  # [x1, a0, g, c, m]
      return mtf.reshape(
          at_experts, self.inner.token_dims + x.shape.dims[-1:])  # [x1,h0,t,m]

    slot_importance = outer.to_experts(
        _slot_importance(
            move.slot_weights(), routed.first_choice_above))  # [x1, a0, g, c]
    outputs, routed_inner = self.second_level(
        sent(tokens), mtf.reshape(slot_importance, self.inner.token_dims),
        None if embeddings is None else sent(embeddings))  # [x1, h0, t, n]
    outputs = mtf.reshape(
        outputs, slot_importance.shape.dims + [self.output_dim])
    outputs = move.combine(outer.to_groups(outputs))  # [a0, g1, s, n]
    return outputs, [routed, routed_inner]

  def second_level(self, tokens, importance, embeddings):
    """Sends tokens to experts, which transform them.

    Args:
      tokens: a Tensor [x1, h0, t, m].
      importance: a Tensor [x1, h0, t].
      embeddings: a Tensor [x1, h0, t, m], or None.

    Returns:
      a Tensor [x1, h0, t, n], and the `Routing`.
    """
    inner = self.inner
    x1, y0 = self.outer.experts, inner.experts
    _, gating = self.hparams.gating_per_level
    routed = self._route(
        gating, tokens, inner, [x1], importance, embeddings, "inner_gating")
    move = self._dispatcher(routed, tokens.dtype)
    expert_inputs = inner.to_experts(move.dispatch(tokens))  # [y0, x1, h, d, m]
    expert_outputs = self.experts(
        expert_inputs, self.output_dim, [y0, x1], self.hparams, self.train,
        self.expert_dtype)  # [y0, x1, h, d, n]
    return move.combine(inner.to_groups(expert_outputs)), routed

  @property
  def _dispatcher(self):
    return dispatch.DISPATCHERS[self.hparams.moe_dispatch]

  def _route(self, gating, tokens, level, outer_expert_dims, importance,
             embeddings, name):
    return _ROUTERS.get(gating, gating)(
        tokens, outer_expert_dims, level.experts_unsplit, level.capacity,
        self.hparams, self.train, self.router_dtype, importance=importance,
        name=name, num_microbatches=self.num_microbatches,
        token_embeddings=embeddings)


def _batch_and_length(dims, mesh):
  """The Dimensions (a0, b1, l) of tokens, some of which may have to be made."""
  named = bool(dims) and dims[0].name == levels.OUTER_BATCH
  outer = dims[:1] if len(dims) == 3 or named else [mesh.inserted_outer_batch()]
  batch = dims[1:] if outer == dims[:1] else dims
  if len(batch) not in (1, 2):
    raise ValueError(
        f"The layer's inputs have the dimensions {dims} and a depth, and it "
        "takes [batch, length, depth], [outer_batch, batch, length, depth] or "
        "[batch, depth]: reshape them, or use MoE2D, which does.")
  position = [] if len(batch) == 2 else [mtf.Dimension("length", 1)]
  return *outer, *batch, *position


def _is_finite(tokens, depth):
  """Ones at tokens [..., m] without NaN and infinite values, [...].

  A token so large that its sum is infinite counts as such.
  """
  return mtf.cwise(
      lambda total: tf.cast(tf.math.is_finite(total), total.dtype),
      [mtf.reduce_sum(tokens, reduced_dim=depth)], grad_function=0)


def _zero_unless(finite, tokens):
  """Tokens [..., m], and zeros in place of those where `finite` [...] is zero.

  A product would not do: zero times NaN is NaN, and products with zeros and
  ones move tokens, so all of a group, and all gradients, would be NaN.
  """
  def gradient(op, grad):
    return [_zero_unless(op.inputs[1], grad), None]

  return mtf.slicewise(
      lambda x, finite: tf.where_v2(
          finite[..., tf.newaxis] > 0, x, tf.zeros([], x.dtype)),
      [tokens, finite], splittable_dims=tokens.shape.dims,
      grad_function=gradient, name="zero_unless_finite")


def _slot_importance(weights, first_choice_above):
  """How much a slot's token matters to the second level, float32.

  1 if the token prefers this group of experts, 0.5 if this is its second
  choice, 0 if the slot is empty.
  """
  return 0.5 * (mtf.to_float(mtf.greater(weights, first_choice_above))
                + mtf.to_float(mtf.greater(weights, 0.0)))


def _auxiliary_loss(routings, hparams, dtype):
  """What both levels add to the training loss, a scalar of the given type."""
  loss = hparams.moe_loss_coef * mtf.add_n(
      [mtf.cast(routed.balance_loss, dtype) for routed in routings])
  # The z-loss has a weight of its own, which the coefficient leaves alone.
  for routed in routings:
    if routed.z_loss is not None:
      loss += mtf.cast(routed.z_loss, dtype)
  return loss
