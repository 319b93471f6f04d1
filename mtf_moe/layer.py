"""The mixture of experts, of one, two or any number of levels.

Tokens choose a group of experts (x), travel to it along one axis of the mesh,
choose an expert inside it (y), travel along another axis, and come back the
same way. One level has x only; more go on in the same way.

Dimension letters, here and in every shape comment of the package:

    a, b  batch                     m     depth of the inputs
    l     length                    n     depth of the outputs
    g, h  number of groups          x, y  number of experts
    s, t  tokens in a group         c, d  capacity: slots of one expert's
                                          buffer for one group

The first of each pair belongs to the first level, the second to the second
(but for batches: the first level cuts b into groups, the second a). A digit
after a letter is the axis of the mesh that the dimension is split over, 0 the
outer axis and 1 the inner; a letter without one is not split.
"""

from collections.abc import Callable
import dataclasses

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import arguments
from mtf_moe import dispatch
from mtf_moe import experts as experts_lib
from mtf_moe import gating
from mtf_moe import knobs
from mtf_moe import layer_records
from mtf_moe import levels as levels_lib
from mtf_moe import mesh_split
from mtf_moe import monitoring
from mtf_moe import operations
from mtf_moe import shared_expert
from mtf_moe import token_ids as token_ids_lib
from mtf_moe.hparams import Level
from mtf_moe.hparams import MoeHparams


def transformer_moe_layer_v1(
    inputs, output_dim, hparams, train, variable_dtype=None, layout=None,
    mesh_shape=None, nonpadding=None, activation=None, num_microbatches=None,
    token_embeddings=None, experts=experts_lib.feed_forward, master_dtype=None,
    slice_dtype=None, activation_dtype=None, token_ids=None):
  """One level of experts in place of a feed-forward layer.

  See `transformer_moe_layer`, which says what all of the layer's faces share.

  Variables: "<router>_gating/kernel" [m, x], such as "top_2_gating/kernel",
  and, of the default experts, "wi/kernel" [x1, m, hidden] and "wo/kernel"
  [x1, hidden, n], or with hparams.moe_use_experts_attention, "q_wo/kernel" and
  "k_wo/kernel" in place of the last.

  Args:
    inputs: a Tensor [b, ..., m] or [outer_batch, b, ..., m]. The dimensions
      behind b are merged with it. Those of the name "outer_batch" are not: each
      of its parts has all the experts, so that a layout which splits it keeps
      copies of them.

  Returns:
    outputs: a Tensor shaped as `inputs`, with n in place of m; or two of them,
      with hparams.moe_use_experts_attention.
    loss: a scalar of the same type, to be added to the training loss.
  """
  return apply(
      inputs, output_dim, MoeHparams.of(hparams, 1), train, num_levels=1,
      layout=layout, mesh_shape=mesh_shape, nonpadding=nonpadding,
      num_microbatches=num_microbatches, token_embeddings=token_embeddings,
      token_ids=token_ids, experts=experts, activation=activation,
      variable_dtype=variable_dtype, master_dtype=master_dtype,
      slice_dtype=slice_dtype, activation_dtype=activation_dtype)


def transformer_moe_layer_v2(
    inputs, output_dim, hparams, train, variable_dtype=None, layout=None,
    mesh_shape=None, nonpadding=None, num_microbatches=None,
    token_embeddings=None, experts=experts_lib.feed_forward, activation=None,
    master_dtype=None, slice_dtype=None, activation_dtype=None,
    token_ids=None):
  """Two levels of experts in place of a feed-forward layer.

  See `transformer_moe_layer`, which says what all of the layer's faces share.
  With the default router, a token is processed by none to three experts: up to
  two in the group of experts it likes best, at most one in its second.

  Variables: "outer_gating/kernel" [m, x], "inner_gating/kernel" [x1, m, y],
  and, of the default experts, "wi/kernel" [y0, x1, m, hidden] and "wo/kernel"
  [y0, x1, hidden, n].

  Args:
    inputs: a Tensor [a, b, l, m], or [b, l, m] where there is one batch
      dimension, or [b, m] where there is one position.

  Returns:
    outputs: a Tensor shaped as `inputs`, with n in place of m.
    loss: a scalar of the same type, to be added to the training loss.
  """
  return apply(
      inputs, output_dim, MoeHparams.of(hparams, 2), train, num_levels=2,
      layout=layout, mesh_shape=mesh_shape, nonpadding=nonpadding,
      num_microbatches=num_microbatches, token_embeddings=token_embeddings,
      token_ids=token_ids, experts=experts, activation=activation,
      variable_dtype=variable_dtype, master_dtype=master_dtype,
      slice_dtype=slice_dtype, activation_dtype=activation_dtype)


