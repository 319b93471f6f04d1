"""The sizes of the mixtures in a model, and how well balanced tokens fit them.
"""

import dataclasses
import math

import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import layer
from mtf_moe import levels
from mtf_moe import monitoring
from mtf_moe import transformer_layers
from mtf_moe.plan import step as step_lib

# Of the tokens whose routing is tried out, as many as make these groups at the
# first level, or the fewest that fill a group at the second.
_GROUPS = 16


@dataclasses.dataclass(frozen=True)
class LevelSizes:
  """One level of a mixture.

  Attributes:
    experts: x, or y of each x.
    groups: in a microbatch, on all cores; of each x at the second level.
    group_size: s or t.
    capacity: c or d.
    asked_factor: the capacity factor that was asked for.
    asked_group_size: the group size that was asked for.
  """

  experts: int
  groups: int
  group_size: int
  capacity: int
  asked_factor: float
  asked_group_size: int

  @property
  def group_size_text(self) -> str:
    """The size of a group, beside the one asked for where it is larger."""
    if self.group_size <= self.asked_group_size:
      return f"{self.group_size:,}"
    return f"{self.group_size:,} (asked for: {self.asked_group_size:,})"

  @property
  def real_factor(self) -> float:
    """The slots of all experts over the tokens of a group, after rounding."""
    return self.experts * self.capacity / self.group_size


@dataclasses.dataclass(frozen=True)
class Balanced:
  """What becomes of tokens that like all experts equally well, as shares.

  Attributes:
    empty_slots: of the slots of the experts' buffers, which are those of the
      second level.
    lost_tokens: of the tokens, those that reach no expert.
    experts_per_token: how many a token reaches, on average.
  """

  empty_slots: float
  lost_tokens: float
  experts_per_token: float


@dataclasses.dataclass(frozen=True)
class Mixture:
  """One or several layers of the same sizes.

  Attributes:
    layers: the names of the layers.
    outer: the first level.
    inner: the second level.
    balanced: what balanced routing would make of it.
    slots_per_token: that the experts compute, in training.
    slots_per_token_in_use: where the model scores, decodes or is exported.
  """

  layers: tuple[str, ...]
  outer: LevelSizes
  inner: LevelSizes
  balanced: Balanced
  slots_per_token: float
  slots_per_token_in_use: float


def find(step: step_lib.LoweredStep) -> list[Mixture]:
  """The mixtures of a model, those of the same sizes together.

  They have the parameters that gin gives MoE2D outside of all scopes.

  Args:
    step: a `LoweredStep`.

  Returns:
    a list of `Mixture`s
  """
  hparams = transformer_layers.MoE2D().hparams
  by_levels = {}
  for variable in step.model_variables:
    name, is_router, _ = variable.name.partition("/outer_gating/kernel")
    if is_router:
      outer, inner = _levels(step.configured, name, hparams, train=True)
      in_use = _slots_per_token(*_levels(
          step.configured, name, hparams.for_inference(), train=False))
      by_levels.setdefault(
          (outer.group_size, outer.groups, inner.group_size, inner.groups),
          (outer, inner, in_use, []))[-1].append(name)
  return [
      Mixture(
          tuple(names),
          _sizes(outer, outer.batch_dims[0].size,
                 hparams.capacity_factor(train=True), hparams),
          _sizes(inner, 1, hparams.moe_capacity_factor_second_level, hparams),
          balanced(outer, inner, hparams),
          _slots_per_token(outer, inner), in_use)
      for outer, inner, in_use, names in by_levels.values()]


def _slots_per_token(outer, inner):
  slots = (inner.batch_dims[0].size * inner.groups.size * inner.experts.size
           * inner.capacity.size)
  return slots / math.prod(dim.size for dim in outer.token_dims)


