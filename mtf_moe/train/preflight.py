"""Checks of a run before TensorFlow does any work for it.

A mistake in a configuration should cost seconds and name the gin parameter; in
the middle of a TPUEstimator it costs minutes and names a tensor.
"""

from collections.abc import Sequence
import dataclasses
import math
import os

from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe.run import arithmetic
from mtf_moe.run import configured_model
from mtf_moe.run import console
from mtf_moe.run import gin_bindings
from mtf_moe.run import optimization
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.train import checkpoints
from mtf_moe.train import differences
from mtf_moe.train import evaluation
from mtf_moe.train import export
from mtf_moe.train import init_checkpoint
from mtf_moe.train import made_with
from mtf_moe.train import model_directory
from mtf_moe.train import run_mode
from mtf_moe.train import saved_variables

# Where the model depends on the data, its variables do not.
_ANY_LENGTH = 128


def check_configuration(model_dir: str) -> ConfiguredModel | None:
  """Checks what gin has configured for mesh_tensorflow's `run`.

  The model is built as an mtf graph, which needs no session, so the layers'
  own checks are made.

  Args:
    model_dir: a string, the directory of the run.

  Returns:
    a ConfiguredModel; None where the model depends on the data of an
    evaluation.

  Raises:
    ValueError: if the mode lacks something, the batch does not fit the mesh,
      the data cannot be read, or a layer refuses its parameters.
  """
  run_mode.check(model_dir)
  if run_mode.get() == "train":
    init_checkpoint.check_options()
  if run_mode.get() in export.MODES:
    vocabulary = gin_bindings.bound("utils.run", "vocabulary")
    configured_model.check_vocabulary(vocabulary)
    export.check_vocabularies(vocabulary)
  configured = ConfiguredModel.from_gin()
  if configured is not None:
    configured = dataclasses.replace(
        configured, data_features=_check_data(configured))
    _ = configured.variables  # Builds it.
    if run_mode.get() == "train":
      _ = configured.training_graph
      if evaluation.at_end():
        evaluation.check_at_end(configured.run)
  return configured


def _check_data(configured) -> Sequence[str] | None:
  """Makes the data set of a mode that has one, and throws it away.

  Returns:
    the names of its features that a model may read, if they are known
  """
  run = configured.run
  dataset_fn = run.get("train_dataset_fn")
  if dataset_fn is not None and run_mode.get() in ("train", "perplexity_eval"):
    with tf.Graph().as_default():
      dataset = dataset_fn(
          sequence_length=configured.lengths, vocabulary=run.get("vocabulary"),
          dataset_split=run.get("dataset_split", "train"))
      features = getattr(dataset, "element_spec", None)
      if isinstance(features, dict):
        _check_features(features, run.get("model_type", "bitransformer"))
        return [name for name in utils._MODEL_FEATURES if name in features]
  return None


def _check_features(features, model_type):
  """Sees that the data has what the type of model reads, and no more."""
  wanted = {"targets"} if model_type == "lm" else {"inputs", "targets"}
  there = {"inputs", "targets"} & features.keys()
  if there == wanted:
    return
  remedy = ("use 'lm' for targets alone" if there == {"targets"} else
            "use 'bitransformer', 'delimited_lm' or 'aligned' for both"
            if there == {"inputs", "targets"} else "use other data")
  raise ValueError(
      f"run.model_type = {model_type!r} reads {_list(wanted)}, and the "
      f"examples of run.train_dataset_fn have {_list(there) or 'neither'}: "
      f"{remedy}.")


def _list(names):
  return " and ".join(sorted(names))


def warn_of_wrong_products(tpu: str | None):
  """Warns where the run computes in bfloat16, and TensorFlow does so wrong.

  Args:
    tpu: the name or address of a TPU, if the run is on one.
  """
  dtypes = utils.get_variable_dtype()
  if not tpu and dtypes.activation_dtype == tf.bfloat16 and (
      arithmetic.is_wrong()):
    console.warn(arithmetic.ADVICE)