def transformer_moe_layer(
    inputs, output_dim, hparams, train, variable_dtype=None, layout=None,
    mesh_shape=None, nonpadding=None, num_microbatches=None,
    token_embeddings=None, experts=experts_lib.feed_forward, activation=None,
    master_dtype=None, slice_dtype=None, activation_dtype=None,
    levels=None, token_ids=None):
  """Any number of levels of experts in place of a feed-forward layer.

  After Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, appendix B. The
  sizes of groups and buffers depend on the mesh, since no group may be cut.

  A token with NaN or infinite values goes to no expert, as padding does, and
  its result is zero: no other token notices.

  With one and two levels, variables and dimensions are those of
  `transformer_moe_layer_v1` and `transformer_moe_layer_v2`. With more, level k
  has the variable "gating_<k>/kernel" [<experts above>, m, expert_<k>] and the
  dimensions "expert_<k>", "group_size_<k>" and "expert_capacity_<k>". The
  variables of a shared expert are below "shared_expert" (see `shared_expert`).

  Args:
    inputs: a Tensor [<as many batch dims as levels>, l, m]. There may be fewer
      batch dims, and no l; what the outermost levels lack is taken to be of
      size 1, so that their tokens come from all of the batch.
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
    token_ids: an optional integer Tensor that broadcasts to the shape of
      `inputs` without m, which the router "hash" chooses by.
    experts: the network inside the experts, a callable with the signature of
      `experts.feed_forward`.
    activation: if not None, in place of hparams.moe_activation.
    master_dtype: with the next two, in place of `variable_dtype`.
    slice_dtype: likewise.
    activation_dtype: likewise.
    levels: if not None, in place of hparams.moe_num_experts: the experts of
      each level, or a `Level` for each.

  Returns:
    outputs: a Tensor shaped as `inputs`, with n in place of m (a list of them
      where `experts` returns one).
    loss: a scalar of the same type, to be added to the training loss.

  Raises:
    ValueError: if a hyperparameter or an argument is not allowed, the inputs
      have another rank, or the mesh does not divide the batch or the experts.
  """
  hparams = MoeHparams.of(hparams)
  if levels is not None:
    hparams = with_levels(hparams, levels)
  return apply(
      inputs, output_dim, hparams, train,
      layout=layout, mesh_shape=mesh_shape, nonpadding=nonpadding,
      num_microbatches=num_microbatches, token_embeddings=token_embeddings,
      token_ids=token_ids, experts=experts, activation=activation,
      variable_dtype=variable_dtype, master_dtype=master_dtype,
      slice_dtype=slice_dtype, activation_dtype=activation_dtype)


def with_levels(hparams: MoeHparams, levels) -> MoeHparams:
  """The same with other levels: their experts, or a `Level` for each."""
  if not isinstance(levels, list | tuple):
    raise knobs.Mistake("levels", levels, (
        "must be a list with the number of experts of each level, such as "
        "[4, 4, 4], or with a Level for each."))
  if any(isinstance(level, Level) for level in levels):
    return dataclasses.replace(
        hparams, moe_levels=levels,
        moe_num_experts=MoeHparams.default("moe_num_experts"))
  return dataclasses.replace(
      hparams, moe_levels=None, moe_num_experts=tuple(levels))


