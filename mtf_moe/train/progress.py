"""Training with one line of progress that a person can read."""

import os
import sys
import time

import gin
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf
import tqdm

from mtf_moe.train import summaries

# "step 120 of 900, loss 2.345, 8,123 tokens/s, 1:34 left"
_LINE = "step {n_fmt} of {total_fmt}{postfix}, {remaining} left"


@gin.configurable(module="mtf_moe")
def train_model(
    estimator, vocabulary, sequence_length, batch_size, train_dataset_fn,
    train_steps, ensemble_inputs, max_minutes=None, seconds_per_line=10,
    **kwargs):
  """Trains as mesh_tensorflow's function of this name does, and says how far.

  For `run.train_model_fn`.

  Args:
    estimator: a TPUEstimator.
    vocabulary: a Vocabulary, or a pair of them.
    sequence_length: a dict from feature to integer.
    batch_size: an integer, sequences in a batch.
    train_dataset_fn: a function that returns a tf.data.Dataset.
    train_steps: an integer, the step to stop at.
    ensemble_inputs: an optional integer.
    max_minutes: an optional float: stop after so many minutes of training,
      with a checkpoint, even if steps are left.
    seconds_per_line: a float, the time between two lines of progress where
      the output is no terminal.
    **kwargs: further arguments of mesh_tensorflow's train_model.
  """
  if max_minutes is not None and max_minutes <= 0:
    raise ValueError(
        f"train_model.max_minutes = {max_minutes!r} must be above 0: set it to "
        "the minutes you have, or to None for no limit.")
  print("building the graph", flush=True)
  _keep_previous_config(estimator.model_dir)
  hooks = [
      summaries.SummaryHook(),
      _ProgressHook(
          train_steps, batch_size * sequence_length["targets"],
          seconds_per_line)]
  if max_minutes is not None:
    hooks.append(_TimeLimitHook(max_minutes))
  utils.train_model(
      _WithHooks(estimator, hooks), vocabulary, sequence_length, batch_size,
      train_dataset_fn, train_steps, ensemble_inputs, **kwargs)


class _WithHooks:
  """An estimator that trains with further hooks."""

  def __init__(self, estimator, hooks):
    self._estimator = estimator
    self._hooks = hooks

  def __getattr__(self, name):
    return getattr(self._estimator, name)

  def train(self, hooks=(), **kwargs):
    return self._estimator.train(hooks=[*hooks, *self._hooks], **kwargs)


class _ProgressHook(tf.train.SessionRunHook):
  """Shows step, loss, speed and the time left."""

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

  def begin(self):
    # Estimator puts the training loss of the model there.
    self._loss = tf.get_collection(tf.GraphKeys.LOSSES)[-1]

  def after_create_session(self, session, coord):
    first_step = int(session.run(tf.train.get_global_step()))
    if first_step:
      print(f"resuming at step {first_step:,}", flush=True)
    in_terminal = sys.stdout.isatty()
    self._bar = tqdm.tqdm(
        total=self._total_steps, initial=first_step, bar_format=_LINE,
        miniters=1, mininterval=0.5 if in_terminal else self._seconds_per_line,
        delay=1e-9,  # Nothing to show before the first step.
        file=sys.stdout if in_terminal else _Lines())

  def before_run(self, run_context):
    return tf.train.SessionRunArgs((self._loss, tf.train.get_global_step()))

  def after_run(self, run_context, run_values):
    loss, step = run_values.results
    shown = f"loss {loss:.3f}"
    steps_per_second = self._bar.format_dict["rate"]
    if steps_per_second:  # Known from the second line on.
      tokens_per_second = steps_per_second * self._tokens_per_step
      shown += f", {tokens_per_second:,.0f} tokens/s"
    self._bar.set_postfix_str(shown, refresh=False)
    self._bar.update(int(step) - self._bar.n)

  def end(self, session):
    self._bar.close()


class _Lines:
  """Where lines cannot be redrawn: each state of a bar in a line of its own."""

  def __init__(self):
    self._last = ""

  def write(self, text):
    line = text.strip()
    if line and line != self._last:
      print(line, flush=True)
      self._last = line

  def flush(self):
    pass


class _TimeLimitHook(tf.train.SessionRunHook):
  """Stops training, as if it were over, when the time is up."""

  def __init__(self, minutes):
    self._seconds = 60 * minutes

  def after_create_session(self, session, coord):
    self._end = time.monotonic() + self._seconds

  def after_run(self, run_context, run_values):
    if time.monotonic() >= self._end:
      print("time is up", flush=True)
      run_context.request_stop()


def _keep_previous_config(model_dir):
  """Renames the gin config of an earlier run, which the next would replace."""
  path = os.path.join(model_dir, "operative_config.gin")
  if tf.io.gfile.exists(path):
    number = 1
    while tf.io.gfile.exists(f"{path}.{number}"):
      number += 1
    tf.io.gfile.copy(path, f"{path}.{number}")
