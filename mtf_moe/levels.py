"""The dimensions of both levels, and how the mesh splits them.

Letters are explained in `layer`.
"""

import dataclasses
import logging

import mesh_tensorflow as mtf

from mtf_moe import arguments
from mtf_moe import grouping

_logger = logging.getLogger(__name__)

OUTER_BATCH = "outer_batch"
# On a mesh with the axes `outer` and `batch`; see configs/meshes/layout.gin.
CANONICAL_LAYOUT = (
    "outer_batch:outer,batch:batch,expert_x:batch,expert_y:outer")


@dataclasses.dataclass(frozen=True)
class Level:
  """The dimensions of one level.

  Groups and experts have two dimensions each, of which the layout splits one:
  renaming one pair while the tensor stays the same moves data between the
  slices of the mesh, in one all-to-all.

  Attributes:
    batch_dims: dimensions ahead of the groups: [a0], or [x1] at the second.
    groups: g1 or h0.
    groups_unsplit: g or h.
    group_size: s or t.
    experts: x1 or y0.
    experts_unsplit: x or y.
    capacity: c or d.
  """

  batch_dims: list[mtf.Dimension]
  groups: mtf.Dimension
  group_size: mtf.Dimension
  experts: mtf.Dimension
  capacity: mtf.Dimension

  @property
  def groups_unsplit(self):
    return mtf.Dimension(self.groups.name + "_unsplit", self.groups.size)

  @property
  def experts_unsplit(self):
    return mtf.Dimension(self.experts.name + "_unsplit", self.experts.size)

  @property
  def token_dims(self):
    """[a0, g1, s] or [x1, h0, t]."""
    return self.batch_dims + [self.groups, self.group_size]

  def to_experts(self, x):
    """All-to-all from groups to experts: [x, a0, g1, ...] to [x1, a0, g, ...].

    Args:
      x: a Tensor with the dimensions `experts_unsplit` and `groups`.

    Returns:
      the Tensor with `experts` and `groups_unsplit` in their place.
    """
    return _renamed(x, {self.experts_unsplit: self.experts,
                        self.groups: self.groups_unsplit})

  def to_groups(self, x):
    """All-to-all from experts to groups, the reverse of `to_experts`."""
    return _renamed(x, {self.experts: self.experts_unsplit,
                        self.groups_unsplit: self.groups})


class MeshSplit:
  """How the layout splits dimensions over the mesh."""

  def __init__(self, layout, mesh_shape):
    """Without both arguments, nothing is split.

    Args:
      layout: see `arguments.layout_rules`.
      mesh_shape: see `arguments.mesh_shape`.
    """
    self._layout = arguments.layout_rules(layout)
    self._shape = arguments.mesh_shape(mesh_shape)

  @property
  def num_slices(self):
    return self._shape.size

  def axis(self, dim):
    """The mesh Dimension that a tensor Dimension is split over, or None."""
    number = self._layout.tensor_dimension_to_mesh_axis(dim, self._shape)
    return None if number is None else self._shape.dims[number]

  def ways(self, dim):
    """Over how many slices of the mesh a tensor Dimension is split."""
    axis = self.axis(dim)
    return 1 if axis is None else axis.size

  def inserted_outer_batch(self):
    """The dimension a0 of size 1, for inputs without one.

    A layout that splits outer_batch cannot split this one, so then it has
    another name: every slice along that axis works on all of the tokens until
    they reach the experts.
    """
    dim = mtf.Dimension(OUTER_BATCH, 1)
    return dim if self.ways(dim) == 1 else mtf.Dimension(
        OUTER_BATCH + "_unsplit", 1)

  def check_divides(self, dim, gin_name):
    """Raises ValueError unless the mesh cuts the dimension into equal parts."""
    axis = self.axis(dim)
    if axis is not None and dim.size % axis.size:
      raise ValueError(
          f"{gin_name} gives dimension {dim.name!r} the size {dim.size}, which "
          f"mesh dimension {axis.name!r} of size {axis.size} does not divide: "
          f"make it a multiple of {axis.size}, or change run.mesh_shape or the "
          f"rule {dim.name}:{axis.name} of run.layout_rules.")


def two_levels(a0, b1, l, hparams, train, mesh):
  """Sizes both levels.

  Args:
    a0: the outer batch Dimension.
    b1: the batch Dimension.
    l: the length Dimension.
    hparams: a `MoeHparams`.
    train: a boolean.
    mesh: a `MeshSplit`.

  Returns:
    a `Level` for the first level and one for the second.

  Raises:
    ValueError: if the mesh does not divide the batch or the experts.
  """
  num_x, num_y = hparams.experts_per_level
  x1 = mtf.Dimension("expert_x", num_x)
  y0 = mtf.Dimension("expert_y", num_y)
  _check_mesh(a0, b1, x1, y0, mesh)

  num_groups, group_size = grouping._split_into_groups(
      b1.size * l.size, hparams.moe_group_size, mesh.ways(b1))
  capacity = grouping.expert_capacity(
      group_size, hparams.capacity_factor(train), num_x,
      hparams.moe_min_expert_capacity)
  outer = Level(
      batch_dims=[a0],
      groups=mtf.Dimension(b1.name, num_groups),
      group_size=mtf.Dimension("group_size_x", group_size),
      experts=x1,
      capacity=mtf.Dimension("expert_capacity_x", capacity))

  num_groups, group_size = grouping._split_into_groups(
      a0.size * num_groups * capacity, hparams.moe_group_size, mesh.ways(a0))
  capacity = grouping.expert_capacity(
      group_size, hparams.capacity_factor_second_level(train), num_y,
      hparams.moe_min_expert_capacity)
  inner = Level(
      batch_dims=[x1],
      groups=mtf.Dimension(a0.name, num_groups),
      group_size=mtf.Dimension("group_size_y", group_size),
      experts=y0,
      capacity=mtf.Dimension("expert_capacity_y", capacity))
  return outer, inner


def _check_mesh(a0, b1, x1, y0, mesh):
  mesh.check_divides(a0, "tpu_estimator_model_fn.outer_batch_size")
  mesh.check_divides(
      b1, "run.batch_size (over tpu_estimator_model_fn.outer_batch_size)")
  mesh.check_divides(x1, "MoE2D.expert_x")
  mesh.check_divides(y0, "MoE2D.expert_y")
  for one, other in ((a0, b1), (a0, x1), (x1, y0)):
    axis = mesh.axis(one)
    if axis is not None and axis == mesh.axis(other):
      raise ValueError(
          f"run.layout_rules splits both {one.name!r} and {other.name!r} over "
          f"mesh dimension {axis.name!r}, and a tensor has both: split them "
          "over different axes, as in outer_batch:outer,batch:inner,"
          "expert_x:inner,expert_y:outer.")
  parts = mesh.ways(x1) * mesh.ways(y0)
  repeats = mesh.num_slices // parts
  if repeats > 1:
    _logger.warning(
        "run.layout_rules splits the experts into %d parts on a mesh of %d "
        "slices, so %d slices compute each of them. A two-axis mesh wants "
        "expert_x:inner,expert_y:outer; python -m mtf_moe.plan says more.",
        parts, mesh.num_slices, repeats)


def _renamed(x, new_dims):
  return mtf.reshape(x, [new_dims.get(dim, dim) for dim in x.shape.dims])
