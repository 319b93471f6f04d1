"""Checks of a run before TensorFlow does any work for it.

A mistake in a configuration should cost seconds and name the gin parameter; in
the middle of a TPUEstimator it costs minutes and names a tensor.
"""

import tensorflow.compat.v1 as tf

from mtf_moe.configured_model import ConfiguredModel
from mtf_moe.train import run_mode


def check_run(model_dir):
  """Checks what gin has configured for mesh_tensorflow's `run`.

  The model is built as an mtf graph, which needs no session, so the layers'
  own checks are made, and its variables are compared with those of the
  checkpoint to resume from.

  Args:
    model_dir: a string, the directory of the run.

  Raises:
    ValueError: if the mode lacks something, the batch does not fit the mesh,
      the data cannot be read, a layer refuses its parameters, or the checkpoint
      has other shapes.
  """
  run_mode.check(model_dir)
  configured = ConfiguredModel.from_gin()
  if configured is not None:
    _check_data(configured)
    _check_checkpoint(model_dir, configured.variables())


def _check_data(configured):
  """Makes the data set of a mode that has one, and throws it away."""
  run = configured.run
  mode = run.get("mode", "train")
  dataset_fn = run.get("train_dataset_fn")
  if mode in ("train", "perplexity_eval") and dataset_fn is not None:
    with tf.Graph().as_default():
      dataset_fn(
          sequence_length=configured.lengths, vocabulary=run.get("vocabulary"),
          dataset_split=run.get("dataset_split", "train"))


def _check_checkpoint(model_dir, variables):
  """Raises if the newest checkpoint has variables of other shapes."""
  path = tf.train.latest_checkpoint(model_dir)
  if path is None:
    return
  saved = tf.train.load_checkpoint(path).get_variable_to_shape_map()
  for name, shape in sorted(variables.items()):
    if saved.get(name) != shape:
      there = (f"has the shape {saved[name]}" if name in saved
               else "does not exist")
      raise ValueError(
          f"--model_dir={model_dir} holds a checkpoint of another model: "
          f"variable {name} has the shape {shape} in this configuration, and "
          f"{there} in {path}. Choose a new --model_dir, or go back to the "
          "configuration in its operative_config.gin.")
