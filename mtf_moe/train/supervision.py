"""What happens beside the steps of training, whatever runs them.

Records, health, progress, the time limit and signals. Who runs the steps asks
whether records are due, tells what each step was, and stops when it is told to:

    supervisor.begin(first_step)
    while not supervisor.wish:
      supervisor.observe(Step(...))
    supervisor.close()
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import signal
import time

from mtf_moe.run import console
from mtf_moe.run.layer_facts import LayerFacts
from mtf_moe.run.recording import Recorder
from mtf_moe.train import checkpoints
from mtf_moe.train import health
from mtf_moe.train.progress import TrainingProgress
from mtf_moe.train.results import Meter
from mtf_moe.train.results import Training


@dataclasses.dataclass(frozen=True)
class Step:
  """What a step of training was.

  Attributes:
    number: an integer, 1 for the first.
    loss: a float.
    signs: the vital signs of the mixtures (`records.vital_signs`), by tag.
    records: all that mixtures recorded, by tag; empty where it was not due.
  """

  number: int
  loss: float
  signs: Mapping[str, float]
  records: Mapping[str, float]


GO_ON, TIME_IS_UP = 0, 1


class Supervisor:
  """Watches a run.

  Attributes:
    recorder: a `Recorder`, which says when records are due.
    wish: `GO_ON`, `TIME_IS_UP`, or the number of the signal that was received:
      other than zero, no further step is wanted.
  """

  def __init__(self, model_dir: str | None, layers: Sequence[LayerFacts] | None,
               progress: TrainingProgress, recorder: Recorder,
               meter: Meter, max_minutes: float | None = None,
               time_is_up: Callable[[int], str] = lambda step: "time is up"):
    """Makes it.

    Args:
      model_dir: a string; None where another process has it.
      layers: the mixtures of the model; None where they are not known.
      progress: shows how far training is.
      recorder: writes what is recorded.
      meter: measures what training takes.
      max_minutes: a number, after how many to stop; None for no limit.
      time_is_up: what is said then, of the last step.
    """
    self.recorder = recorder
    self.wish = GO_ON
    self._model_dir = model_dir
    self._progress = progress
    self._meter = meter
    self._losses = health.LossWatch(layers)
    self._origin = health.OriginWatch(layers)
    self._starvation = health.StarvationWatch(layers)
    self._z_loss = health.z_loss_setting(layers)
    self._seconds = math.inf if max_minutes is None else 60 * max_minutes
    self._time_is_up = time_is_up
    self._end = math.inf
    self._signals = _Signals()

  @property
  def received(self) -> signal.Signals | None:
    """The signal that stopped training, or None."""
    return signal.Signals(self.wish) if self.wish > TIME_IS_UP else None

  def begin(self, first_step: int):
    """Starts the clock, before the step after `first_step`."""
    self._end = time.monotonic() + self._seconds
    self._progress.begin(first_step)
    self._meter.begin(first_step)
    self._last = first_step
    self._signals.wait()

  def observe(self, step: Step):
    """Takes note of a step, before it is saved.

    Raises:
      health.LossNotFinite: if its loss is not finite.
    """
    self._origin.observe(step.number, step.signs)
    if not math.isfinite(step.loss):
      raise self._not_finite(step)
    _warn(self._losses.observe(step.number, step.loss))
    self._meter.observe(step.loss, step.records)
    if step.records:
      self.recorder.write(step.number, step.records)
      self._progress.show_balance(step.records)
      _warn(self._starvation.observe(step.number, step.records))
    self._last = step.number
    self._progress.observe(step.number, step.loss)
    if self.wish == GO_ON:
      if self._signals.received:
        self.wish = int(self._signals.received)
        console.warn(f"{self.received.name}: saving, then stopping")
      elif time.monotonic() >= self._end:
        self.wish = TIME_IS_UP
        console.say(self._time_is_up(step.number))

  def follow(self, wish: int):
    """Takes over what processes have decided together."""
    if wish == GO_ON or self.wish != GO_ON:
      return
    self.wish = wish
    what = self.received.name if self.received else "time is up"
    console.warn(f"{what}, in another process: saving, then stopping")

  def measured(self) -> Training:
    """What training has taken, up to the last step."""
    return self._meter.end(self._last)

  def close(self):
    """Ends it, also where training ended by an error."""
    self._signals.restore()
    self._progress.close()

  def _not_finite(self, step):
    good = (checkpoints.newest_good(self._model_dir) if self._model_dir
            else "that of the first process")
    or_z_loss = f", or {self._z_loss}," if self._z_loss else ""
    return health.LossNotFinite(
        f"the loss is {step.loss} at step {step.number:,}. "
        f"{self._origin.describe()} Set a lower run.learning_rate_schedule"
        f"{or_z_loss} and run again, which goes on from the last good "
        f"checkpoint: {good or 'none'}.")


def _warn(warning):
  if warning:
    console.warn(warning)


class _Signals:
  """Takes note of SIGTERM and of Ctrl-C.

  A second signal ends the program at once. Before the first step nothing would
  be saved, so there signals do what they always do.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.received = None
    self._handlers = {}

  def wait(self):
    for number in self._SIGNALS:
      self._handlers[number] = signal.signal(number, self._receive)

  def _receive(self, number, unused_frame):
    self.received = signal.Signals(number)
    self.restore()

  def restore(self):
    """Lets signals do what they did before."""
    while self._handlers:
      signal.signal(*self._handlers.popitem())
