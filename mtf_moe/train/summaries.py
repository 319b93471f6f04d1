"""Summaries of mtf's tensors, on a mesh of this machine."""

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf


class SummaryHook(tf.train.SessionRunHook):
  """Writes what `mtf.scalar_summary` collected beside the training loss.

  Into the event files of the model directory, whenever the Estimator writes
  there (every 100 steps). On a TPU there are other means, which mtf has:
  tpu_estimator_model_fn.tpu_summaries = True.
  """

  def begin(self):
    collected = tf.get_collection(mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY)
    for name, tensor in collected:
      if not _is_in_tpu_program(tensor):
        # tf.summary.scalar would change the names, as mtf's operations have
        # used them in the graph.
        tf.add_to_collection(
            tf.GraphKeys.SUMMARIES,
            tf.raw_ops.ScalarSummary(tags=name, values=tensor))
    # TensorFlow would try to save the pairs with the graph, and warn.
    mtf.utils.remove_summaries()


def _is_in_tpu_program(tensor):
  """Whether a tensor is inside of what is compiled for a TPU."""
  return "_tpu_replicate" in tensor.op.node_def.attr
