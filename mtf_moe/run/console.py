"""What a run tells: lines on the screen, and everything in a file.

All of the package logs to the logger "mtf_moe". Where a program opens the
console, its information goes to standard output as plain lines, its warnings
and errors stand out on standard error, and all of it, with what TensorFlow and
mesh_tensorflow log, is appended to a file.
"""

import contextlib
import logging
import os
import sys

from absl import logging as absl_logging
import tensorflow.compat.v1 as tf
import tqdm

from mtf_moe.run import paths

LOG_FILE = "train.log"

_logger = logging.getLogger("mtf_moe")
_COLOURS = {"warning": "\033[1;33m", "error": "\033[1;31m"}  # Yellow and red.


def say(text: str):
  """Tells the user a line of information."""
  _logger.info("%s", text)


def warn(text: str):
  """Tells the user what needs attention, though the run goes on."""
  _logger.warning("%s", text)


def fail(text: str):
  """Tells the user why the run ends."""
  _logger.error("%s", text)


def note(text: str):
  """Writes a line to the log file only."""
  _logger.debug("%s", text)


@contextlib.contextmanager
def opened(show_tensorflow: bool = False):
  """Shows what is logged, until the end of the context.

  Args:
    show_tensorflow: a boolean, show TensorFlow's own log as well.
  """
  with contextlib.ExitStack() as stack:
    stack.enter_context(_handled_by(_logger, _Screen(logging.INFO)))
    if not show_tensorflow:
      # Gin logs an error for each place in which it does not find a file,
      # before it looks in the next.
      stack.callback(absl_logging.set_verbosity, absl_logging.get_verbosity())
      absl_logging.set_verbosity(absl_logging.FATAL)
      tf_logger = tf.get_logger()
      for handler in tf_logger.handlers:
        stack.callback(handler.setLevel, handler.level)
        handler.setLevel(logging.ERROR)
      stack.callback(setattr, tf_logger, "propagate", tf_logger.propagate)
      tf_logger.propagate = False
    yield


@contextlib.contextmanager
def kept_in(directory: str):
  """Appends all that is logged to the log file of a directory.

  Args:
    directory: a string, a directory that exists. One that is not on this
      machine gets no log file: what is there cannot be appended to.
  """
  if paths.is_remote(directory):
    yield
    return
  with contextlib.ExitStack() as stack:
    handler = logging.FileHandler(
        os.path.join(directory, LOG_FILE), delay=True)
    stack.callback(_close, handler)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # A disk that is full shall not fill the screen.
    handler.handleError = lambda record: None
    stack.callback(logging.captureWarnings, False)
    logging.captureWarnings(True)
    for logger, level in [(_logger, logging.DEBUG),
                          (tf.get_logger(), logging.INFO),
                          (logging.getLogger("py.warnings"), logging.WARNING)]:
      stack.enter_context(_handled_by(logger, handler, level))
    try:
      yield
    except Exception:
      _logger.debug("ends with an error", exc_info=True)
      raise


def _close(handler):
  with contextlib.suppress(OSError):  # Where the disk is full, say.
    handler.close()


@contextlib.contextmanager
def _handled_by(logger, handler, level=logging.INFO):
  """A handler more for a logger, which lets messages of that level through."""
  level_before, propagate_before = logger.level, logger.propagate
  logger.addHandler(handler)
  logger.setLevel(min(level, logger.level or level))
  logger.propagate = False
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level_before)
    logger.propagate = propagate_before


class _Screen(logging.Handler):
  """Writes above a progress bar, where there is one; a warning once."""

  def __init__(self, level):
    super().__init__(level)
    self._warnings = set()

  def emit(self, record):
    text = record.getMessage()
    if record.levelno == logging.WARNING:
      # A model is built several times, and has many layers.
      if text in self._warnings:
        return
      self._warnings.add(text)
    if record.levelno < logging.WARNING:
      stream = sys.stdout
    else:
      stream = sys.stderr
      kind = "warning" if record.levelno < logging.ERROR else "error"
      mark = f"{kind}:"
      if stream.isatty():
        mark = f"{_COLOURS[kind]}{mark}\033[0m"
      text = f"{mark} {text}"
    tqdm.tqdm.write(text, file=stream)
    stream.flush()
