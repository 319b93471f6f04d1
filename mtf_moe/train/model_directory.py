"""The directory of a run: it must be there, writable, and nobody else's."""

import contextlib
import errno
import fcntl
import os
import shlex
import shutil
import stat
import sys

import tensorflow.compat.v1 as tf

from mtf_moe.run import paths

_LOCK_FILE = "running"

# What runs write to, beside the files of checkpoints, which are always new.
_EVALUATIONS = r"eval_.*|.*_eval(_.*)?"
_WRITTEN = (
    rf"{_LOCK_FILE}|train\.log|command.*|operative_config\.gin.*|"
    r"made_with\.json.*|layers\.json.*|training\.json.*|results\.jsonl.*|"
    r"checkpoint.*|"
    rf"graph\.pbtxt.*|.*\.tfevents\..*|{_EVALUATIONS}")


@contextlib.contextmanager
def held(model_dir: str):
  """Makes the directory, and keeps other runs out until the context ends.

  The lock ends with the process, however it ends. A directory that is not on
  this machine (gs://...) has none.

  Args:
    model_dir: a string.

  Raises:
    ValueError: if it cannot be made or written, or another run holds it.
  """
  lock = None
  try:
    tf.io.gfile.makedirs(model_dir)
    check_names(model_dir)
    if not paths.is_remote(model_dir):
      # For reading and writing, without a change.
      lock = open(  # noqa: SIM115, for the try ends here.
          os.path.join(model_dir, _LOCK_FILE), "a+")
  except (OSError, tf.errors.OpError) as error:
    raise ValueError(
        f"--model_dir={model_dir} cannot be written: {reason(error)}. Choose "
        "a directory that you may write to.") from error
  if lock is None:
    yield
    return
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      lock.seek(0)
      raise ValueError(
          f"--model_dir={model_dir} is being trained by another run"
          f"{_named(lock.read())}. Wait for it, stop it, or choose another "
          "--model_dir.") from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    yield


def check_names(model_dir: str):
  """Sees that what a run writes to is in the directory.

  Whoever made it could otherwise lead writing, by a link, to any other file of
  the user.

  Args:
    model_dir: a string, a directory that may not exist.

  Raises:
    ValueError: if a name that a run writes to is a link out of the directory, a
      pipe or a device.
  """
  if paths.is_remote(model_dir):
    return
  written = [os.path.join(model_dir, name)
             for name in paths.names(model_dir, _WRITTEN)]
  for name in paths.names(model_dir, _EVALUATIONS):
    directory = os.path.join(model_dir, name)
    written += [os.path.join(directory, file)
                for file in paths.names(directory, "(?s:.*)")]
  for path in written:
    if paths.leads_outside(path, model_dir):
      what = f"a link to {os.path.realpath(path)}, outside of it"
    elif os.path.exists(path) and not _is_file_or_directory(path):
      what = "neither a file nor a directory"
    else:
      continue
    raise ValueError(
        f"--model_dir={model_dir} has {os.path.relpath(path, model_dir)}, "
        f"which is {what}, and a run writes to that name. Remove it, or put a "
        "file in its place.")


def _is_file_or_directory(path):
  mode = os.stat(path).st_mode
  return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def is_held(model_dir: str) -> bool:
  """Whether a run trains in the directory at this moment."""
  path = os.path.join(model_dir, _LOCK_FILE)
  if paths.is_remote(model_dir) or not os.path.exists(path):
    return False
  with open(path) as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
      return True
  return False


def check_space(model_dir: str, num_bytes: int):
  """Raises ValueError unless so many bytes fit on the disk.

  Args:
    model_dir: a string, a directory that exists.
    num_bytes: an integer, the size of a checkpoint.
  """
  if paths.is_remote(model_dir):
    return
  free = shutil.disk_usage(model_dir).free
  if free < num_bytes:
    raise ValueError(
        f"--model_dir={model_dir} is on a disk with {free / 1e6:,.1f} MB free, "
        f"and a checkpoint takes {num_bytes / 1e6:,.1f} MB: make room, or "
        "choose another --model_dir.")


def save_command(model_dir: str) -> str:
  """Writes the command line to a new file `command`, `command.1`, ...

  Args:
    model_dir: a string, a directory that exists.

  Returns:
    the command line
  """
  command = shlex.join(sys.argv)
  path = _unused(os.path.join(model_dir, "command"))
  with tf.io.gfile.GFile(path, "w") as f:
    f.write(command + "\n")
  return command


def keep_config(model_dir: str):
  """Copies the gin config of an earlier run, which the next will replace."""
  path = os.path.join(model_dir, "operative_config.gin")
  if tf.io.gfile.exists(path):
    tf.io.gfile.copy(path, _unused(path))


def _unused(path):
  """The path, or the first of path.1, path.2, ... that does not exist."""
  unused, number = path, 0
  while tf.io.gfile.exists(unused):
    number += 1
    unused = f"{path}.{number}"
  return unused


# Where the directory is at fault, and not the program.
_WRITE_FAILURES = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def is_write_failure(error: Exception) -> bool:
  """Whether an OSError or a tf.errors.OpError is about a file or a disk."""
  if isinstance(error, OSError):
    return error.errno in _WRITE_FAILURES
  return any(os.strerror(number) in error.message for number in _WRITE_FAILURES)


def _named(pid):
  return f" (process {pid})" if pid else ""


def reason(error: Exception) -> str:
  """Why a file was not written, in one line, as the system puts it."""
  text = getattr(error, "strerror", None) or getattr(
      error, "message", str(error))
  lines = text.strip().splitlines()
  # TensorFlow has much to say before it.
  found = [line for line in lines if any(
      os.strerror(number) in line for number in _WRITE_FAILURES)]
  return (found or lines)[0].strip()
