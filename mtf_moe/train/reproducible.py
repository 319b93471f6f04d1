"""Training that comes to the same weights, bit for bit, in one piece or many.

On a mesh of this machine only. mesh_tensorflow draws its random numbers from
seeds that change with every process, and from generators whose state no
checkpoint has; and nothing orders its optimizers' reading of the step and its
increment. Here, what is drawn depends on the seed, the operation, the step and
the microbatch, and on nothing else; and the step is increased last.
"""

from collections.abc import Callable
import contextlib
import zlib

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

# A collection of the graph, with the step as it was before.
_STEP_BEFORE = "mtf_moe/step_before"

_STATELESS = {
    tf.random.uniform: tf.random.stateless_uniform,
    tf.random.normal: tf.random.stateless_normal,
}


def reproducible(model_fn: Callable, seed: int) -> Callable:
  """Makes the model_fn of a training run reproducible.

  Args:
    model_fn: a model_fn of an Estimator, that of mesh_tensorflow's transformer
      on a placement mesh.
    seed: an integer. Initial values follow the seed of the Estimator.

  Returns:
    a model_fn
  """
  def wrapped(features, labels, mode, config):
    step = tf.train.get_global_step().read_value()
    tf.add_to_collection(_STEP_BEFORE, step)
    with _drawing_by_step(seed, tf.cast(step, tf.int64)):
      spec = model_fn(features, labels, mode, config)
    return spec._replace(train_op=_increasing_step_last(spec.train_op))

  return wrapped


def step_after():
  """A tensor: the number of the step that a session.run takes."""
  before = tf.get_collection(_STEP_BEFORE)
  # Elsewhere, the step is read before it is increased, or after.
  return before[0] + 1 if before else tf.train.get_global_step()


@contextlib.contextmanager
def _drawing_by_step(seed, step):
  """Lowers mtf's random operations as functions of the step."""

  def lower(op, lowering):
    mesh_impl = lowering.mesh_impl(op)
    shape = op.outputs[0].shape
    moment = step + 2**32 * _microbatch(op, lowering)

    def draw(pnum):
      # Slices that hold the same part of a tensor draw the same numbers.
      key = f"{seed},{op.name},{mesh_impl.slice_begin(shape, pnum)}"
      return _STATELESS[op._tf_fn](
          mesh_impl.slice_shape(shape),
          seed=tf.stack([zlib.crc32(key.encode()), moment]), **op._kwargs)

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


def _increasing_step_last(train_op):
  """The training operation, in which everybody has read the step before."""
  step = tf.train.get_global_step()
  uses = step.handle.consumers()
  increments = {op for op in uses if op.type == "AssignAddVariableOp"}
  reads = [op for op in uses if op.type == "ReadVariableOp"
           and increments.isdisjoint(op.control_inputs)]
  updates = [op for op in _members(train_op) if op not in uses]
  with tf.control_dependencies(updates + reads):
    return tf.assign_add(step, 1).op


def _members(group):
  """The operations that tf.group put together, through groups of groups."""
  if group.type != "NoOp":
    return [group]
  return [op for part in group.control_inputs for op in _members(part)]
