"""What happens beside training; run_test.py reads it of a real run."""

import glob

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.run import recording
from mtf_moe.train import health
from mtf_moe.train import hooks
from mtf_moe.train import progress
from mtf_moe.train import reproducible
from mtf_moe.train import results
from mtf_moe.train import supervision


@pytest.fixture(autouse=True)
def resource_variables():
  """As the program has them."""
  tf.enable_resource_variables()
  yield
  tf.disable_resource_variables()


def supervised(model_dir, steps, loss_of=lambda step: step, told=None):
  """Trains for some steps, with a record in every third."""
  supervisor = supervision.Supervisor(
      str(model_dir), (), progress.TrainingProgress(steps, 1, 1.0),
      recording.Recorder(str(model_dir), 3), results.Meter(None, 0, 1))
  if told is not None:
    observe = supervisor.observe
    supervisor.observe = lambda step: (told.append(step), observe(step))
  with tf.Graph().as_default() as graph:
    step = tf.train.create_global_step()
    before = step.read_value()
    tf.add_to_collection(reproducible._STEP_BEFORE, before)
    with tf.control_dependencies([before]):
      increase = tf.assign_add(step, 1)
    number = tf.cast(before + 1, tf.float32)
    tf.add_to_collection(tf.GraphKeys.LOSSES, loss_of(number))
    with tf.name_scope("moe/level"):  # As mtf names its operations.
      value = 0.5 * number
    with graph._attr_scope({
        "_tpu_replicate": tf.AttrValue(s=b"cluster")}):
      on_tpu = tf.constant(2.5)
    for name, tensor in (("moe/level", value), ("on_tpu", on_tpu)):
      tf.add_to_collection(
          mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY, (name, tensor))
    try:
      with tf.train.MonitoredSession(
          hooks=[hooks.SupervisorHook(supervisor)]) as session:
        # TensorFlow cannot save pairs with a graph.
        assert not tf.get_collection(mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY)
        while not session.should_stop() and steps:
          session.run(increase)
          steps -= 1
    finally:
      supervisor.close()
      tf.summary.FileWriterCache.clear()


def test_steps_and_records(tmp_path):
  told = []
  supervised(tmp_path, 8, told=told)
  assert [(step.number, step.loss) for step in told] == [
      (number, float(number)) for number in range(1, 9)]
  records = {step.number: step.records for step in told if step.records}
  assert records == {1: {"moe/level": 0.5}, 4: {"moe/level": 2.0},
                     7: {"moe/level": 3.5}}
  file, = glob.glob(f"{tmp_path}/events.*")
  assert [(event.step, value.tag, value.simple_value)
          for event in tf.train.summary_iterator(file)
          for value in event.summary.value] == [
              (step, tag, value) for step, values in records.items()
              for tag, value in values.items()]


def test_a_loss_that_is_not_finite(tmp_path):
  told = []
  with pytest.raises(health.LossNotFinite, match="is nan at step 3"):
    supervised(tmp_path, 8, told=told,
               loss_of=lambda step: tf.where(step < 3, step, np.nan))
  assert len(told) == 3
