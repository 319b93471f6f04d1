"""Random numbers that depend on the seed, the operation, the step and the part.

And on nothing else: not on the process, the device, or how often training was
stopped. mesh_tensorflow draws from seeds that change with every process, and
from generators whose state no checkpoint has.
"""

from collections.abc import Iterator
import contextlib
import zlib

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

# Odd, so that no two microbatches of a step have the same key.
_STRIDE = 0x9e3779b1

_STATELESS = {
    tf.random.uniform: tf.random.stateless_uniform,
    tf.random.normal: tf.random.stateless_normal,
}


@contextlib.contextmanager
def by_step(seed: int, step: tf.Tensor) -> Iterator[None]:
  """A context in which mtf lowers its random operations as such functions.

  On any mesh: of placed slices, or of cores that run one program.

  Args:
    seed: an integer.
    step: an int64 tf.Tensor.
  """
  def lower(op, lowering):
    mesh_impl = lowering.mesh_impl(op)
    shape = op.outputs[0].shape
    microbatch = _microbatch(op, lowering)
    # Slices that hold the same part of a tensor draw the same numbers.
    keys = [f"{seed},{op.name},{mesh_impl.slice_begin(shape, pnum)}"
            for pnum in range(mesh_impl.size)]
    seeds = tf.constant([zlib.crc32(key.encode()) for key in keys], tf.int64)

    def draw(pnum):
      # Of each number, XLA takes the last 32 bits.
      key = (tf.gather(seeds, pnum) + _STRIDE * microbatch) % 2**32
      return _STATELESS[op._tf_fn](
          mesh_impl.slice_shape(shape), seed=tf.stack([key, step]),
          **op._kwargs)

    lowering.set_tensor_lowering(
        op.outputs[0],
        mesh_impl.slicewise(draw, mesh_impl.laid_out_pnum()))

  original = mtf.RandomOperation.lower
  mtf.RandomOperation.lower = lower
  try:
    yield
  finally:
    mtf.RandomOperation.lower = original


def _microbatch(op, lowering):
  """The number of the pass through the loop that an operation is in, or 0."""
  for loop in lowering.graph.operations:
    if isinstance(loop, mtf.WhileLoopOperation) and op in loop._body_ops:
      # The first variable of mtf's loops counts the passes.
      counter = lowering.tensors[loop._body_inputs[0]]
      return tf.cast(counter.tensor_list[0], tf.int64)
  return tf.zeros([], tf.int64)