def check_checkpoint(model_dir: str, configured: ConfiguredModel | None):
  """Compares the configuration with what its checkpoints were made with.

  Args:
    model_dir: a string.
    configured: what `check_configuration` returned.

  Raises:
    ValueError: if a checkpoint that is used is of another model.
  """
  paths = run_mode.checkpoints_read(model_dir)
  if not paths:
    return
  trains = run_mode.get() == "train"
  use = differences.Use.GO_ON if trains else differences.Use.READ
  if configured is None:
    configured = _of_any_length()
  now = made_with.MadeWith.configured(configured)
  records = {}
  for path in paths:
    directory = os.path.dirname(path)
    place = (f"--model_dir={model_dir}"
             if directory == os.path.normpath(model_dir) else directory)
    if directory not in records:
      records[directory] = record = made_with.read(directory)
      if record is not None:
        differences.compare(record.settings, now, use, place)
    if configured is None:
      continue
    saved_variables.check(path, configured, place, differences.refuses())
    if trains:
      record = records[directory]
      saved_variables.check_training(
          path, configured, place,
          record and record.settings.optimizer.get("run.optimizer"))


def _of_any_length():
  """The model where lengths depend on the data, on which it does not.

  Returns:
    a ConfiguredModel; None where a length of the data might build one, and
    this one does not
  """
  try:
    configured = ConfiguredModel.from_gin(default_length=_ANY_LENGTH)
    _ = configured.variables
  except ValueError:
    return None
  return configured


def find_beginning(
    model_dir: str, configured: ConfiguredModel
) -> init_checkpoint.TakenOver | None:
  """Checks what a training run begins from, where it does not go on.

  Args:
    model_dir: a string, a directory that may not exist yet.
    configured: what `check_configuration` returned.

  Returns:
    a TakenOver; None where the run goes on, or begins at random

  Raises:
    ValueError: if run.init_checkpoint cannot be taken over, or the learning
      rate is none from there on.
  """
  newest, taken, first_step = checkpoints.newest(model_dir), None, 0
  if newest is not None:
    first_step = utils.get_step_from_checkpoint_path(newest)
  else:
    taken = init_checkpoint.find(configured)
    first_step = taken.beginning.step if taken else 0
  steps = configured.train_steps
  if first_step < steps:
    optimization.check_rates(
        configured.run.get("learning_rate_schedule"), configured.total_steps,
        first_step, steps - 1)
  return taken


def begin(
    model_dir: str, configured: ConfiguredModel,
    taken: init_checkpoint.TakenOver | None) -> made_with.Record:
  """Tells what a training run begins from or goes on from.

  Args:
    model_dir: a string, a directory that `check_checkpoint` has passed.
    configured: what `check_configuration` returned.
    taken: what `find_beginning` returned.

  Returns:
    a Record, to be kept in the directory

  Raises:
    ValueError: if the run goes on, and its data would not.
  """
  now = made_with.MadeWith.configured(configured)
  if taken is not None:
    console.say(taken.told)
    differences.compare_source(
        taken.beginning.init_checkpoint, now, differences.Use.BEGIN)
    return made_with.Record(
        now, taken.beginning,
        configuration=made_with.configuration_of(now))
  path = checkpoints.newest(model_dir)
  record = made_with.read(model_dir) if path is not None else None
  if path is not None:
    init_checkpoint.check_resumed(
        model_dir, record and record.began, configured)
  if record is None:
    return made_with.Record(
        now, configuration=made_with.configuration_of(now))
  return record.updated(now, utils.get_step_from_checkpoint_path(path))


def check_space(model_dir: str, configured: ConfiguredModel):
  """Sees that one checkpoint more fits on the disk.

  Args:
    model_dir: a string, a directory that exists.
    configured: what `check_configuration` returned.

  Raises:
    ValueError: if it does not.
  """
  path = checkpoints.newest(model_dir)
  if path is not None:
    size = checkpoints.size(path)
  else:  # And what the optimizer keeps, which is not known yet.
    master = utils.get_variable_dtype().master_dtype
    size = master.size * sum(map(math.prod, configured.variables.values()))
  model_directory.check_space(model_dir, size)
