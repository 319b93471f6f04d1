"""The other way to run the steps of training: on the devices that JAX sees.

What is trained, on what data, what happens beside the steps and what is written
are the same as with an Estimator (see `training`), and either goes on from what
the other has written.
"""

from collections.abc import Callable, Mapping
import contextlib
import functools
import math
import time

import gin
import jax
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.run import console
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.train import init_checkpoint
from mtf_moe.train import processes
from mtf_moe.train import records as records_lib
from mtf_moe.train import runtimes
from mtf_moe.train.batches import Batches
from mtf_moe.train.masters import Masters
from mtf_moe.train.supervision import Step
from mtf_moe.train.supervision import Supervisor
from mtf_moe.xla import configured as configured_lib
from mtf_moe.xla import exporting
from mtf_moe.xla.devices import OnDevices


class DeviceTraining:
  """Trains in the place of an Estimator.

  What it does not do itself, such as to look for checkpoints, the Estimator
  does, none of whose steps are run.
  """

  def __init__(self, estimator, supervisor: Supervisor, seed: int,
               begins_from: str | None):
    """Makes it.

    Args:
      estimator: a TPUEstimator of mesh_tensorflow.
      supervisor: watches the steps.
      seed: an integer, for initial values, and for all that a step draws.
      begins_from: the checkpoint of another run that this one begins from,
        where it does.
    """
    self._estimator = estimator
    self._supervisor = supervisor
    self._seed = seed
    self._begins_from = begins_from

  def latest_checkpoint(self) -> str | None:
    """The path of the checkpoint that the run goes on from, or None."""
    return processes.of_first(
        self._estimator.latest_checkpoint() if processes.is_first() else None)

  def get_variable_value(self, name: str):
    """The value of a variable in that checkpoint, a number."""
    return processes.of_first(
        self._estimator.get_variable_value(name).tolist()
        if processes.is_first() else None)

  def train(self, input_fn: Callable, max_steps: int, hooks=()):
    """Trains; as Estimator.train does.

    Args:
      input_fn: a function of a dict, which makes a tf.data.Dataset of batches.
      max_steps: the step to stop at.
      hooks: none.

    Raises:
      health.LossNotFinite: if the loss became NaN or infinite.
    """
    assert not hooks  # See runtimes.check.
    console.say(runtimes.described())
    configured = ConfiguredModel.from_gin()
    latest = self.latest_checkpoint()
    with contextlib.ExitStack() as stack:
      batches = stack.enter_context(
          Batches(functools.partial(input_fn, {}), self._seed))
      built = configured_lib.program(configured, self._seed, batches.features)
      values = processes.arrays_of_first(
          self._first_values(configured, built, latest))
      console.say("lowering it for JAX")
      on_devices = OnDevices(*exporting.export(built))
      on_devices.set(values)
      on_devices.global_step = int(values["global_step"])
      masters = None
      if processes.is_first():
        masters = stack.enter_context(Masters(
            values, self._estimator.model_dir,
            configured.run.get("keep_checkpoint_max")))
        self._begin_event_files(on_devices.global_step)
        stack.callback(tf.summary.FileWriterCache.clear)
      loop = _Loop(on_devices, values, masters, self._supervisor)
      if latest is None:
        loop.save()
      try:
        loop.run(batches, max_steps,
                 self._estimator.config.save_checkpoints_steps)
      except jax.errors.JaxRuntimeError:
        processes.wait_for_news()
        raise
      if masters is not None:
        masters.wait()

  def _first_values(self, configured, built, latest):
    """The values of all variables at the beginning, by name.

    Of other processes than the first, only the shapes are right.
    """
    if latest is not None and processes.is_first():
      return _read(latest, {name: name for name in built.variables})
    values = dict(configured_lib.initial_values(built))
    if self._begins_from is not None and processes.is_first():
      read = _read(self._begins_from, init_checkpoint.sources(
          configured, self._begins_from))
      # The checkpoint may be of another type: see init_checkpoint.
      values |= {name: np.asarray(value, np.asarray(values[name]).dtype)
                 for name, value in read.items()}
    return values

  def _begin_event_files(self, step):
    """Tells readers to drop what an earlier run has of later steps."""
    model_dir = self._estimator.model_dir
    tf.summary.FileWriterCache.get(model_dir).add_session_log(
        tf.SessionLog(status=tf.SessionLog.START), step + 1)
    gin.tf.GinConfigSaverHook(
        model_dir, include_step_in_filename=False).after_create_session()


