"""What a program says where its user made a mistake: one line.

Every program of the package runs its `main` as

    @mistakes.told("mtf_moe.train")
    def main(argv): ...

    if __name__ == "__main__":
      mistakes.run("mtf_moe.train", main)

A mistake ends it with that line on standard error and the status 1. All else
that goes wrong is a defect of the program, and keeps its traceback.
"""

from collections.abc import Callable
import contextlib
import dis
import importlib.metadata
import re
import sys
from typing import Any, NoReturn

from absl import app
from absl import flags
import tensorflow.compat.v1 as tf

# Whoever checks what a user gave raises one of these.
_KINDS = (ValueError, OSError, ImportError, NotImplementedError, flags.Error,
          app.UsageError)
# Of TensorFlow, where it could not get at a file.
_FILE_ERRORS = (
    tf.errors.NotFoundError, tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError, tf.errors.UnimplementedError)
# Their ValueErrors are about graphs and arrays, which no user makes.
_MACHINERY = ("tensorflow", "numpy", "keras", "jax")

_GIN_REQUIRES = "Required bindings for"
_GIN_MISSES = "No values supplied by Gin or caller for arguments"


@contextlib.contextmanager
def told(program: str):
  """Ends the program with one line, if what it does meets a mistake.

  Args:
    program: its name, the beginning of the line.

  Raises:
    SystemExit: in place of the mistake.
  """
  try:
    yield
  except Exception as error:
    if not is_mistake(error):
      raise
    end(program, in_one_line(error))


def end(program: str, message: str) -> NoReturn:
  """Ends the program with a line on standard error, and the status 1.

  That is what `told` does; here for a program that runs what others wrote,
  whose exceptions are not its own to tell.

  Args:
    program: its name, the beginning of the line.
    message: the rest of it.

  Raises:
    SystemExit: always.
  """
  sys.exit(f"{program}: {message}")


def run(program: str, main: Callable[[list[str]], Any]):
  """Runs a program that takes flags, and nothing but flags.

  Args:
    program: its name.
    main: a function of the list of arguments.
  """

  # Here, not at the top: programs of others import this module, too.
  if "version" not in flags.FLAGS:
    flags.DEFINE_bool("version", False, "Print the version and stop.",
                      flag_values=flags.FLAGS)
  flags.FLAGS.register_key_flag_for_module(
      sys.argv[0], flags.FLAGS["version"])

  @told(program)
  def parse(argv):
    if "--version" in argv[1:]:  # Whatever else is required.
      print(f"{program}, mtf_moe {importlib.metadata.version('mtf_moe')}")
      sys.exit()
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise app.UsageError(
          f"unknown arguments: {' '.join(rest[1:])}. All begin with --; quote "
          "patterns and values with spaces. --help lists them.")
    return rest

  app.run(main, flags_parser=parse)


def is_mistake(error: Exception) -> bool:
  """Whether an exception is about what the user gave.

  That is one of the kinds that checks raise, and raised by a check: not what
  Python itself makes of a wrong argument of ours, and not what TensorFlow says
  of a graph.
  """
  if isinstance(error, tf.errors.OpError):
    # Not of an operation that runs.
    return isinstance(error, _FILE_ERRORS) and error.op is None
  if isinstance(error, RuntimeError) and str(error).startswith(_GIN_REQUIRES):
    return True
  if isinstance(error, TypeError):
    return _GIN_MISSES in str(error)
  if not isinstance(error, _KINDS):
    return False
  return not isinstance(error, ValueError) or _is_raised_by_a_check(error)


def _is_raised_by_a_check(error):
  """Whether a `raise` of other code than TensorFlow's is where it began."""
  trace = error.__traceback__
  if trace is None:
    return True
  while trace.tb_next is not None:
    trace = trace.tb_next
  package = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
  operation = trace.tb_frame.f_code.co_code[trace.tb_lasti]
  return package not in _MACHINERY and (
      dis.opname[operation] in ("RAISE_VARARGS", "RERAISE"))


def in_one_line(error: Exception) -> str:
  """What an exception says, in words that a user has seen before."""
  text = error.message if isinstance(error, tf.errors.OpError) else str(error)
  for pattern, words in _OF_GIN:
    text = re.sub(pattern, words, text)
  if isinstance(error, OSError) and error.filename and error.strerror:
    text = f"{error.filename}: {error.strerror}"
  lines = [" ".join(line.split()) for line in text.splitlines()]
  return "; ".join(filter(None, lines)).replace(":; ", ": ")


# What gin adds to messages: where it was, as it sees it.
_OF_GIN = (
    (r"(?s)^.*\n  No values supplied by Gin or caller for arguments: "
     r"\[([^\n]*)\].*?\n  In call to configurable '([^\n']*)'.*$",
     r"\2 lacks a value that it cannot do without: set its \1 in gin."),
    (r"\n  In call to configurable '[^\n]*", ""),
    (r"Required bindings for `([^\n]*)` not provided in config: \[([^\n]*)\]",
     r"\1 lacks a value that it cannot do without: set its \2 in gin."),
    (r'\n  In file "([^\n]*)", line (\d+)\n    ([^\n]*)(\n +\^)?',
     r" (\1, line \2: \3)"),
    (r"\n  In bindings string line (\d+)\n    ([^\n]*)(\n +\^)?",
     r" (--gin_param, line \1: \2)"),
)
