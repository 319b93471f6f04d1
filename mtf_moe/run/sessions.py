"""Sessions beside the training program."""

import tensorflow.compat.v1 as tf


def on_cpu(graph: tf.Graph | None = None) -> tf.Session:
  """A session that leaves accelerators to the training program.

  Args:
    graph: what it runs; None for the default graph.

  Returns:
    a tf.Session
  """
  return tf.Session(
      graph=graph, config=tf.ConfigProto(device_count={"GPU": 0}))
