"""Checkpoints that can be trusted: whole, readable, finite, in their place."""

from collections.abc import Container
import json
import os
import re
import shutil

import gin
from mesh_tensorflow.transformer import utils
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.run import console
from mtf_moe.run import paths

# Where damaged checkpoints go. Not in the model directory itself, where
# mesh_tensorflow would take them for checkpoints.
_DAMAGED = "damaged"
_NAME = r"model\.ckpt-[0-9]+"
# Where TensorFlow keeps account of them.
_ACCOUNT = "checkpoint"
_MOST_ACCOUNT_BYTES = 2 ** 20


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


def usable(model_dir: str, besides: Container[str] = ()) -> list[str]:
  """The checkpoints of a directory, by the names of its files alone.

  Args:
    model_dir: a string.
    besides: paths of checkpoints that are not to be used.

  Returns:
    paths in the directory, oldest first; runs go on from the last one
  """
  names = {name.removesuffix(".index")
           for name in paths.names(model_dir, rf"{_NAME}\.index")}
  # Whose index may be missing.
  names.update(name for name in _recorded(model_dir)[-1:]
               if _files(os.path.join(model_dir, name)))
  found = [os.path.join(model_dir, name)
           for name in sorted(names, key=utils.get_step_from_checkpoint_path)]
  return [path for path in found if path not in besides]


def newest(model_dir: str) -> str | None:
  """The path of the checkpoint that runs go on from, or None."""
  return (usable(model_dir) or [None])[-1]


def newest_good(model_dir: str) -> str | None:
  """The path of the newest checkpoint without a problem, or None."""
  for path in reversed(usable(model_dir)):
    if problem(path) is None:
      return path
  return None


@gin.configurable(module="mtf_moe", denylist=["move"])
def set_aside_damaged(
    model_dir: str, enabled: bool = True, move: bool = True) -> list[str]:
  """Makes the newest checkpoint without a problem the one that runs go on from.

  Newer ones, which are damaged or have values that are not finite, are told of
  and moved into a folder. TensorFlow's account of the checkpoints is made to
  have no others than those in the directory, since TensorFlow removes those
  that have become old wherever they are.

  Args:
    model_dir: a string, the directory of a run that nobody else writes to.
    enabled: a boolean. False saves the time to read the newest checkpoint.
    move: a boolean. False only tells, and leaves the directory as it is, for
      those who do not own it.

  Returns:
    the paths that damaged checkpoints have or had

  Raises:
    ValueError: if there are checkpoints, and none of them is good, or they are
      not where TensorFlow's account has them.
  """
  _tell_of_account(model_dir)
  if move:
    remove_remains(model_dir)
  good = usable(model_dir)
  damaged = []
  while enabled and good and (reason := problem(good[-1])) is not None:
    damaged.append((good.pop(), reason))
  if damaged and not good:
    path, reason = damaged[0]
    raise ValueError(
        f"--model_dir={model_dir} has no good checkpoint. Of the newest, "
        f"{os.path.basename(path)}, {reason}. Put a good one in its place, or "
        "choose another --model_dir to begin anew.")
  for path, reason in damaged:
    moved = f" It is now in {_move(path, model_dir)}." if move else ""
    console.warn(
        f"the checkpoint {os.path.basename(path)} is damaged: {reason}.{moved} "
        f"{os.path.basename(good[-1])} is used in its place.")
  if move and good:
    _keep_account(model_dir, good)
  return [path for path, _ in damaged]


def remove_remains(model_dir: str):
  """Removes what was written of checkpoints that were not finished."""
  for name in paths.names(model_dir, rf"{_NAME}_temp.*"):
    remains = os.path.join(model_dir, name)
    if paths.is_remote(remains):
      tf.io.gfile.rmtree(remains)
    elif os.path.islink(remains) or not os.path.isdir(remains):
      os.remove(remains)
    else:
      shutil.rmtree(remains)  # Follows no links, as TensorFlow's would.