class _Loop:
  """The steps, and the checkpoints between them."""

  def __init__(self, on_devices, values, masters, supervisor):
    self._on_devices = on_devices
    self._values = values  # Also those that no step uses.
    self._masters = masters  # None where another process writes.
    self._supervisor = supervisor
    outputs = [name for name, part in on_devices.manifest.results.items()
               if part.kind == "output"]
    self._signs = records_lib.vital_signs(outputs)
    self._always = {configured_lib.LOSS, *self._signs}
    self._shapes = {
        name: part.shape for name, part in on_devices.manifest.arguments.items()
        if part.kind == "input"}
    self._running = None  # The step that devices may still be at.
    self._recorded = None  # The number and the time of the last record.

  @property
  def _step(self):
    return self._on_devices.global_step

  def run(self, batches, max_steps, save_steps):
    """Trains to a step, with a checkpoint after so many each time."""
    supervisor, first = self._supervisor, self._step
    supervisor.begin(first)
    saved = first
    votes = [processes.Vote(supervisor.wish)] * 2
    # Of several processes, the vote before the last one, so that nothing waits
    # for the last step.
    decided = int(processes.are_several())
    while self._step < max_steps and not votes[decided].result():
      due = supervisor.recorder.is_due(self._step + 1)
      outputs = self._on_devices.step(
          batches.next(self._put), outputs=None if due else self._always)
      self._observe((self._step, outputs, due))
      votes = [processes.Vote(supervisor.wish), votes[0]]
      if save_steps and self._step - saved >= save_steps:
        saved = self.save()
    if self._step < max_steps:
      supervisor.follow(votes[decided].result())
    if self._step != saved:
      self.save()

  def save(self) -> int:
    """Begins to write a checkpoint, if the last step was good."""
    self._observe(None)
    values = self._on_devices.get()  # All processes have a part in that.
    if self._masters is not None:
      self._values |= values
      self._masters.save(self._step, {
          **self._values, "global_step": np.int64(self._step)})
    return self._step

  def _observe(self, running):
    """Looks at the last step, while the devices are at the next one."""
    observed, self._running = self._running, running
    if observed is None:
      return
    number, outputs, due = observed
    found = {name: float(value)
             for name, value in jax.device_get(outputs).items()}
    if not math.isfinite(found[configured_lib.LOSS]) and self._masters:
      self._masters.wait()  # One of them is the last good one.
    self._supervisor.observe(Step(
        number, found[configured_lib.LOSS],
        {tag: found[tag] for tag in self._signs},
        found | self._speed(number) if due else {}))

  def _speed(self, number):
    """Steps a second since the last record, under the name of Estimators."""
    before, self._recorded = self._recorded, (number, time.monotonic())
    if before is None:
      return {}
    steps, seconds = np.subtract(self._recorded, before)
    return {"global_step/sec": steps / seconds}

  def _put(self, name, value):
    # The batch may have an outer dimension.
    return self._on_devices.put(name, value.reshape(self._shapes[name]))


def _read(path: str, sources: Mapping[str, str]) -> dict[str, np.ndarray]:
  """Values by the names that variables have here, from those in a checkpoint.
  """
  reader = tf.train.load_checkpoint(path)
  return {name: reader.get_tensor(source) for name, source in sources.items()}