def apply(
    inputs, output_dim, hparams: MoeHparams, train, *, num_levels=None,
    layout=None, mesh_shape=None, nonpadding=None, num_microbatches=None,
    token_embeddings=None, token_ids=None, experts=experts_lib.feed_forward,
    activation=None, variable_dtype=None, master_dtype=None, slice_dtype=None,
    activation_dtype=None, called=None):
  """See `transformer_moe_layer`.

  Args:
    inputs, ..., activation_dtype: as there.
    num_levels: an integer, which hparams have to have, or None.
    called: how the layer is called in gin, if it is.
  """
  if num_levels not in (None, len(hparams.levels)):
    raise knobs.Mistake("num_experts", hparams.moe_num_experts, (
        f"has {len(hparams.levels)} levels, and the layer has {num_levels}: "
        "give as many numbers of experts, or use the layer for that many."))
  if activation is not None:
    hparams = dataclasses.replace(hparams, moe_activation=activation)
  # Routers compute in float32, experts in the type of the inputs.
  router_dtype, expert_dtype = (
      arguments.variable_dtype(
          variable_dtype, master_dtype, slice_dtype, activation_dtype, dtype)
      for dtype in (tf.float32, inputs.dtype))
  *given_dims, m = inputs.shape.dims
  mesh = mesh_split.MeshSplit(layout, mesh_shape)
  batch_dims, l = levels_lib.batch_and_length(
      given_dims, len(hparams.levels), mesh)
  levels = levels_lib.size(batch_dims, l, hparams, train, mesh)
  token_dims = levels[0].token_dims

  tokens = mtf.reshape(inputs, token_dims + [m])  # [a0, g1, s, m]
  importance = finite = operations.is_finite(tokens, m)  # [a0, g1, s]
  tokens = operations.zero_unless(finite, tokens)
  embeddings = None
  if nonpadding is not None:
    nonpadding = mtf.reshape(
        arguments.nonpadding(nonpadding, inputs), token_dims)
    tokens = operations.with_zero_gradients(tokens, [nonpadding])
    importance *= nonpadding
  if token_embeddings is not None and any(
      level.settings.word_embed_mode is not None for level in levels):
    embeddings = mtf.reshape(
        mtf.cast(token_embeddings, inputs.dtype), tokens.shape)
  if token_ids is not None:
    token_ids = mtf.reshape(
        arguments.token_ids(token_ids, inputs), token_dims)

  mixture = Mixture(
      output_dim, hparams, train, router_dtype, expert_dtype, num_microbatches,
      experts)
  outputs, routings = mixture(
      levels, Arrivals(tokens, importance, embeddings, lambda: token_ids))
  outputs = shared_expert.added(
      outputs, tokens, importance, output_dim, hparams, train, expert_dtype,
      experts)
  layer_records.add(
      inputs.graph, called=called, levels=tuple(levels), hparams=hparams,
      batch_dims=tuple(batch_dims), length=l, mesh=mesh)
  loss = _auxiliary_loss(routings, hparams, inputs.dtype)
  # Inside the loop over microbatches there is nothing that could be recorded.
  if train and hparams.moe_summaries and (num_microbatches or 1) == 1:
    monitoring.record(levels, routings, finite, outputs, loss,
                      hparams.moe_dispatch)
  outputs = [mtf.reshape(one, given_dims + one.shape.dims[-1:])
             for one in outputs]
  return outputs if len(outputs) > 1 else outputs[0], loss


@dataclasses.dataclass(frozen=True)
class Arrivals:
  """What comes to a level.

  The functions are called by routers that need what they return, so that
  nothing else travels.

  Attributes:
    tokens: a Tensor [a0, g1, s, m].
    importance: a Tensor [a0, g1, s].
    embeddings: a Tensor [a0, g1, s, m], or None.
    ids: a function that returns int32 [a0, g1, s], or None.
    above: a function that returns a `gating.Above`; None at the first level.
  """

  tokens: mtf.Tensor
  importance: mtf.Tensor
  embeddings: mtf.Tensor | None
  ids: Callable[[], mtf.Tensor | None]
  above: Callable[[], gating.Above] | None = None


