"""What is recorded beside training; run_test.py reads it of a real run."""

import glob

import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.train import hooks
from mtf_moe.train import reproducible


@pytest.fixture(autouse=True)
def resource_variables():
  """As the program has them."""
  tf.enable_resource_variables()
  yield
  tf.disable_resource_variables()


def test_record_hook(tmp_path):
  told = []
  with tf.Graph().as_default() as graph:
    step = tf.train.create_global_step()
    before = step.read_value()
    tf.add_to_collection(reproducible._STEP_BEFORE, before)
    with tf.control_dependencies([before]):
      increase = tf.assign_add(step, 1)
    with tf.name_scope("moe/level"):  # As mtf names its operations.
      value = 0.5 * tf.cast(before + 1, tf.float32)
    with graph._attr_scope({
        "_tpu_replicate": tf.AttrValue(s=b"cluster")}):
      on_tpu = tf.constant(2.5)
    for name, tensor in (("moe/level", value), ("on_tpu", on_tpu)):
      tf.add_to_collection(
          mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY, (name, tensor))
    hook = hooks.RecordHook(
        str(tmp_path), 3, [lambda *arguments: told.append(arguments)])
    with tf.train.MonitoredSession(hooks=[hook]) as session:
      # TensorFlow cannot save pairs with a graph.
      assert not tf.get_collection(mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY)
      for _ in range(8):
        session.run(increase)
    tf.summary.FileWriterCache.clear()
  assert told == [(1, {"moe/level": 0.5}), (4, {"moe/level": 2.0}),
                  (7, {"moe/level": 3.5})]
  file, = glob.glob(f"{tmp_path}/events.*")
  assert [(event.step, value.tag, value.simple_value)
          for event in tf.train.summary_iterator(file)
          for value in event.summary.value] == [
              (step, tag, value) for step, values in told
              for tag, value in values.items()]
