"""What happens beside the steps of a training run."""

import math
import signal
import time

import tensorflow.compat.v1 as tf

from mtf_moe.run import console
from mtf_moe.run import recording
from mtf_moe.train import checkpoints
from mtf_moe.train import health
from mtf_moe.train import records as records_lib
from mtf_moe.train import reproducible


def loss():
  """The training loss: Estimator puts it there."""
  return tf.get_collection(tf.GraphKeys.LOSSES)[-1]


class RecordHook(recording.RecordHook):
  """Writes what the mixtures record, of the step that training counts."""

  def step_after(self):
    return reproducible.step_after()


class HealthHook(tf.train.SessionRunHook):
  """Ends a run whose loss is not finite, before it is saved.

  For that it must come before the hook that saves checkpoints.
  """

  def __init__(self, model_dir, layers):
    """Makes the hook.

    Args:
      model_dir: a string.
      layers: a sequence of `LayerFacts`, or None where they are not known.
    """
    self._model_dir = model_dir
    self._losses = health.LossWatch(layers)
    self._origin = health.OriginWatch(layers)
    self._z_loss = health.z_loss_setting(layers)

  def begin(self):
    scalars = recording.collected_scalars()
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
    or_z_loss = f", or {self._z_loss}," if self._z_loss else ""
    raise health.LossNotFinite(
        f"the loss is {found['loss']} at step {step:,}. "
        f"{self._origin.describe()} Set a lower run.learning_rate_schedule"
        f"{or_z_loss} and run again, which goes on from the last good "
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