def _levels(configured, layer_name, hparams, train):
  """Both levels of a layer, as it makes them in a microbatch."""
  feature = "inputs" if layer_name.startswith("encoder") else "targets"
  mesh = levels.MeshSplit(configured.layout, configured.mesh_shape)
  dims = configured.microbatch_dims
  if len(dims) == 1:
    dims = [mesh.inserted_outer_batch(), *dims]
  length = mtf.Dimension("length", configured.lengths[feature])
  return levels.two_levels(*dims, length, hparams, train, mesh)


def _sizes(level, num_batches, factor, hparams):
  return LevelSizes(
      level.experts.size, num_batches * level.groups.size,
      level.group_size.size, level.capacity.size, factor,
      hparams.moe_group_size)


def balanced(outer, inner, hparams) -> Balanced:
  """Routes random tokens, whose gates favour no expert, with the real layer.

  Logits are normal with a variance of 1, which matters to policies that look
  at the second gate.

  Args:
    outer: the `Level` of groups of experts; its groups may be fewer here.
    inner: the `Level` of experts.
    hparams: a `MoeHparams`.

  Returns:
    a `Balanced`
  """
  outer, inner = _some_groups(outer, inner)
  x, y = outer.experts_unsplit, inner.experts_unsplit
  # Tokens are their own logits, those of the outer router and those of all
  # inner ones.
  depth = mtf.Dimension("logits", x.size + y.size)
  kernels = {
      "outer_gating/kernel": np.eye(depth.size, x.size),
      "inner_gating/kernel": np.broadcast_to(
          np.eye(depth.size, y.size, -x.size), [x.size, depth.size, y.size])}
  with tf.Graph().as_default():
    tf.set_random_seed(0)
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "balanced")
    shape = mtf.Shape(outer.token_dims + [depth])
    tokens = mtf.import_tf_tensor(
        mesh, tf.random.normal(shape.to_integer_list), shape)
    share = mtf.Dimension("share", 1)
    mixture = layer.Mixture(
        outer, inner, share,
        dataclasses.replace(hparams, moe_dispatch="index",
                            moe_word_embed_mode=None),
        True, mtf.VariableDType(), mtf.VariableDType(), None, _ones)
    outputs, (_, routed) = mixture.first_level(
        tokens, mtf.ones(mesh, mtf.Shape(outer.token_dims)), None)
    counts = monitoring.ledger(routed)
    lost = mtf.reduce_mean(mtf.to_float(mtf.equal(outputs, 0.0)))
    lowering = mtf.Lowering(graph, {mesh: _one_slice()}, autostack=False)
    fetches = [lowering.export_to_tf_tensor(t) for t in (
        counts["slots/empty"], counts["slots"], lost)]
    with tf.Session() as session:
      session.run(tf.global_variables_initializer())
      for variable in tf.global_variables():
        variable.load(kernels[variable.op.name], session)
      session.run(lowering.copy_masters_to_slices())
      empty, slots, lost = session.run(fetches)
  num_tokens = shape.size / depth.size
  return Balanced(
      float(empty / slots), float(lost), float((slots - empty) / num_tokens))


def _some_groups(outer, inner):
  """The same levels with fewer groups, of one outer batch."""
  fill_inner = inner.group_size.size // math.gcd(
      inner.group_size.size, outer.capacity.size)
  num_groups = fill_inner * -(-_GROUPS // fill_inner)
  groups = mtf.Dimension(outer.groups.name, num_groups)
  one = mtf.Dimension(outer.batch_dims[0].name, 1)
  num_inner = num_groups * outer.capacity.size // inner.group_size.size
  return (dataclasses.replace(outer, batch_dims=[one], groups=groups),
          dataclasses.replace(
              inner, groups=mtf.Dimension(inner.groups.name, num_inner)))


def _ones(inputs, output_dim, *unused_args):
  """Experts that do nothing: what comes back is above zero where one is."""
  return mtf.ones(
      inputs.mesh, mtf.Shape(inputs.shape.dims[:-1] + [output_dim]))


def _one_slice():
  return mtf.placement_mesh_impl.PlacementMeshImpl(
      mtf.Shape([]), mtf.LayoutRules([]), [""])
