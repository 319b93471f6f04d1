"""How tensors lie on the cores of a mesh: cutting them up, joining them again.
"""

import collections
import dataclasses

import mesh_tensorflow as mtf
import numpy as np


@dataclasses.dataclass(frozen=True)
class Slicing:
  """Which part of a tensor each core holds.

  Cores have two numbers. The logical one is the position in the mesh, in
  lexicographic order; the physical one, that of the hardware, is what lists of
  slices are ordered by.

  Attributes:
    mesh_shape: a mtf.Shape, the dimensions of the mesh.
    layout_rules: a mtf.LayoutRules.
    logical_to_physical: the physical number of each logical core.
  """

  mesh_shape: mtf.Shape
  layout_rules: mtf.LayoutRules
  logical_to_physical: tuple[int, ...]

  @classmethod
  def of(cls, mesh_shape, layout_rules, logical_to_physical=None) -> "Slicing":
    """Takes what mtf.convert_to_shape and mtf.convert_to_layout_rules take.

    Args:
      mesh_shape: such as "rows:2,columns:4".
      layout_rules: such as "batch:rows,hidden:columns".
      logical_to_physical: a permutation of the cores' numbers, or None for the
        same order.

    Returns:
      a Slicing

    Raises:
      ValueError: if `logical_to_physical` is no permutation.
    """
    mesh_shape = mtf.convert_to_shape(mesh_shape)
    cores = range(mesh_shape.size)
    if logical_to_physical is None:
      logical_to_physical = cores
    if sorted(logical_to_physical) != list(cores):
      raise ValueError(
          f"logical_to_physical = {list(logical_to_physical)} must have every "
          f"number from 0 to {len(cores) - 1} once, since the mesh "
          f"{mesh_shape.to_string} has {len(cores)} cores. Leave it out for "
          "cores in the mesh's own order.")
    return cls(mesh_shape, mtf.convert_to_layout_rules(layout_rules),
               tuple(logical_to_physical))

  @property
  def num_cores(self) -> int:
    return self.mesh_shape.size

  def coordinates(self, core: int) -> list[int]:
    """The position in the mesh of a core, given by its physical number."""
    return mtf.pnum_to_processor_coordinates(
        self.mesh_shape, self.logical_to_physical.index(core))

  def slice_shape(self, shape: mtf.Shape) -> list[int]:
    """The shape of what one core holds of a tensor."""
    return self._mesh.slice_shape(shape)

  def cut(self, array, shape: mtf.Shape) -> list[np.ndarray]:
    """Each core's slice of an array.

    Args:
      array: what np.asarray takes.
      shape: the array's mtf.Shape.

    Returns:
      arrays, by physical core

    Raises:
      ValueError: if the array has another shape.
    """
    array = np.asarray(array)
    if list(array.shape) != shape.to_integer_list:
      raise ValueError(
          f"An array has the shape {list(array.shape)} where {shape} is "
          "expected: pass the whole tensor, not the slice of one core.")
    return [array[where] for where in self._places(shape)]

  def join(self, slices, shape: mtf.Shape) -> np.ndarray:
    """The tensor that the slices are parts of.

    Of cores that hold the same slice, the last one counts: see `spread`.

    Args:
      slices: arrays, by physical core.
      shape: the tensor's mtf.Shape.

    Returns:
      an array
    """
    array = np.empty(shape.to_integer_list, slices[0].dtype)
    for where, part in zip(self._places(shape), slices):
      array[where] = part
    return array

  def spread(self, slices, shape: mtf.Shape) -> float:
    """How far cores disagree that should hold the same slice.

    Args:
      slices: arrays, by physical core.
      shape: the tensor's mtf.Shape.

    Returns:
      the largest difference between the values of one element, 0.0 where each
      core holds another slice, NaN where any value is NaN
    """
    same = collections.defaultdict(list)
    for where, part in zip(self._places(shape), slices):
      same[str(where)].append(np.asarray(part, np.float64))
    return float(np.max([np.ptp(parts, axis=0) for parts in same.values()]))

  @property
  def _mesh(self):
    return mtf.MeshImpl(self.mesh_shape, self.layout_rules)

  def _places(self, shape):
    """A tuple of slices for each physical core."""
    size = self.slice_shape(shape)
    places = [None] * self.num_cores
    for logical, physical in enumerate(self.logical_to_physical):
      places[physical] = tuple(
          slice(begin, begin + length) for begin, length in zip(
              self._mesh.slice_begin(shape, logical), size))
    return places
