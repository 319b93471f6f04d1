"""A mesh implementation that lowers the program of one core, to count it.

The program that a TPU pod runs is the same on all cores. Here, variables have
the slice of one core only, where a real mesh makes those of all; and in place
of a collective there is whatever has the shape of its result. It cannot be run:
it is what a training step is counted on.
"""

import dataclasses

import mesh_tensorflow as mtf
from mesh_tensorflow import simd_mesh_impl
import tensorflow.compat.v1 as tf

MARK = "mark/"  # The counters of that name are of no operation.


@dataclasses.dataclass(frozen=True)
class Collective:
  """One operation in which cores communicate.

  Attributes:
    kind: "all-to-all", "all-reduce" or "all-concat".
    axes: names of the mesh dimensions along which cores communicate.
    elements: of its input on one core; for an all-concat of its result.
    dtype: of the elements as they travel.
    mark: the value of the mesh implementation's `mark` at that time.
  """

  kind: str
  axes: tuple[str, ...]
  elements: int
  dtype: tf.DType
  mark: str

  @property
  def bytes(self) -> int:
    """On one core."""
    return self.elements * self.dtype.size


class OneCoreMeshImpl(simd_mesh_impl.SimdMeshImpl):
  """SimdMeshImpl, of which only the first core exists.

  Attributes:
    collectives: the `Collective`s lowered so far.
    mark: a string that each of them remembers.
  """

  def __init__(self, shape, layout):
    super().__init__(shape, layout)
    self.collectives = []
    self.mark = ""

  @property
  def pnum_tensor(self):
    if self._pnum_tensor is None:
      self._pnum_tensor = tf.zeros([], tf.int32)
    return self._pnum_tensor

  class LaidOutVariable:
    """The slice of one core."""

    def __init__(self, variable, mesh_impl):
      """Makes a placeholder for it: it is only read.

      Args:
        variable: a mtf Variable.
        mesh_impl: a OneCoreMeshImpl.
      """
      self.laid_out_tensor = mesh_impl.LaidOutTensor([tf.placeholder(
          variable.slice_dtype, mesh_impl.slice_shape(variable.shape))])
      self.copy_master_to_slices = self.copy_slices_to_master = tf.no_op()

    def assign_to_slices(self, assign_fn, values, assign_to_tensor_list=None):
      del assign_fn, assign_to_tensor_list
      return tf.group(*values)

  def allreduce(self, x, mesh_axes, reduction_fn_string):
    del reduction_fn_string
    x = x.to_laid_out_tensor()
    dtype = x.one_slice.dtype
    if mesh_axes:
      self._record("all-reduce", mesh_axes, x.one_slice, _summed_as(dtype))
    return x

  def allconcat(self, x, mesh_axis, concat_axis, stack=False):
    t = x.to_laid_out_tensor().one_slice
    if stack:
      t = tf.expand_dims(t, concat_axis)
    multiples = [1] * t.shape.ndims
    multiples[concat_axis] = self.shape[mesh_axis].size
    t = tf.tile(t, multiples)
    self._record("all-concat", [mesh_axis], t, t.dtype)
    return self.LaidOutTensor([t])

  def alltoall(self, x, mesh_axis, split_axis, concat_axis):
    t = x.to_laid_out_tensor().one_slice
    # SimdMeshImpl sends float32 as bfloat16.
    self._record("all-to-all", [mesh_axis], t,
                 tf.bfloat16 if t.dtype == tf.float32 else t.dtype)
    shape = t.shape.as_list()
    shape[split_axis] //= self.shape[mesh_axis].size
    shape[concat_axis] *= self.shape[mesh_axis].size
    return self.LaidOutTensor([tf.reshape(t, shape)])

  def _record(self, kind, mesh_axes, t, dtype):
    self.collectives.append(Collective(
        kind, tuple(self.shape[axis].name for axis in sorted(mesh_axes)),
        t.shape.num_elements(), dtype, self.mark))


def _summed_as(dtype):
  """The type in which SimdMeshImpl sums: all but bfloat16 as float32."""
  return tf.bfloat16 if dtype == tf.bfloat16 else tf.float32


class Mark(mtf.Operation):
  """Tells collectives and counters of what follows from those before it."""

  def __init__(self, mesh, mark):
    super().__init__([], mesh, name="mark")
    self._mark = mark

  def lower(self, lowering):
    lowering.mesh_impl(self).mark = self._mark
    lowering.add_counter(MARK + self._mark, 0)
