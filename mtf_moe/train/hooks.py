"""What happens beside the steps of a training run."""

import math
import signal
import time

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe.train import checkpoints
from mtf_moe.train import console
from mtf_moe.train import health
from mtf_moe.train import records as records_lib
from mtf_moe.train import reproducible


def loss():
  """The training loss: Estimator puts it there."""
  return tf.get_collection(tf.GraphKeys.LOSSES)[-1]


class RecordHook(tf.train.SessionRunHook):
  """Writes what `mtf.scalar_summary` collected, and tells who wants to know.

  Into the event files of the model directory, in the steps in which the
  Estimator writes the loss there. On a TPU there are other means, which mtf
  has: tpu_estimator_model_fn.tpu_summaries = True.
  """

  def __init__(self, model_dir, every_steps, listeners=()):
    """Makes the hook.

    Args:
      model_dir: a string.
      every_steps: an integer; the first step is recorded, too.
      listeners: functions of a step and a dict of values by tag.
    """
    self._model_dir = model_dir
    self._every_steps = every_steps
    self._listeners = listeners

  def begin(self):
    self._collected = collected_scalars()
    # TensorFlow would try to save the pairs with the graph, and warn.
    mtf.utils.remove_summaries()
    self._step = reproducible.step_after()
    self._timer = tf.train.SecondOrStepTimer(every_steps=self._every_steps)
    self._next_step = None

  def before_run(self, run_context):
    due = self._next_step is None or self._timer.should_trigger_for_step(
        self._next_step)
    return tf.train.SessionRunArgs(
        {"step": self._step, "values": self._collected if due else {}})

  def after_run(self, run_context, run_values):
    step, values = run_values.results["step"], run_values.results["values"]
    self._next_step = step + 1
    if not values:
      return
    self._timer.update_last_triggered_step(step)
    tf.summary.FileWriterCache.get(self._model_dir).add_summary(
        tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value)
                          for tag, value in values.items()]), step)
    for listener in self._listeners:
      listener(step, values)


def collected_scalars():
  """The tensors that mtf.scalar_summary collected, by tag, but for a TPU's."""
  return {
      tag: tensor for tag, tensor in tf.get_collection(
          mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY)
      if "_tpu_replicate" not in tensor.op.node_def.attr}


class HealthHook(tf.train.SessionRunHook):
  """Ends a run whose loss is not finite, before it is saved.

  For that it must come before the hook that saves checkpoints.
  """

  def __init__(self, model_dir):
    self._model_dir = model_dir
    self._losses = health.LossWatch()
    self._origin = health.OriginWatch()

  def begin(self):
    scalars = collected_scalars()
    self._tags = records_lib.vital_signs(scalars)
    self._fetches = {
        "loss": loss(), "step": reproducible.step_after(),
        # One tensor, since each that is fetched takes time.
        "signs": tf.stack([scalars[tag] for tag in self._tags] or [0.0])}

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._fetches)

  def after_run(self, run_context, run_values):
    found = run_values.results
    step = int(found["step"])
    self._origin.observe(step, dict(zip(self._tags, found["signs"])))
    if math.isfinite(found["loss"]):
      warning = self._losses.observe(step, float(found["loss"]))
      if warning:
        console.warn(warning)
      return
    good = checkpoints.newest_good(self._model_dir)
    raise health.LossNotFinite(
        f"the loss is {found['loss']} at step {step:,}. "
        f"{self._origin.describe()} Set a lower run.learning_rate_schedule, or "
        "MoE2D.z_loss = 0.001, and run again, which goes on from the last good "
        f"checkpoint: {good or 'none'}.")


class TimeLimitHook(tf.train.SessionRunHook):
  """Stops training, as if it were over, when the time is up."""

  def __init__(self, minutes):
    self._seconds = 60 * minutes

  def after_create_session(self, session, coord):
    self._end = time.monotonic() + self._seconds

  def after_run(self, run_context, run_values):
    if time.monotonic() >= self._end:
      console.say("time is up")
      run_context.request_stop()


class SignalHook(tf.train.SessionRunHook):
  """Stops training with a checkpoint on SIGTERM and on Ctrl-C.

  A second signal ends the program at once. Before the first step nothing would
  be saved, so there signals do what they always do.

  Attributes:
    received: the signal that stopped training, or None.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.received = None
    self._handlers = {}

  def after_create_session(self, session, coord):
    for number in self._SIGNALS:
      self._handlers[number] = signal.signal(number, self._receive)

  def _receive(self, number, unused_frame):
    self.received = signal.Signals(number)
    self.restore()

  def restore(self):
    """Lets signals do what they did before."""
    while self._handlers:
      signal.signal(*self._handlers.popitem())

  def after_run(self, run_context, run_values):
    if self.received and not run_context.stop_requested:
      console.warn(f"{self.received.name}: saving, then stopping")
      run_context.request_stop()
