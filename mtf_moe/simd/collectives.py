"""What the cores of a program tell each other, counted before anything runs."""

import collections
import dataclasses
import math

import tensorflow.compat.v1 as tf

from mtf_moe.simd import graphs
from mtf_moe.simd.program import Program

ALL_TO_ALL = "all-to-all"
ALL_REDUCE = "all-reduce"
ALL_CONCAT = "all-concat"
PERMUTE = "permute"
_KINDS = {
    graphs.ALL_TO_ALL: ALL_TO_ALL,
    graphs.SUM: ALL_REDUCE,
    graphs.PERMUTATION: PERMUTE,
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between cores.

  Attributes:
    name: of the node in the core's program; it starts with the name of the mtf
      operation.
    kind: ALL_TO_ALL, ALL_REDUCE, ALL_CONCAT or PERMUTE. SimdMeshImpl
      concatenates by adding up slices that are padded with zeros.
    axes: the names of the mesh dimensions along which the cores of a group
      differ.
    group_size: how many cores take part in it together.
    dtype: the tf.DType that travels. SimdMeshImpl sends float32 all-to-alls as
      bfloat16.
    shape: of what one core contributes, a tuple.
  """

  name: str
  kind: str
  axes: tuple[str, ...]
  group_size: int
  dtype: tf.DType
  shape: tuple[int, ...]

  @property
  def elements(self) -> int:
    """How many elements one core contributes."""
    return math.prod(self.shape)

  @property
  def num_bytes(self) -> int:
    """The size of what one core contributes."""
    return self.elements * self.dtype.size

  @property
  def sent_bytes(self) -> float:
    """What one core sends at the least.

    A core keeps its own part of an all-to-all. An all-reduce sends everything
    but one part, twice: to be added up, and then to be known to all.
    """
    others = (self.group_size - 1) / self.group_size
    return self.num_bytes * {
        ALL_TO_ALL: others, PERMUTE: 1.0}.get(self.kind, 2 * others)


def collectives_of(program: Program) -> list[Collective]:
  """All collectives of a program, in no particular order.

  One that is in a loop is listed once.

  Args:
    program: a Program.

  Returns:
    a list of Collectives

  Raises:
    ValueError: if the operand of a collective has no static shape.
  """
  nodes = {node.name: node for node in program.graph_def.node}
  found = []
  for node in program.graph_def.node:
    if node.op in _KINDS and graphs.is_core_code(node):
      axes = _axes(node, nodes, program.slicing)
      sizes = {dim.name: dim.size for dim in program.slicing.mesh_shape.dims}
      found.append(Collective(
          name=node.name,
          kind=(ALL_CONCAT if _adds_padded_slices(node, nodes)
                else _KINDS[node.op]),
          axes=axes,
          group_size=math.prod(sizes[axis] for axis in axes),
          dtype=tf.as_dtype(node.attr["T"].type),
          shape=_operand_shape(node, nodes)))
  return found


def totals(found) -> dict[tuple[str, tuple[str, ...]], tuple[int, int]]:
  """Sums up collectives.

  Args:
    found: Collectives.

  Returns:
    the number of collectives and the bytes that one core contributes to them,
    by kind and axes
  """
  summed = collections.defaultdict(lambda: (0, 0))
  for one in found:
    number, size = summed[one.kind, one.axes]
    summed[one.kind, one.axes] = number + 1, size + one.num_bytes
  return dict(summed)


def dynamic_shapes(program: Program) -> list[str]:
  """The nodes of the core's program whose shapes are only known when it runs.

  A TPU refuses them.

  Args:
    program: a Program.

  Returns:
    the names of nodes, none in a program for TPUs
  """
  return [
      node.name for node in program.graph_def.node
      if graphs.is_core_code(node) and any(
          not tf.TensorShape(shape).is_fully_defined()
          for shape in node.attr["_output_shapes"].list.shape)]


def _axes(node, nodes, slicing):
  """The names of the mesh dimensions along which groups of cores differ."""
  differing = set()
  for group in graphs.group_table(node, nodes):
    coordinates = [slicing.coordinates(core) for core in group]
    differing.update(
        axis for axis, values in enumerate(zip(*coordinates))
        if len(set(values)) > 1)
  return tuple(
      dim.name for axis, dim in enumerate(slicing.mesh_shape.dims)
      if axis in differing)


def _operand_shape(node, nodes):
  source, _, index = node.input[0].partition(":")
  shapes = nodes[source].attr["_output_shapes"].list.shape
  return tuple(tf.TensorShape(shapes[int(index or 0)]).as_list())


def _adds_padded_slices(node, nodes):
  """Whether a sum over cores is SimdMeshImpl's way to concatenate.

  It multiplies the slice by a one-hot vector of the core's position.
  """
  if node.op != graphs.SUM:
    return False
  product = nodes.get(node.input[0])
  if product is not None and product.op == "Reshape":
    product = nodes.get(product.input[0])
  if product is None or product.op != "Mul":
    return False
  factor = nodes.get(product.input[1])
  if factor is not None and factor.op == "Reshape":
    factor = nodes.get(factor.input[0])
  return factor is not None and factor.op == "OneHot"
