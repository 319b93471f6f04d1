"""How far training is, in a bar or in lines that a person can read."""

from collections.abc import Mapping
import os
import sys

import tqdm

from mtf_moe.run import console
from mtf_moe.train import records as records_lib

_STEPS = "step {n_fmt} of {total_fmt}"
# "step 120 of 900, loss 2.345, 8,123 tokens/s, busiest expert 1.4x, 1:34 left"
_LINE = "{postfix}, {remaining} left"
# What is cut off in a narrow terminal comes last.
_BAR = ", {remaining} left{postfix}"
_SPEED = "{speed}"  # In a text: where that of the line goes.


class Progress:
  """A bar in a terminal, and lines in the log file; or lines in a pipe."""

  def __init__(self, total: int, initial: int = 0,
               seconds_per_line: float = 10.0, steps: str = _STEPS,
               tokens_per_step: int = 0):
    """Starts the clock.

    Args:
      total: the steps of the whole.
      initial: the steps that are done.
      seconds_per_line: the time between two lines.
      steps: how many steps are done, as tqdm formats it.
      tokens_per_step: for the speed, which is in tokens.
    """
    def lines(write):
      return _Bar(
          tokens_per_step, total=total, initial=initial,
          bar_format=steps + _LINE, miniters=1,
          mininterval=seconds_per_line, file=_Lines(write),
          position=0,  # However many bars there are.
          delay=1e-9)  # No line before the first step.

    if sys.stdout.isatty():
      self._bars = [_live_bar(tokens_per_step, total, initial, steps),
                    lines(console.note)]
    else:
      self._bars = [lines(console.say)]

  def show(self, step: int, text: str = ""):
    """Shows that so many steps are done, and a text, where it is time to."""
    for bar in self._bars:
      bar.set_postfix_str(text, refresh=False)
      bar.update(step - bar.n)

  def close(self):
    """Shows the last state."""
    for bar in self._bars:
      bar.close()


class _Bar(tqdm.tqdm):
  """Its text can have the speed, that which the time left is taken from."""

  def __init__(self, tokens_per_step, **kwargs):
    self._tokens_per_step = tokens_per_step
    self._rate = None
    super().__init__(**kwargs)

  @property
  def format_dict(self):
    found = super().format_dict
    # When it is closed, tqdm forgets the rate, and would tell the last step
    # again with another.
    self._rate = found["rate"] or self._rate
    if not self._rate and found["elapsed"]:  # That of the whole.
      self._rate = (found["n"] - found["initial"]) / found["elapsed"] or None
    speed = (self._rate or 0.0) * self._tokens_per_step
    return {
        **found, "rate": self._rate,
        "postfix": (found["postfix"] or "").replace(
            _SPEED, f", {speed:,.0f} tokens/s" if speed else "")}


def _live_bar(tokens_per_step, total, initial, steps):
  size = {"dynamic_ncols": True}
  if not os.get_terminal_size(sys.stdout.fileno()).columns:
    size = {"ncols": 100, "nrows": 25}  # Not every terminal knows its size.
  return _Bar(
      tokens_per_step, total=total, initial=initial, miniters=1,
      mininterval=0.5,
      bar_format="{percentage:3.0f}% {bar:10} " + steps + _BAR,
      file=sys.stdout, **size)


class _Lines:
  """Where lines cannot be redrawn: each state of a bar in a line of its own."""

  def __init__(self, write):
    self._write = write
    self._last = ""

  def write(self, text):
    line = text.strip()
    if line and line != self._last:
      self._write(line)
      self._last = line

  def flush(self):
    pass


class TrainingProgress:
  """Shows step, loss, speed, the worst balance and the time left."""

  def __init__(self, total_steps: int, tokens_per_step: int,
               seconds_per_line: float, begins_from: str | None = None,
               shown: bool = True):
    """Makes it.

    Args:
      total_steps: the step at which training ends.
      tokens_per_step: how many tokens a step takes.
      seconds_per_line: the time between two lines.
      begins_from: the checkpoint of another run that this one begins from,
        where it does.
      shown: False where another process shows it.
    """
    self._shown = shown
    self._total_steps = total_steps
    self._tokens_per_step = tokens_per_step
    self._seconds_per_line = seconds_per_line
    self._begins_from = begins_from
    self._balance = ""
    self._progress = None

  def begin(self, first_step: int):
    """Says where training begins, and starts the clock."""
    if not self._shown:
      return
    if self._begins_from:
      console.say(
          f"beginning at step {first_step:,}, from {self._begins_from}")
    elif first_step:
      console.say(f"resuming at step {first_step:,}")
    self._progress = Progress(
        self._total_steps, first_step, self._seconds_per_line,
        tokens_per_step=self._tokens_per_step)

  def show_balance(self, records: Mapping[str, float]):
    """Takes note of what was recorded of a step, by tag."""
    busiest = records_lib.busiest(records)
    if busiest is not None:
      load, place = busiest
      self._balance = f", busiest expert {load:.1f}x ({place})"

  def observe(self, step: int, loss: float):
    """Shows a step, where it is time to."""
    if self._progress is None:
      return
    self._progress.show(step, f"loss {loss:.3f}{_SPEED}{self._balance}")

  def close(self):
    """Shows the last state, also where training ended by an error."""
    if self._progress is not None:
      self._progress.close()
