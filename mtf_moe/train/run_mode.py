"""What the mode of a run needs, checked before anything is built."""

import os

import gin
import tensorflow.compat.v1 as tf

from mtf_moe.train import evaluation
from mtf_moe.train import sampling

# Those of mesh_tensorflow.transformer.utils.run.
MODES = ("train", "perplexity_eval", "infer", "eval", "score_eval",
         "score_from_strings", "score_from_dataset", "export_infer",
         "export_score", "export")
_EXPORTS = ("export_infer", "export_score", "export")
_NEWEST = -1


def get():
  """The value of run.mode."""
  return _bindings("utils.run").get("mode", "train")


def check(model_dir):
  """Checks the mode that gin has configured, and what it is to work with.

  Args:
    model_dir: a string, the directory of the run.

  Raises:
    ValueError: if there is no such mode, it needs a checkpoint and there is
      none, or an option of it is not allowed.
  """
  mode = get()
  if mode not in MODES:
    raise ValueError(
        f"run.mode = {mode!r} is not known. Choose one of: "
        f"{', '.join(map(repr, MODES))}.")
  if mode not in ("eval", "score_eval") and (
      _bindings("utils.run").get("sequence_length") is None):
    raise ValueError(
        f"run.sequence_length = None, and run.mode = {mode!r} needs one: set "
        "it to the tokens of a sequence, such as 128.")
  if mode == "train":
    _check_training_data()
  else:
    _check_has_checkpoint(model_dir, mode)
  if mode == "perplexity_eval":
    evaluation.check_options()
  if mode == "infer":
    sampling.check_prompts()


def _check_training_data():
  """Raises ValueError unless there is data to train on."""
  run = _bindings("utils.run")
  if run.get("train_dataset_fn") is None:
    raise ValueError(
        "run.train_dataset_fn is not set: add a file such as "
        "--gin_file=data/bytes.gin, or set it to a function that returns a "
        "tf.data.Dataset, such as @mtf_moe.text_dataset.")
  if run.get("dataset_split", "train") != "train":
    raise ValueError(
        f"run.dataset_split = {run['dataset_split']!r} is not for training: "
        'set it to "train", or run.mode to "perplexity_eval".')


def _check_has_checkpoint(model_dir, mode):
  """Raises unless a checkpoint is there.

  Without one, TensorFlow would evaluate newly initialized variables, or wait
  for ever.
  """
  if mode == "infer" and _bindings("infer_model").get("checkpoint_paths"):
    return  # They may be anywhere.
  name = ("export_checkpoint_step" if mode in _EXPORTS
          else "eval_checkpoint_step")
  if _bindings("utils.run").get(name) in (None, 0, _NEWEST):
    found = tf.train.latest_checkpoint(model_dir)
  else:
    found = tf.io.gfile.glob(os.path.join(model_dir, "model.ckpt-*.index"))
  if not found:
    raise ValueError(
        f"--model_dir={model_dir} holds no checkpoint, and run.mode = {mode!r} "
        "needs one: give the directory of a model that was trained, or train "
        'one there with run.mode = "train".')


def _bindings(name):
  """What gin binds, without calling the functions it refers to."""
  return gin.get_bindings(name, resolve_references=False)
