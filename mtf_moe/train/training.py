"""Training that can be watched, stopped and trusted."""

import gin
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf
from tensorflow_estimator import estimator as tf_estimator

from mtf_moe.run import console
from mtf_moe.run import layer_facts
from mtf_moe.train import health
from mtf_moe.train import hooks as hooks_lib
from mtf_moe.train import made_with
from mtf_moe.train import progress
from mtf_moe.train import reproducible


class Stopped(Exception):
  """A signal has stopped training, with a checkpoint."""

  def __init__(self, signal):
    super().__init__(f"stopped by {signal.name}")
    self.signal = signal


@gin.configurable(module="mtf_moe")
def train_model(
    estimator, vocabulary, sequence_length, batch_size, train_dataset_fn,
    train_steps, ensemble_inputs, seed=0, max_minutes=None,
    seconds_per_line=10.0, steps_per_record=100, seen_data_init_step=0,
    **kwargs):
  """Trains as mesh_tensorflow's function of this name does, and more safely.

  For `run.train_model_fn`. On a mesh of this machine, the same configuration
  comes to the same weights, bit for bit, in one run or in several, if the data
  does (run.skip_seen_data = True).

  Args:
    estimator: a TPUEstimator.
    vocabulary: a Vocabulary, or a pair of them.
    sequence_length: a dict from feature to integer.
    batch_size: an integer, sequences in a batch.
    train_dataset_fn: a function that returns a tf.data.Dataset.
    train_steps: an integer, the step to stop at.
    ensemble_inputs: an optional integer.
    seed: an integer, for all that is random on a mesh of this machine: initial
      values, dropout, the second choices that a policy draws.
    max_minutes: an optional float: stop after so many minutes of training,
      with a checkpoint, even if steps are left.
    seconds_per_line: a float, the time between two lines of progress where
      the output is no terminal.
    steps_per_record: an integer: the loss and the state of the mixtures are
      recorded in the first step and after so many more each time.
    seen_data_init_step: an integer, the step at which the data begins. 0 is
      the first of the run, also where that began from a checkpoint
      (run.init_checkpoint) at another.
    **kwargs: further arguments of mesh_tensorflow's train_model.

  Raises:
    ValueError: if an argument is not allowed.
    Stopped: if a signal stopped training.
    health.LossNotFinite: if the loss became NaN or infinite.
  """
  layers = layer_facts.read(estimator.model_dir)
  if max_minutes is not None and max_minutes <= 0:
    raise ValueError(
        f"train_model.max_minutes = {max_minutes!r} must be above 0: set it to "
        "the minutes you have, or to None for no limit.")
  if not isinstance(steps_per_record, int) or steps_per_record < 1:
    raise ValueError(
        f"train_model.steps_per_record = {steps_per_record!r} must be a number "
        "of steps, 1 or more: 100 costs next to nothing. To record nothing of "
        "the mixtures, set "
        f"{layer_facts.settings(layers, 'summaries', False)}.")
  if _is_done(estimator, train_steps):
    return
  console.say("building the graph")
  began = _beginning(estimator.model_dir)
  begins = began is not None and estimator.latest_checkpoint() is None
  shown = progress.ProgressHook(
      train_steps, batch_size * sequence_length["targets"], seconds_per_line,
      began.init_checkpoint if begins else None)
  starvation = health.StarvationWatch(layers)

  def warn_of_starvation(step, records):
    warning = starvation.observe(step, records)
    if warning:
      console.warn(warning)

  on_signal = hooks_lib.SignalHook()
  hooks = [
      hooks_lib.RecordHook(estimator.model_dir, steps_per_record,
                           [shown.show_balance, warn_of_starvation]),
      shown, on_signal]
  if max_minutes is not None:
    hooks.append(hooks_lib.TimeLimitHook(max_minutes))
  try:
    utils.train_model(
        _WithHooks(_prepared(estimator, seed, steps_per_record, layers), hooks),
        vocabulary, sequence_length, batch_size, train_dataset_fn, train_steps,
        ensemble_inputs, seen_data_init_step=(
            seen_data_init_step or (began.step if began else 0)), **kwargs)
  finally:
    on_signal.restore()
    shown.close()
  if on_signal.received:
    raise Stopped(on_signal.received)


def _beginning(model_dir):
  """The Beginning of a run, which may be long ago; None for a random one."""
  record = made_with.read(model_dir)
  return record.began if record else None


def _is_done(estimator, train_steps):
  """Whether the model has been trained for all of the steps."""
  path = estimator.latest_checkpoint()
  step = utils.get_step_from_checkpoint_path(path) if path else 0
  if step >= train_steps > 0:
    console.say(
        f"the checkpoint is of step {step:,}, and run.train_steps = "
        f"{train_steps}: nothing is left to do")
    return True
  return False


def _prepared(estimator, seed, steps_per_record, layers):
  """An Estimator for this run.

  Args:
    estimator: a TPUEstimator.
    seed: an integer.
    steps_per_record: an integer.
    layers: what the mixtures are, or None where that is not known.

  Returns:
    an Estimator, with the health of the run watched
  """
  guard = hooks_lib.HealthHook(estimator.model_dir, layers)
  if estimator.config.master:  # A TPU's.
    return _WithHooks(estimator, [guard])
  model_fn = reproducible.reproducible(estimator.model_fn, seed)

  def guarded_model_fn(features, labels, mode, config):
    spec = model_fn(features, labels, mode, config)
    # Before the one that saves, which is among them.
    return spec._replace(
        training_chief_hooks=(guard, *spec.training_chief_hooks))

  return tf_estimator.Estimator(
      guarded_model_fn, config=estimator.config.replace(
          tf_random_seed=seed, save_summary_steps=steps_per_record,
          session_config=session_config()))


def session_config() -> tf.ConfigProto:
  """How sessions train on a mesh of this machine.

  Graphs are run as they are built: patches.graphs_as_built says why.
  """
  config = tf.ConfigProto(allow_soft_placement=True)
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  return config


class _WithHooks:
  """An estimator that trains with further hooks."""

  def __init__(self, estimator, hooks):
    self._estimator = estimator
    self._hooks = hooks

  def __getattr__(self, name):
    return getattr(self._estimator, name)

  def train(self, hooks=(), **kwargs):
    return self._estimator.train(hooks=[*hooks, *self._hooks], **kwargs)
