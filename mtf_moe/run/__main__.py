"""Runs a program that someone else wrote with the layer of this package.

    python -m mtf_moe.run mesh_tensorflow.transformer.main --gin_file=...
    python -m mtf_moe.run t5_mesh_transformer --gin_file=...
    python -m mtf_moe.run my_program.py ...

The program is a module, a script, or a command that was installed with a Python
package. It is run unchanged, as `python` would run it, but that

* mesh_tensorflow can be imported on the TensorFlow that is installed,
* gin knows `@mtf_moe.MoE2D`, without a --module_import,
* Estimators train with resource variables, so that a backward pass on a CPU
  does not read weights that were already changed, and write what mixtures
  record to the event files of the model directory.

What stands behind the program's name is the program's.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import runpy
import shutil
import sys
import types
import zipfile

import mtf_moe  # For gin, and for mesh_tensorflow.
from mtf_moe.run import mistakes
from mtf_moe.run import patches
from mtf_moe.run import recording

assert mtf_moe

_PROGRAM = "mtf_moe.run"


def main(arguments: list[str]):
  """Runs the program that the first argument names with the others.

  Args:
    arguments: those of the command line.

  Raises:
    SystemExit: as the program does; with a line that says why, if there is no
      such program.
  """
  if arguments[:1] in (["--help"], ["-h"]):
    print(__doc__.strip())
    return
  if not arguments or arguments[0].startswith("-"):
    given = f"{arguments[0]} is no program" if arguments else "no program given"
    mistakes.end(_PROGRAM, (
        f"{given}: name a module, a script or an installed command, and after "
        "it what that takes. --help says more."))
  name, *rest = arguments
  run = _find(name)
  if run is None:
    mistakes.end(_PROGRAM, (
        f"{name} is no module that can be run, no file and no command of an "
        "installed Python package. In which directory is it, or what has to "
        "be installed into this Python?"))
  with (_argv([name, *rest]), recording.every_estimator(),
        patches.our_layer_of_one_level()):
    run()


def _find(name):
  """A function that runs the program of a name, or None."""
  if os.path.exists(name) and (os.sep in name or name.endswith(".py")):
    return (lambda: _run_file(name)) if _is_program(name) else None
  if _is_runnable_module(name):
    return lambda: runpy.run_module(name, run_name="__main__", alter_sys=True)
  commands = importlib.metadata.entry_points(
      group="console_scripts", name=name)
  for command in commands:
    return lambda: _run_command(command)
  path = shutil.which(name)
  if path is not None and _is_python_script(path):
    return lambda: _run_file(path)
  return None


def _is_runnable_module(name):
  """Whether `python -m name` runs."""
  if not all(part.isidentifier() for part in name.split(".")):
    return False
  try:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
      spec = importlib.util.find_spec(f"{name}.__main__")
  except ModuleNotFoundError as error:
    # A package of the name's; if another is missing, that is the news.
    if not f"{name}.__main__".startswith(f"{error.name}."):
      raise
    return False
  return spec is not None


def _is_program(path):
  """Whether `python path` might run it: a script, or what holds __main__."""
  if os.path.isdir(path):
    return any(os.path.exists(os.path.join(path, f"__main__.{end}"))
               for end in ("py", "pyc"))
  if zipfile.is_zipfile(path) or not os.path.isfile(path):
    return True  # Python says what it lacks.
  with open(path, "rb") as f:
    first = f.readline(256)
  return not first.startswith(b"#!") or b"python" in first


def _is_python_script(path):
  with open(path, "rb") as f:
    first = f.readline(256)
  return first.startswith(b"#!") and b"python" in first


def _run_file(path):
  """As `python path` does: modules beside the file can be imported."""
  with contextlib.ExitStack() as stack:
    if not os.path.isdir(path) and not sys.flags.safe_path:
      stack.callback(sys.path.__setitem__, slice(None), [*sys.path])
      sys.path[0] = os.path.dirname(os.path.realpath(path))
    stack.enter_context(_argv([path, *sys.argv[1:]]))
    runpy.run_path(path, run_name="__main__")


def _run_command(command):
  """As the script does that pip makes for an entry point.

  But modules in the current directory can be imported, as with `python -m`:
  those that a --module_import names are often there.
  """
  function = command.load()
  path = shutil.which(command.name) or command.name
  before = sys.modules["__main__"]
  # Absl looks into it, for what --help says and for where flags are defined.
  sys.modules["__main__"] = types.ModuleType("__main__")
  try:
    with _argv([path, *sys.argv[1:]]):
      sys.exit(function())
  finally:
    sys.modules["__main__"] = before


@contextlib.contextmanager
def _argv(arguments):
  before = sys.argv
  sys.argv = arguments
  try:
    yield
  finally:
    sys.argv = before


if __name__ == "__main__":
  main(sys.argv[1:])
