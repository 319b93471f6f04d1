"""The dimensions of the levels.

A level cuts the innermost batch dimension that is left into groups, and puts
its experts where that was; the experts of every level but the last are the next
level. Letters are explained in `layer`.
"""

from collections.abc import Sequence
import dataclasses
import logging
import math

import mesh_tensorflow as mtf

from mtf_moe import gating
from mtf_moe import grouping
from mtf_moe import hparams as hparams_lib
from mtf_moe import knobs
from mtf_moe.mesh_split import DEPTH_ON_THE_WAY
from mtf_moe.mesh_split import OUTER_BATCH
from mtf_moe.mesh_split import MeshSplit

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Names:
  """What a level is called in records, checkpoints and layouts.

  Attributes:
    level: in records.
    router: the variable scope of the router, or None for the router's name.
    experts: the dimension; with "_unsplit" as long as tokens choose.
    group_size: the dimension.
    capacity: the dimension.
  """

  level: str
  router: str | None
  experts: str
  group_size: str
  capacity: str


# As mesh_tensorflow's checkpoints and layouts have them.
_NAMES = {
    1: [Names("level_1", None, "experts", "group", "expert_capacity")],
    2: [Names("outer", "outer_gating", "expert_x", "group_size_x",
              "expert_capacity_x"),
        Names("inner", "inner_gating", "expert_y", "group_size_y",
              "expert_capacity_y")]}


def names(num_levels: int) -> list[Names]:
  """The names of all levels, the first one first."""
  return _NAMES.get(num_levels) or [
      Names(f"level_{k}", f"gating_{k}", f"expert_{k}", f"group_size_{k}",
            f"expert_capacity_{k}") for k in range(1, num_levels + 1)]


def batch_names(num_levels: int) -> list[str]:
  """The batch dimensions of a layer's inputs, as far as they have names."""
  inner = [OUTER_BATCH, "batch"][-num_levels:]
  return [f"batch_{k}" for k in range(num_levels, 2, -1)] + inner


def batch_and_length(dims: Sequence[mtf.Dimension], num_levels: int,
                     mesh: MeshSplit
                     ) -> tuple[list[mtf.Dimension], mtf.Dimension]:
  """The batch Dimensions and the length of tokens, made where they lack.

  Args:
    dims: the Dimensions of tokens.
    num_levels: an integer.
    mesh: a `MeshSplit`.

  Returns:
    as many batch Dimensions as there are levels or more, and a Dimension that
    stands for all others

  Raises:
    ValueError: if there are too few or too many.
  """
  if num_levels > 1 and len(dims) == num_levels + 1:
    batch, others = list(dims[:-1]), dims[-1:]
  else:
    number = 2 if dims and dims[0].name == OUTER_BATCH else 1
    batch, others = list(dims[:number]), dims[number:]
    if len(batch) < number or not batch or (num_levels > 1 and len(others) > 1):
      raise ValueError(
          f"The layer's inputs have the dimensions {dims} and a depth, and it "
          "takes [batch, length, depth], [outer_batch, batch, length, depth] "
          "or [batch, depth]: reshape them, or use a class such as MoE2D, "
          "which does.")
  usual = batch_names(num_levels)
  while len(batch) < num_levels:
    batch = [mesh.inserted_batch(usual[-len(batch) - 1]), *batch]
  if len(others) == 1:
    return batch, others[0]
  return batch, mtf.Dimension(
      "length", math.prod(dim.size for dim in others))


def canonical_layout(num_levels: int, axes: list[str]) -> str:
  """The layout that moves tokens by all-to-alls along one axis each.

  Args:
    num_levels: an integer.
    axes: the names of as many axes of a mesh, the outermost first.

  Returns:
    layout rules, as run.layout_rules has them
  """
  experts = [level.experts for level in names(num_levels)]
  rules = [*zip(batch_names(num_levels), axes), *zip(experts, reversed(axes))]
  return ",".join(f"{dim}:{axis}" for dim, axis in rules)


@dataclasses.dataclass(frozen=True)
class SizedLevel:
  """The dimensions of one level, and its settings.

  Groups and experts have two dimensions each, of which the layout splits one:
  renaming one pair while the tensor stays the same moves data between the
  slices of the mesh, in one all-to-all.

  Attributes:
    names: what it is called.
    settings: a `hparams.Level`.
    experts_above: of the levels above, the nearest one first: [], [x1] at the
      second, [y0, x1] at the third.
    outer_dims: the batch dimensions that are left for the levels below.
    groups: g1 or h0.
    groups_unsplit: g or h.
    group_size: s or t.
    experts: x1 or y0.
    experts_unsplit: x or y.
    capacity: c or d.
    sends_depth_in_slices: a boolean, whether the layout splits d_model_split.
  """

  names: Names
  settings: hparams_lib.Level
  experts_above: list[mtf.Dimension]
  outer_dims: list[mtf.Dimension]
  groups: mtf.Dimension
  groups_unsplit: mtf.Dimension
  group_size: mtf.Dimension
  experts: mtf.Dimension
  experts_unsplit: mtf.Dimension
  capacity: mtf.Dimension
  sends_depth_in_slices: bool = False

  @property
  def batch_dims(self) -> list[mtf.Dimension]:
    """The dimensions ahead of the groups: [a0], or [x1] at the second."""
    return self.experts_above + self.outer_dims

  @property
  def token_dims(self) -> list[mtf.Dimension]:
    """[a0, g1, s] or [x1, h0, t]."""
    return self.batch_dims + [self.groups, self.group_size]

  @property
  def expert_dims(self) -> list[mtf.Dimension]:
    """The dimensions that number the experts: [y0, x1] at the second level."""
    return [self.experts, *self.experts_above]

  def to_experts(self, x, depth=None):
    """All-to-all from groups to experts: [x, a0, g1, ...] to [x1, a0, g, ...].

    Args:
      x: a Tensor with the dimensions `experts_unsplit` and `groups`.
      depth: the depth of its rows, if it has one.

    Returns:
      the Tensor with `experts` and `groups_unsplit` in their place.
    """
    return self._moved(x, depth, {self.experts_unsplit: self.experts,
                                  self.groups: self.groups_unsplit})

  def to_groups(self, x, depth=None):
    """All-to-all from experts to groups, the reverse of `to_experts`."""
    return self._moved(x, depth, {self.experts: self.experts_unsplit,
                                  self.groups_unsplit: self.groups})

  def _moved(self, x, depth, new_dims):
    if depth is not None and self.sends_depth_in_slices:
      in_slices = mtf.Dimension(DEPTH_ON_THE_WAY, depth.size)
      x = _renamed(x, {**new_dims, depth: in_slices})
      return _renamed(x, {in_slices: depth})
    return _renamed(x, new_dims)


