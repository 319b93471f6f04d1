"""Paths as users give them, and directories with names that others gave.

No name is taken for a pattern here, and no file for what its name says.
"""

import os
import re
import stat
import tempfile

import tensorflow.compat.v1 as tf

# TensorFlow looks for checkpoints by pattern, and removes old ones by pattern.
# The pattern of mesh_tensorflow ends at the end of a line.
_WILDCARDS = re.compile(r"[*?\[\\\n]")


def is_remote(path: str) -> bool:
  """Whether a path is not on this machine, but gs://... or the like."""
  return "://" in path


def usable(path: str, parameter: str) -> str:
  """A directory that TensorFlow reads or writes checkpoints in.

  Args:
    path: a string, as the user gave it.
    parameter: what the user calls it, such as "--model_dir".

  Returns:
    the path, with ~ expanded, and without ".." and slashes at its end

  Raises:
    ValueError: if TensorFlow could not find in it what it writes there.
  """
  given = f"{parameter}={path}"
  if not path or "\0" in path or not _encodes(path):
    raise ValueError(f"{given!r} is no path: give that of a directory.")
  if is_remote(path):
    _check_scheme(path, given)
  else:
    path = _plain(os.path.expanduser(path))
  found = _WILDCARDS.search(path)
  if found:
    raise ValueError(
        f"{given!r} has {found.group()!r} in it, which TensorFlow takes for a "
        "pattern: it would not find its checkpoints again, or take those of "
        "other directories for its own. Choose a path without * ? [ \\ and "
        "line ends in it.")
  return path.rstrip("/") or "/"


def _check_scheme(path, given):
  """Raises ValueError for a file system that TensorFlow does not have."""
  schemes = tf.io.gfile.get_registered_schemes()
  scheme, _, _ = path.partition("://")
  if scheme not in schemes:
    known = ", ".join(sorted(f"{name}://" for name in schemes if name))
    raise ValueError(
        f"{given!r} is in a file system that TensorFlow does not have: give a "
        f"path of this machine, or with one of {known} (the package "
        "tensorflow-io has others).")


def obstacle(path: str) -> str | None:
  """Why nothing can be written at a path, or made on the way there.

  Args:
    path: a string, a directory of this machine that may not exist.

  Returns:
    a string, such as "/proc: No such file or directory"; None if it can
  """
  # What is to be made is made in the first of these that is there.
  there = path
  while not os.path.lexists(there):
    there = os.path.dirname(there) or "."
  try:
    # Some that claim to be writable are not, such as /proc for root.
    with tempfile.TemporaryFile(dir=there):
      return None
  except OSError as error:
    return f"{there}: {error.strerror}"


def check_new_file(path: str, parameter: str):
  """Sees that a file may be written there, under this name or a longer one.

  Args:
    path: a string, as the user gave it.
    parameter: what the user calls it.

  Raises:
    ValueError: if it is no name of a file, or in no directory that is there.
  """
  remedy = 'set it to the path of a file, such as "written.txt"'
  if not isinstance(path, str) or os.path.basename(path) in ("", ".", ".."):
    raise ValueError(f"{parameter} = {path!r} is no path of a file: {remedy}.")
  directory = os.path.dirname(path) or "."
  if is_remote(path):
    return
  problem = (obstacle(directory) if os.path.isdir(directory)
             else f"{directory}, which is no directory")
  if problem is not None:
    raise ValueError(
        f"{parameter} = {path!r} cannot be written in {problem}: {remedy}, in "
        "a directory that is there.")


def _plain(path):
  """The path without "..", which TensorFlow does not take as systems do.

  For it, "link/.." is where the link is; for the system, where it leads to.
  """
  if ".." not in path.split("/"):
    return path
  plain, real = os.path.normpath(path), os.path.realpath(path)
  return plain if os.path.realpath(plain) == real else real


def _encodes(path):
  try:
    path.encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True


def names(directory: str, pattern: str) -> list[str]:
  """The sorted names in a directory that a regular expression matches.

  Args:
    directory: a string. One that does not exist has none.
    pattern: a regular expression, for whole names.
  """
  if not tf.io.gfile.isdir(directory):
    return []
  found = (tf.io.gfile.listdir(directory) if is_remote(directory)
           else os.listdir(directory))
  found = (name.rstrip("/") for name in found)  # gs:// marks directories.
  return sorted(name for name in found if re.fullmatch(pattern, name))


def read_text(path: str, most_bytes: int = 2 ** 24) -> str | None:
  """The text of a file that somebody else may have made.

  Args:
    path: a string.
    most_bytes: an integer, the size of the largest file that is read.

  Returns:
    a string, with U+FFFD for what is not UTF-8; None where there is no such
    file

  Raises:
    ValueError: if it is no plain file, or larger.
  """
  if not tf.io.gfile.exists(path):
    return None
  check_plain(path)
  size = tf.io.gfile.stat(path).length
  if size > most_bytes:
    raise ValueError(
        f"{path} has {size:,} bytes, and is not read beyond {most_bytes:,}: "
        "it is not what its name says.")
  with tf.io.gfile.GFile(path, "rb") as f:
    return f.read(most_bytes).decode(errors="replace")


def replace_text(path: str, text: str):
  """Writes a file that a run keeps of itself, all of it or nothing.

  Args:
    path: a string.
    text: a string.

  Raises:
    ValueError: if a directory is in its place.
  """
  for name in (path, f"{path}.tmp"):
    if tf.io.gfile.isdir(name):
      raise ValueError(
          f"{name} is a directory, and a run writes a file of that name: "
          "remove it, or choose another --model_dir.")
  with tf.io.gfile.GFile(f"{path}.tmp", "w") as f:
    f.write(text)
  tf.io.gfile.rename(f"{path}.tmp", path, overwrite=True)


def check_plain(path: str):
  """Raises ValueError for a pipe, a device or a directory."""
  if not is_remote(path) and not stat.S_ISREG(os.stat(path).st_mode):
    raise ValueError(f"{path} is no plain file: remove it or put one there.")


def leads_outside(path: str, directory: str) -> bool:
  """Whether a path, by symbolic links, is of something outside a directory."""
  if is_remote(path):
    return False
  inside = os.path.realpath(directory)
  return os.path.commonpath([inside, os.path.realpath(path)]) != inside
