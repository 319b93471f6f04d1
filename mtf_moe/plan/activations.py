"""How much a core holds beside variables: an estimate of what a compiler does.

It goes by these rules, which the TPU's compiler was seen to follow:

* What nobody needs is not computed, such as gradients of constants.
* Elementwise operations, broadcasts and reshapes leave nothing in memory. They
  are computed where a product, a sum, an exchange or an update reads them, each
  time anew; what they are made of is held until then.
* Every other result is held from its operation to the last one that reads it,
  in the order in which operations were built. So are one-hot tensors, unless
  they are made of inputs or constants.
* Products take bfloat16, and float32 that only products read is held so.
* Microbatches add their gradients up, in sums that are held all the time.
"""

import collections
from collections.abc import Iterator
import itertools
import math

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import operations
from mtf_moe.plan import step as step_lib

_ELEMENTWISE = (
    mtf.BinaryOpWithBroadcasting, mtf.BroadcastOperation, mtf.Constant,
    mtf.GenericGradOperation, mtf.RangeOperation, mtf.ScalarAddOperation,
    mtf.ScalarMultiplyOperation, mtf.StopGradient, mtf.UnstackOperation,
    operations.Tie)


def peak(step: step_lib.LoweredStep) -> int:
  """The most bytes that one core holds at a time, beside variables: estimated.

  Args:
    step: a `LoweredStep`.

  Returns:
    an integer
  """
  changes: dict[int, int] = collections.defaultdict(int)
  for first, last, size in _Lives(step.graph, step.mesh_impl).all():
    changes[first] += size
    changes[last + 1] -= size
  most = max(itertools.accumulate(
      changes[number] for number in sorted(changes)), default=0)
  if step.configured.num_microbatches > 1:
    most += sum(_bytes(gradient, step.mesh_impl) for gradient in step.gradients)
  return most


class _Lives:
  """From when to when a core holds what, in numbers of operations."""

  def __init__(self, graph, mesh_impl):
    self._mesh_impl = mesh_impl
    self._operations = list(_needed(graph.operations))
    # For each tensor those that are held for its sake.
    self._sources: dict[mtf.Tensor, frozenset[mtf.Tensor]] = {}
    # For each that is held the numbers of the operations that read it.
    self._readers = collections.defaultdict(list)
    for number, operation in enumerate(self._operations):
      self._trace(number, operation)

  def all(self) -> Iterator[tuple[int, int, int]]:
    """Triples (first operation, last operation, bytes)."""
    for number, operation in enumerate(self._operations):
      for y in operation.outputs:
        if y in self._sources[y]:
          readers = self._readers[y]
          yield number, max(readers, default=number), self._bytes(y, readers)

  def _trace(self, number, operation):
    read = frozenset().union(*(self._sources[x] for x in operation.inputs))
    if isinstance(operation, (mtf.Variable, mtf.ImportOperation)):
      sources = frozenset()  # It is there anyway.
    elif self._is_elementwise(operation, read):
      sources = read
    else:
      sources = None
      for source in read:
        self._readers[source].append(number)
    for y in operation.outputs:
      self._sources[y] = frozenset([y]) if sources is None else sources

  def _is_elementwise(self, operation, read):
    """Whether each element of its result is made of a few, without an exchange.
    """
    if isinstance(operation, mtf.EinsumOperation):
      return not _sums(operation)
    if isinstance(operation, mtf.OneHotOperation):
      return not read
    if isinstance(operation, mtf.ReshapeOperation):
      return not self._exchanges(operation)
    if type(operation) is mtf.SlicewiseOperation:
      return all(t.shape == operation.outputs[0].shape
                 and operation.splittable_dims.issuperset(
                     t.shape.dimension_names)
                 for t in operation.inputs + operation.outputs)
    return isinstance(operation, _ELEMENTWISE)

  def _exchanges(self, reshape):
    """Whether cores have other elements afterwards."""
    before, after = (self._pieces(t.shape)
                     for t in (reshape.inputs[0], reshape.outputs[0]))
    return before != after

  def _pieces(self, shape):
    """For each axis of the mesh how many elements in a row lie on one core."""
    axes = self._mesh_impl.tensor_layout(shape).tensor_axis_to_mesh_axis
    return {
        axis: math.prod(dim.size for dim in shape.dims[number:])
              // self._mesh_impl.shape[axis].size
        for number, axis in enumerate(axes) if axis is not None}

  def _bytes(self, tensor, readers):
    if tensor.dtype == tf.float32 and readers and all(
        isinstance(operation, mtf.EinsumOperation) and _sums(operation)
        for operation in map(self._operations.__getitem__, readers)):
      return _bytes(tensor, self._mesh_impl) // 2
    return _bytes(tensor, self._mesh_impl)


def _needed(operations_in_order):
  """The operations without which an update would not be what it is."""
  wanted = set()
  needed = []
  for operation in reversed(operations_in_order):
    if isinstance(operation, mtf.Assign) or (
        not wanted.isdisjoint(operation.outputs)):
      wanted.update(operation.inputs)
      needed.append(operation)
  return reversed(needed)


def _sums(einsum):
  """Whether it has a dimension that its result does not have."""
  kept = set(einsum.outputs[0].shape.dims)
  return any(not kept.issuperset(x.shape.dims) for x in einsum.inputs)


def _bytes(tensor, mesh_impl):
  return mesh_impl.slice_size(tensor.shape) * tensor.dtype.size
