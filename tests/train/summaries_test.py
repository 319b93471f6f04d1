"""Summaries of mtf's tensors; run_test.py reads them from event files."""

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe.train import summaries


def test_scalars_that_mtf_collected():
  with tf.Graph().as_default() as graph:
    with tf.name_scope("moe/level"):  # As mtf names its operations.
      value = tf.constant(1.5)
    with graph._attr_scope({
        "_tpu_replicate": tf.AttrValue(s=b"cluster")}):
      on_tpu = tf.constant(2.5)
    for name, tensor in (("moe/level", value), ("on_tpu", on_tpu)):
      tf.add_to_collection(
          mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY, (name, tensor))
    summaries.SummaryHook().begin()
    # TensorFlow cannot save pairs with a graph.
    assert not tf.get_collection(mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY)
    with tf.Session() as session:
      written = tf.Summary.FromString(session.run(tf.summary.merge_all()))
  assert {v.tag: v.simple_value for v in written.value} == {"moe/level": 1.5}
