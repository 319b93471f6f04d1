"""Training that can be watched, stopped and trusted."""

import dataclasses
import functools

import gin
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf
from tensorflow_estimator import estimator as tf_estimator

from mtf_moe.run import console
from mtf_moe.run import layer_facts
from mtf_moe.run import recording
from mtf_moe.train import hooks as hooks_lib
from mtf_moe.train import made_with
from mtf_moe.train import processes
from mtf_moe.train import progress
from mtf_moe.train import reproducible
from mtf_moe.train import results
from mtf_moe.train import runtimes
from mtf_moe.train import supervision
from mtf_moe.train import time_limit


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
    runtime=runtimes.TENSORFLOW, evaluate_at_end=False, **kwargs):
  """Trains as mesh_tensorflow's function of this name does, and more safely.

  For `run.train_model_fn`. On a mesh of this machine, the same configuration
  comes to the same weights, bit for bit, in one run or in several, if the data
  does (run.skip_seen_data = True). So it does on the devices that JAX sees, to
  others: rounding and random numbers differ.

  Args:
    estimator: a TPUEstimator.
    vocabulary: a Vocabulary, or a pair of them.
    sequence_length: a dict from feature to integer.
    batch_size: an integer, sequences in a batch.
    train_dataset_fn: a function that returns a tf.data.Dataset.
    train_steps: an integer, the step to stop at.
    ensemble_inputs: an optional integer.
    seed: an integer, for all that is random, but on a TensorFlow TPU: initial
      values, dropout, the second choices that a policy draws. The order of text
      has a seed of its own, text_dataset.shuffle_seed.
    max_minutes: an optional float: stop after so many minutes of training,
      with a checkpoint, even if steps are left.
    seconds_per_line: a float, the time between two lines of progress where
      the output is no terminal.
    steps_per_record: an integer: the loss and the state of the mixtures are
      recorded in the first step and after so many more each time.
    seen_data_init_step: an integer, the step at which the data begins. 0 is
      the first of the run, also where that began from a checkpoint
      (run.init_checkpoint) at another.
    runtime: "tensorflow", or "xla" for the devices that JAX sees.
    evaluate_at_end: a boolean, whether the program, when training has ended,
      evaluates as runs/perplexity.gin does (see `evaluation.evaluate_at_end`).
    **kwargs: further arguments of mesh_tensorflow's train_model.

  Raises:
    ValueError: if an argument is not allowed.
    Stopped: if a signal stopped training.
    health.LossNotFinite: if the loss became NaN or infinite.
  """
  del evaluate_at_end  # The program does, which has all that it takes.
  model_dir = estimator.model_dir if processes.is_first() else None
  layers = layer_facts.read(model_dir) if model_dir else None
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
  start = _Start(**processes.of_first(
      dataclasses.asdict(_Start.found(model_dir)) if model_dir else None))
  if start.step >= train_steps > 0:
    console.say(
        f"the checkpoint is of step {start.step:,}, and run.train_steps = "
        f"{train_steps}: nothing is left to do")
    return
  console.say("building the graph")
  tokens_per_step = batch_size * sequence_length["targets"]
  supervisor = supervision.Supervisor(
      model_dir, layers, progress.TrainingProgress(
          train_steps, tokens_per_step, seconds_per_line, start.begins_from,
          shown=processes.is_first()),
      recording.Recorder(model_dir, steps_per_record),
      results.Meter(results.read_training(model_dir) if model_dir else None,
                    start.data_step, tokens_per_step),
      max_minutes, functools.partial(
          time_limit.told, train_steps=train_steps, max_minutes=max_minutes))
  try:
    utils.train_model(
        _on_devices(estimator, supervisor, seed, start.begins_from)
        if runtime == runtimes.XLA else
        _prepared(estimator, seed, steps_per_record, supervisor),
        vocabulary, sequence_length, batch_size, train_dataset_fn, train_steps,
        ensemble_inputs, seen_data_init_step=(
            seen_data_init_step or start.data_step), **kwargs)
  finally:
    supervisor.close()
  if model_dir is not None:
    results.keep_training(model_dir, supervisor.measured())
  if supervisor.received:
    raise Stopped(supervisor.received)


@dataclasses.dataclass(frozen=True)
class _Start:
  """Where a run starts.

  Attributes:
    step: an integer, that of its newest checkpoint; 0 where there is none.
    begins_from: the checkpoint of another run that it begins from, or None.
    data_step: an integer, the step at which its data begins.
  """

  step: int
  begins_from: str | None
  data_step: int

  @classmethod
  def found(cls, model_dir):
    path = tf.train.latest_checkpoint(model_dir)
    record = made_with.read(model_dir)
    began = record.began if record else None
    return cls(
        utils.get_step_from_checkpoint_path(path) if path else 0,
        began.init_checkpoint if began and not path else None,
        began.step if began else 0)


def _on_devices(estimator, supervisor, seed, begins_from):
  """What trains on the devices that JAX sees, which may not be installed."""
  from mtf_moe.train import device_training
  return device_training.DeviceTraining(
      estimator, supervisor, seed, begins_from)


def _prepared(estimator, seed, steps_per_record, supervisor):
  """An Estimator for this run, supervised.

  Args:
    estimator: a TPUEstimator.
    seed: an integer.
    steps_per_record: an integer.
    supervisor: a Supervisor.

  Returns:
    an Estimator
  """
  hook = hooks_lib.SupervisorHook(supervisor)
  if estimator.config.master:  # A TPU's.
    return _WithHook(estimator, hook)
  model_fn = reproducible.reproducible(estimator.model_fn, seed)

  def model_fn_that_saves_last(features, labels, mode, config):
    spec = model_fn(features, labels, mode, config)
    # Those of the chief come before all others, and one of them saves.
    return spec._replace(
        training_hooks=(*spec.training_hooks, *spec.training_chief_hooks),
        training_chief_hooks=())

  return _WithHook(tf_estimator.Estimator(
      model_fn_that_saves_last, config=estimator.config.replace(
          tf_random_seed=seed, save_summary_steps=steps_per_record,
          session_config=session_config())), hook)


def session_config() -> tf.ConfigProto:
  """How sessions train on a mesh of this machine.

  Graphs are run as they are built: patches.graphs_as_built says why.
  """
  config = tf.ConfigProto(allow_soft_placement=True)
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  return config


class _WithHook:
  """An estimator that trains with a further hook."""

  def __init__(self, estimator, hook):
    self._estimator = estimator
    self._hook = hook

  def __getattr__(self, name):
    return getattr(self._estimator, name)

  def train(self, hooks=(), **kwargs):
    return self._estimator.train(hooks=[*hooks, self._hook], **kwargs)