@dataclasses.dataclass(frozen=True)
class Mixture:
  """The levels, each: choose, move, transform, move back."""

  output_dim: mtf.Dimension
  hparams: MoeHparams
  train: bool
  router_dtype: mtf.VariableDType
  expert_dtype: mtf.VariableDType
  num_microbatches: int | None
  experts: Callable[..., mtf.Tensor]

  def __call__(self, levels, arrivals):
    """Sends tokens to experts, or to what the levels below make of them.

    Args:
      levels: a list of `SizedLevel`s.
      arrivals: an `Arrivals`.

    Returns:
      a list of Tensors [a0, g1, s, n], one if the experts have one output, and
      the `Routing` of every level.
    """
    level, *below = levels
    depth = arrivals.tokens.shape.dims[-1]
    try:
      routed = gating.route(
          level.settings.router, arrivals.tokens, level.experts_above or None,
          level.experts_unsplit, level.capacity, level.settings, self.train,
          self.router_dtype, importance=arrivals.importance,
          name=level.names.router, num_microbatches=self.num_microbatches,
          token_embeddings=arrivals.embeddings, token_ids=arrivals.ids,
          above=arrivals.above)
    except knobs.Mistake as mistake:
      if self.hparams.moe_levels is None:
        raise
      raise mistake.of_level(len(level.experts_above)) from None
    move = dispatch.DISPATCHERS[self.hparams.moe_dispatch](
        routed, arrivals.tokens.dtype)
    # [a0, g1, s, m] -> [x, a0, g1, c, m] -> [x1, a0, g, c, m]
    arrived = level.to_experts(move.dispatch(arrivals.tokens), depth)
    routings = []
    if not below:
      outputs = self.experts(
          arrived, self.output_dim, level.expert_dims, self.hparams,
          self.train, self.expert_dtype)  # [x1, a0, g, c, n]
    else:
      outputs, routings = self(
          below, self._below(below[0], level, arrivals, arrived, routed, move))
      outputs = [
          mtf.reshape(one, arrived.shape.dims[:-1] + one.shape.dims[-1:])
          for one in outputs]  # [x1, a0, g, c, n]
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return ([move.combine(level.to_groups(one, one.shape.dims[-1]))
             for one in outputs], [routed, *routings])

  def _below(self, below, level, arrivals, arrived, routed, move):
    """What a level sends to the one below.

    Args:
      below: the `SizedLevel` that gets it.
      level: the `SizedLevel` that sends it.
      arrivals: the `Arrivals` of that.
      arrived: a Tensor [x1, a0, g, c, m], the tokens in its buffers.
      routed: its `Routing`.
      move: its `Dispatcher`.

    Returns:
      an `Arrivals`
    """
    def as_tokens(x, *depth):  # [x1, a0, g, c, ...] -> [x1, h0, t, ...]
      return mtf.reshape(x, [*below.token_dims, *depth])

    def sent(x, whole=False):  # [a0, g1, s, ...] -> [x1, h0, t, ...]
      depth = x.shape.dims[-1]
      return as_tokens(level.to_experts(
          move.dispatch(x), None if whole else depth), depth)

    def ids():
      given = arrivals.ids()
      return None if given is None else token_ids_lib.of_rows(
          sent(token_ids_lib.as_rows(given, arrivals.tokens.dtype), whole=True))

    def above():
      weights = as_tokens(level.to_experts(
          mtf.to_float(move.slot_weights())))  # [x1, h0, t]
      if arrivals.above is not None:
        one = mtf.Dimension("_one", 1)
        so_far = arrivals.above().weights  # [a0, g1, s]
        weights *= mtf.to_float(mtf.reshape(
            sent(mtf.cast(mtf.reshape(so_far, so_far.shape + one),
                          arrivals.tokens.dtype), whole=True), weights.shape))
      return gating.Above(
          weights, None if routed.load is None else mtf.rename_dimension(
              routed.load, level.experts_unsplit.name, level.experts.name))

    return Arrivals(
        as_tokens(arrived, arrived.shape.dims[-1]),
        as_tokens(level.to_experts(move.slot_importance())),
        None if arrivals.embeddings is None else sent(arrivals.embeddings),
        ids, above)


def _auxiliary_loss(routings, hparams, dtype):
  """What all levels add to the training loss, a scalar of the given type."""
  losses = [mtf.cast(routed.balance_loss, dtype) for routed in routings]
  coefficients = [
      hparams.moe_loss_coef if level.loss_coef is None else level.loss_coef
      for level in hparams.levels]
  if len(set(coefficients)) == 1:  # Rounds as the reference does.
    loss = coefficients[0] * mtf.add_n(losses)
  else:
    loss = mtf.add_n([coefficient * loss for coefficient, loss
                      in zip(coefficients, losses)])
  # The z-loss has a weight of its own, which the coefficient leaves alone.
  for routed in routings:
    if routed.z_loss is not None:
      loss += mtf.cast(routed.z_loss, dtype)
  return loss
