"""Checks of a run before TensorFlow does any work for it.

A mistake in a configuration should cost seconds and name the gin parameter; in
the middle of a TPUEstimator it costs minutes and names a tensor.
"""

import math

from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe.run import arithmetic
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.train import checkpoints
from mtf_moe.train import console
from mtf_moe.train import model_directory
from mtf_moe.train import run_mode


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
  configured = ConfiguredModel.from_gin()
  if configured is not None:
    _check_data(configured)
    _ = configured.variables  # Builds it.
  return configured


def _check_data(configured):
  """Makes the data set of a mode that has one, and throws it away."""
  run = configured.run
  dataset_fn = run.get("train_dataset_fn")
  if dataset_fn is not None and run_mode.get() in ("train", "perplexity_eval"):
    with tf.Graph().as_default():
      dataset_fn(
          sequence_length=configured.lengths, vocabulary=run.get("vocabulary"),
          dataset_split=run.get("dataset_split", "train"))


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
  """Compares the variables with those of the checkpoint to go on from.

  Args:
    model_dir: a string.
    configured: what `check_configuration` returned.

  Raises:
    ValueError: if the newest checkpoint has variables of other shapes.
  """
  path = tf.train.latest_checkpoint(model_dir)
  if path is None or configured is None:
    return
  saved = tf.train.load_checkpoint(path).get_variable_to_shape_map()
  for name, shape in sorted(configured.variables.items()):
    if saved.get(name) != shape:
      there = (f"has the shape {saved[name]}" if name in saved
               else "does not exist")
      raise ValueError(
          f"--model_dir={model_dir} holds a checkpoint of another model: "
          f"variable {name} has the shape {shape} in this configuration, and "
          f"{there} in {path}. Choose a new --model_dir, or go back to the "
          "configuration in its operative_config.gin.")


def check_space(model_dir: str, configured: ConfiguredModel):
  """Sees that one checkpoint more fits on the disk.

  Args:
    model_dir: a string, a directory that exists.
    configured: what `check_configuration` returned.

  Raises:
    ValueError: if it does not.
  """
  path = tf.train.latest_checkpoint(model_dir)
  if path is not None:
    size = checkpoints.size(path)
  else:  # And what the optimizer keeps, which is not known yet.
    master = utils.get_variable_dtype().master_dtype
    size = master.size * sum(map(math.prod, configured.variables.values()))
  model_directory.check_space(model_dir, size)
