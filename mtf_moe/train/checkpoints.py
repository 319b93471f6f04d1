"""Checkpoints that can be trusted: whole, readable, finite."""

import json
import os

import gin
from mesh_tensorflow.transformer import utils
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.train import console

# Where damaged checkpoints go. Not in the model directory itself, where
# mesh_tensorflow would take them for checkpoints.
_DAMAGED = "damaged"


def problem(path: str) -> str | None:
  """What is wrong with a checkpoint, from reading all of it.

  Args:
    path: a string, such as /model/model.ckpt-100.

  Returns:
    a string, or None if it can be read and all of its values are finite.
  """
  try:
    reader = tf.train.load_checkpoint(path)
    for name in sorted(reader.get_variable_to_shape_map()):
      value = reader.get_tensor(name)  # Compares checksums.
      if not np.isfinite(value.astype(np.float32)).all():
        return f"variable {name} has values that are not finite"
  except Exception as error:  # The reader has many ways to put it.
    return f"it cannot be read ({str(error).splitlines()[0]})"
  return None


def newest_good(model_dir: str) -> str | None:
  """The path of the newest checkpoint without a problem, or None."""
  for path in reversed(_all(model_dir)):
    if problem(path) is None:
      return path
  return None


@gin.configurable(module="mtf_moe")
def set_aside_damaged(model_dir: str, enabled: bool = True):
  """Makes the newest checkpoint without a problem the one that runs go on from.

  Newer ones, which are damaged or have values that are not finite, are told of
  and moved into a folder.

  Args:
    model_dir: a string, the directory of a run that nobody else writes to.
    enabled: a boolean. False saves the time to read the newest checkpoint.

  Raises:
    ValueError: if there are checkpoints, and none of them is good.
  """
  remove_remains(model_dir)
  good = _all(model_dir)
  if not enabled or not good:
    return
  damaged = []
  while good and (reason := problem(good[-1])) is not None:
    damaged.append((good.pop(), reason))
  if not good:
    path, reason = damaged[0]
    raise ValueError(
        f"--model_dir={model_dir} has no good checkpoint. Of the newest, "
        f"{os.path.basename(path)}, {reason}. Put a good one in its place, or "
        "choose another --model_dir to begin anew.")
  for path, reason in damaged:
    _move(path, os.path.join(model_dir, _DAMAGED))
    console.warn(
        f"the checkpoint {os.path.basename(path)} is damaged: {reason}. It is "
        f"now in {model_dir}/{_DAMAGED}, and {os.path.basename(good[-1])} is "
        "used in its place.")
  recorded = _recorded(model_dir)
  if recorded[-1:] != good[-1:]:
    # A run may also have been killed between a checkpoint and its record.
    older = [path for path in recorded if path in good[:-1]]
    _record(model_dir, older + good[-1:])


def remove_remains(model_dir: str):
  """Removes what was written of checkpoints that were not finished."""
  for remains in tf.io.gfile.glob(f"{model_dir}/model.ckpt-*_temp*"):
    tf.io.gfile.rmtree(remains)


def size(path: str) -> int:
  """The bytes of a checkpoint on the disk."""
  return sum(tf.io.gfile.stat(file).length for file in _files(path))


def _all(model_dir):
  """The paths of all checkpoints, oldest first."""
  paths = {file.removesuffix(".index")
           for file in tf.io.gfile.glob(f"{model_dir}/model.ckpt-*.index")}
  paths.update(_recorded(model_dir)[-1:])  # Whose files may be missing.
  return sorted(paths, key=utils.get_step_from_checkpoint_path)


def _recorded(model_dir):
  """The paths of the checkpoints that TensorFlow keeps account of."""
  state = tf.train.get_checkpoint_state(model_dir)
  return list(state.all_model_checkpoint_paths) if state else []


def _record(model_dir, paths):
  """Writes TensorFlow's account anew.

  With names instead of paths, so that the directory can be moved, which
  tf.train.update_checkpoint_state does not do.
  """
  names = [json.dumps(os.path.basename(path)) for path in paths]
  lines = [f"model_checkpoint_path: {names[-1]}"]
  lines += [f"all_model_checkpoint_paths: {name}" for name in names]
  path = os.path.join(model_dir, "checkpoint")
  with tf.io.gfile.GFile(f"{path}.tmp", "w") as f:
    f.write("\n".join(lines) + "\n")
  tf.io.gfile.rename(f"{path}.tmp", path, overwrite=True)


def _files(path):
  """The files of a checkpoint: its index, data and graph."""
  return tf.io.gfile.glob(f"{path}.*")


def _move(path, directory):
  tf.io.gfile.makedirs(directory)
  for file in _files(path):
    tf.io.gfile.rename(
        file, os.path.join(directory, os.path.basename(file)), overwrite=True)
