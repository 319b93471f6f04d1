"""How an Estimator's steps are supervised."""

import tensorflow.compat.v1 as tf

from mtf_moe.run import recording
from mtf_moe.train import records as records_lib
from mtf_moe.train import reproducible
from mtf_moe.train.supervision import Step
from mtf_moe.train.supervision import Supervisor


class SupervisorHook(tf.train.SessionRunHook):
  """Tells a `Supervisor` of each step, and stops when it says so.

  It must come before the hook that saves checkpoints, so that what is not
  finite is not saved; and after the one that writes summaries, which begins a
  run in the event files: readers drop what was there of its steps.
  """

  def __init__(self, supervisor: Supervisor):
    self._supervisor = supervisor

  def begin(self):
    self._records = recording.collected_scalars()
    self._tags = records_lib.vital_signs(self._records)
    self._fetches = {
        # Estimator puts it there.
        "loss": tf.get_collection(tf.GraphKeys.LOSSES)[-1],
        "number": reproducible.step_after(),
        # One tensor, since each that is fetched takes time.
        "signs": tf.stack([self._records[tag] for tag in self._tags] or [0.0])}

  def after_create_session(self, session, coord):
    first_step = int(session.run(tf.train.get_global_step()))
    self._next_step = first_step + 1
    self._supervisor.begin(first_step)

  def before_run(self, run_context):
    due = self._supervisor.recorder.is_due(self._next_step)
    return tf.train.SessionRunArgs(
        {**self._fetches, "records": self._records if due else {}})

  def after_run(self, run_context, run_values):
    found = run_values.results
    number = int(found["number"])
    self._next_step = number + 1
    self._supervisor.observe(Step(
        number, float(found["loss"]), dict(zip(self._tags, found["signs"])),
        found["records"]))
    if self._supervisor.wish:
      run_context.request_stop()
