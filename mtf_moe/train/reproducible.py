"""Training that comes to the same weights, bit for bit, in one piece or many.

On a mesh of this machine only. What is drawn depends on the step (see
`run.draws`). Nothing orders the reading of the step, by mesh_tensorflow's
optimizers too, and its increment: here, it is increased last.
"""

from collections.abc import Callable

import tensorflow.compat.v1 as tf

from mtf_moe.run import draws

# A collection of the graph, with the step as it was before.
_STEP_BEFORE = "mtf_moe/step_before"


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
    with draws.by_step(seed, tf.cast(step, tf.int64)):
      spec = model_fn(features, labels, mode, config)
    return spec._replace(train_op=_increasing_step_last(spec.train_op))

  return wrapped


def step_after():
  """A tensor: the number of the step that a session.run takes."""
  before = tf.get_collection(_STEP_BEFORE)
  # Elsewhere, the step is read before it is increased, or after.
  return before[0] + 1 if before else tf.train.get_global_step()


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