def size(path: str) -> int:
  """The bytes of a checkpoint on the disk."""
  return sum(tf.io.gfile.stat(file).length for file in _files(path))


def _account(model_dir):
  """The paths in TensorFlow's account, oldest first. They may be anywhere.

  None where the account cannot be read.
  """
  path = os.path.join(model_dir, _ACCOUNT)
  if not tf.io.gfile.exists(path):
    return []
  try:
    paths.read_text(path, _MOST_ACCOUNT_BYTES)
    state = tf.train.get_checkpoint_state(model_dir)
  except ValueError:
    state = None
  if state is None:
    return None
  newest_path = state.model_checkpoint_path
  return [path for path in state.all_model_checkpoint_paths
          if path != newest_path] + [newest_path]


def _recorded(model_dir):
  """The names of the checkpoints in TensorFlow's account.

  Without directories: those of a model that was copied or moved are elsewhere.
  """
  names = map(os.path.basename, _account(model_dir) or [])
  return [name for name in names if re.fullmatch(_NAME, name)]


def _tell_of_account(model_dir):
  """Tells where the newest checkpoint of the account is not to be found."""
  account, found = _account(model_dir), usable(model_dir)
  if account is None:
    said = "cannot be read"
  elif account and os.path.basename(account[-1]) not in map(
      os.path.basename, found):
    # Shortened, and without characters that a terminal would obey.
    said = f"names {json.dumps(account[-1][-200:])}, which is not there"
  else:
    return
  if not found:
    raise ValueError(
        f"--model_dir={model_dir} has no checkpoint, and its file "
        f"`{_ACCOUNT}` {said}. Copy a checkpoint into the directory, or remove "
        f"`{_ACCOUNT}` to begin anew.")
  console.warn(
      f"the file `{_ACCOUNT}` in {model_dir} {said}: "
      f"{os.path.basename(found[-1])} is used.")


def _keep_account(model_dir, good):
  """Writes TensorFlow's account anew where it is of anything but what is good.

  With names instead of paths, so that the directory can be moved, which
  tf.train.update_checkpoint_state does not do.
  """
  kept = [path for path in good[:-1]
          if os.path.basename(path) in _recorded(model_dir)] + good[-1:]
  if _account(model_dir) == kept:
    return
  names = [json.dumps(os.path.basename(path)) for path in kept]
  lines = [f"model_checkpoint_path: {names[-1]}"]
  lines += [f"all_model_checkpoint_paths: {name}" for name in names]
  path = os.path.join(model_dir, _ACCOUNT)
  with tf.io.gfile.GFile(f"{path}.tmp", "w") as f:
    f.write("\n".join(lines) + "\n")
  tf.io.gfile.rename(f"{path}.tmp", path, overwrite=True)


def _files(path):
  """The files of a checkpoint: its index, data and graph."""
  directory, name = os.path.split(path)
  return [os.path.join(directory, file)
          for file in paths.names(directory, rf"{re.escape(name)}\..*")]


def _move(path, model_dir):
  """Moves a checkpoint to where nothing is in its way; returns the folder."""
  names = list(map(os.path.basename, _files(path)))
  first = folder = os.path.join(model_dir, _DAMAGED)
  number = 0
  while not _is_free(folder, names):
    number += 1
    folder = f"{first}.{number}"
  tf.io.gfile.makedirs(folder)
  for name in names:
    tf.io.gfile.rename(
        os.path.join(model_dir, name), os.path.join(folder, name))
  return folder


def _is_free(folder, names):
  """Whether a folder is or could be made, with nothing of these names."""
  if not paths.is_remote(folder) and os.path.islink(folder):
    return False
  if not tf.io.gfile.exists(folder):
    return True
  return tf.io.gfile.isdir(folder) and set(names).isdisjoint(
      paths.names(folder, "(?s:.*)"))
