"""How the layout splits dimensions over the mesh."""

import mesh_tensorflow as mtf

from mtf_moe import arguments

OUTER_BATCH = "outer_batch"
# The depth of rows on their way between groups and experts: a layout that
# splits it sends only a slice of each.
DEPTH_ON_THE_WAY = "d_model_split"


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

  def splits(self, name):
    """Whether a dimension of this name is split."""
    return self.ways(mtf.Dimension(name, 1)) > 1

  def inserted_batch(self, name=OUTER_BATCH):
    """A batch dimension of size 1, for inputs that have too few.

    A layout that splits it cannot split this one, so then it has another name:
    every slice along that axis works on all of the tokens until they reach the
    experts.
    """
    return mtf.Dimension(name + "_unsplit" * self.splits(name), 1)

  def not_divided(self, dim) -> str | None:
    """What is wrong unless the mesh cuts a dimension into equal parts.

    Returns:
      the end of a sentence that begins with the parameter of the size, or None
    """
    axis = self.axis(dim)
    if axis is None or dim.size % axis.size == 0:
      return None
    return (
        f"gives dimension {dim.name!r} the size {dim.size}, which mesh "
        f"dimension {axis.name!r} of size {axis.size} does not divide: make it "
        f"a multiple of {axis.size}, or change run.mesh_shape or the rule "
        f"{dim.name}:{axis.name} of run.layout_rules.")

  def check_divides(self, dim, gin_name):
    """Raises ValueError unless the mesh cuts the dimension into equal parts."""
    if (wrong := self.not_divided(dim)) is not None:
      raise ValueError(f"{gin_name} {wrong}")

  def check_whole(self, dims):
    """Raises ValueError if dimensions are split that a router needs whole."""
    for dim in dims:
      axis = self.axis(dim)
      if axis is not None:
        raise ValueError(
            f"run.layout_rules splits {dim.name!r} over mesh dimension "
            f"{axis.name!r}, and routers choose among whole groups and fill "
            f"whole buffers: remove the rule {dim.name}:{axis.name}.")

  def check_apart(self, dims, canonical_layout):
    """Raises ValueError if two of a tensor's dimensions share an axis."""
    taken: dict[str, mtf.Dimension] = {}
    for dim in dims:
      axis = self.axis(dim)
      if axis is None:
        continue
      if axis.name in taken:
        raise ValueError(
            f"run.layout_rules splits both {taken[axis.name].name!r} and "
            f"{dim.name!r} over mesh dimension {axis.name!r}, and a tensor has "
            "both: split them over different axes, as in "
            f"{canonical_layout}.")
      taken[axis.name] = dim