def size(batch_dims: list[mtf.Dimension], length: mtf.Dimension,
         hparams: hparams_lib.MoeHparams, train: bool, mesh: MeshSplit
         ) -> list[SizedLevel]:
  """Sizes all levels.

  Args:
    batch_dims: as many batch Dimensions as there are levels, or more, which
      are left as they are.
    length: the length Dimension, or what else is merged with the last one.
    hparams: a `MoeHparams`.
    train: a boolean.
    mesh: a `MeshSplit`.

  Returns:
    the levels, the first one first

  Raises:
    ValueError: if the mesh does not divide the batch or the experts, or a
      tensor would have two dimensions on one axis of it.
  """
  settings = hparams.levels
  sized: list[SizedLevel] = []
  above: list[mtf.Dimension] = []
  left = list(batch_dims)
  per_batch = length.size
  for number, (one, called) in enumerate(zip(settings, names(len(settings)))):
    batch = left.pop()
    mesh.check_divides(batch, _batch_parameter(batch))
    experts = mtf.Dimension(called.experts, one.experts)
    if (wrong := mesh.not_divided(experts)) is not None:
      raise knobs.Mistake(f"num_experts[{number}]", one.experts, wrong)
    num_groups, group_size = grouping._split_into_groups(
        batch.size * per_batch, one.group_size, mesh.ways(batch))
    # Experts that choose would take all tokens, which is another network.
    dropless = (hparams.moe_dropless_eval and not train
                and not gating.find(one.router).needs_whole_sequences)
    capacity = grouping.expert_capacity(
        group_size,
        # As many times an even share as there are experts is the whole group.
        one.experts if dropless else one.capacity_factor(train),
        one.experts, one.min_expert_capacity)
    one_level = len(settings) == 1  # It has names of its own.
    sized.append(SizedLevel(
        names=called, settings=one, experts_above=list(above),
        outer_dims=list(left),
        groups=mtf.Dimension(batch.name, num_groups),
        groups_unsplit=mtf.Dimension(
            ("batch" if one_level else batch.name) + "_unsplit", num_groups),
        group_size=mtf.Dimension(called.group_size, group_size),
        experts=experts,
        experts_unsplit=mtf.Dimension(
            ("expert" if one_level else experts.name) + "_unsplit",
            experts.size),
        capacity=mtf.Dimension(called.capacity, capacity),
        sends_depth_in_slices=mesh.splits(DEPTH_ON_THE_WAY)))
    above.insert(0, experts)
    per_batch = num_groups * capacity
  canonical = canonical_layout(len(settings), _example_axes(len(settings)))
  for level in sized:
    mesh.check_whole([level.groups_unsplit, level.group_size,
                      level.experts_unsplit, level.capacity])
    mesh.check_apart(level.token_dims, canonical)
    mesh.check_apart(level.outer_dims + level.expert_dims, canonical)
  _tell_of_repeats(sized[-1], canonical, mesh)
  return sized


def _batch_parameter(dim):
  if dim.name == OUTER_BATCH:
    return "tpu_estimator_model_fn.outer_batch_size"
  return "run.batch_size (over tpu_estimator_model_fn.outer_batch_size)"


def _example_axes(num_levels):
  return ["outer", *[f"middle_{k}" for k in range(1, num_levels - 1)],
          "inner"][-num_levels:]


def _tell_of_repeats(last, canonical, mesh):
  """Warns where several slices compute the same."""
  hidden = mtf.Dimension("expert_hidden", 1)
  parts = mesh.ways(hidden)
  for dim in last.expert_dims + last.outer_dims:
    parts *= mesh.ways(dim)
  repeats = mesh.num_slices // parts
  if repeats > 1:
    _logger.warning(
        "run.layout_rules splits the experts into %d parts on a mesh of %d "
        "slices, so %d slices compute each of them. Write the rules as in %s; "
        "python -m mtf_moe.plan says more.", parts, mesh.num_slices, repeats,
        canonical)


def _renamed(x, new_dims):
  return mtf.reshape(x, [new_dims.get(dim, dim) for dim in x.shape.dims])
