"""How far training is, in a bar or in lines that a person can read."""

import sys

import tensorflow.compat.v1 as tf
import tqdm

from mtf_moe.train import console
from mtf_moe.train import hooks
from mtf_moe.train import records as records_lib
from mtf_moe.train import reproducible

# "step 120 of 900, loss 2.345, 8,123 tokens/s, busiest expert 1.4x, 1:34 left"
_LINE = "step {n_fmt} of {total_fmt}{postfix}, {remaining} left"


def bar(total, initial=0, seconds_per_line=10.0, line=_LINE):
  """A tqdm bar: live in a terminal, plain lines in a file or a pipe.

  Args:
    total: an integer, the steps of the whole.
    initial: an integer, the steps that are done.
    seconds_per_line: a float, the time between two plain lines.
    line: a string, what it shows, as tqdm formats it.

  Returns:
    a tqdm.tqdm
  """
  in_terminal = sys.stdout.isatty()
  return tqdm.tqdm(
      total=total, initial=initial, miniters=1, dynamic_ncols=True,
      bar_format="{percentage:3.0f}% {bar} " + line if in_terminal else line,
      mininterval=0.5 if in_terminal else seconds_per_line,
      delay=1e-9,  # Nothing to show before the first step.
      file=sys.stdout if in_terminal else _Lines())


class _Lines:
  """Where lines cannot be redrawn: each state of a bar in a line of its own."""

  def __init__(self):
    self._last = ""

  def write(self, text):
    line = text.strip()
    if line and line != self._last:
      console.say(line)
      self._last = line

  def flush(self):
    pass


class ProgressHook(tf.train.SessionRunHook):
  """Shows step, loss, speed, the worst balance and the time left."""

  def __init__(self, total_steps, tokens_per_step, seconds_per_line):
    """Makes the hook.

    Args:
      total_steps: an integer.
      tokens_per_step: an integer.
      seconds_per_line: a float.
    """
    self._total_steps = total_steps
    self._tokens_per_step = tokens_per_step
    self._seconds_per_line = seconds_per_line
    self._balance = ""

  def show_balance(self, step, records):
    """Takes note of what was recorded of a step, from a RecordHook."""
    del step
    busiest = records_lib.busiest(records)
    if busiest is not None:
      load, place = busiest
      self._balance = f", busiest expert {load:.1f}x ({place})"

  def begin(self):
    self._fetches = hooks.loss(), reproducible.step_after()

  def after_create_session(self, session, coord):
    first_step = int(session.run(tf.train.get_global_step()))
    if first_step:
      console.say(f"resuming at step {first_step:,}")
    self._bar = bar(self._total_steps, first_step, self._seconds_per_line)

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._fetches)

  def after_run(self, run_context, run_values):
    loss, step = run_values.results
    shown = f"loss {loss:.3f}"
    steps_per_second = self._bar.format_dict["rate"]
    if steps_per_second:  # Known from the second line on.
      tokens_per_second = steps_per_second * self._tokens_per_step
      shown += f", {tokens_per_second:,.0f} tokens/s"
    self._bar.set_postfix_str(shown + self._balance, refresh=False)
    self._bar.update(int(step) - self._bar.n)

  def end(self, session):
    self._bar.close()
