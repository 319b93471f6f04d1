"""Runs modules as programs, in copies of a process that has TensorFlow already.

To import TensorFlow takes longer than most of what the programs do in tests.
What else belongs to a process, it has for itself: arguments, environment,
working directory, output, modules of ours, exit status.
"""

import atexit
import functools
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

ROOT = str(pathlib.Path(__file__).resolve().parents[1])


def run(module, *arguments, cwd=None, env=None, check=False):
  """Runs `python -m module arguments...` with no input.

  Args:
    module: its name.
    *arguments: strings.
    cwd: the working directory, or None for this process's.
    env: all environment variables, or None for those of this process with the
      checkout in PYTHONPATH.
    check: whether another exit status than 0 is an error.

  Returns:
    a subprocess.CompletedProcess with texts

  Raises:
    subprocess.CalledProcessError: see `check`.
  """
  server = _server()
  with tempfile.TemporaryDirectory() as scratch:
    paths = [f"{scratch}/stdout", f"{scratch}/stderr"]
    request = {
        "module": module, "arguments": arguments, "outputs": paths,
        "cwd": str(cwd or os.getcwd()),
        "env": env or {**os.environ, "PYTHONPATH": ROOT}}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, "The process that is copied has ended."
    said = [pathlib.Path(path).read_text() for path in paths]
  result = subprocess.CompletedProcess(
      [sys.executable, "-m", module, *arguments], int(answer), *said)
  if check:
    result.check_returncode()
  return result


@functools.cache
def _server():
  server = subprocess.Popen(
      [sys.executable, "-m", "tests.forked"], cwd=ROOT, text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      env={**os.environ, "PYTHONPATH": ROOT, "TF_CPP_MIN_LOG_LEVEL": "3"})
  atexit.register(server.stdin.close)
  return server


def _next_copy():
  """Returns in a copy, with what it has to do; or None at the very end."""
  for line in sys.stdin:
    child = os.fork()
    if not child:
      return json.loads(line)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
  return None


def _become(request):
  """Makes this process one that was started as the request says."""
  os.chdir(request["cwd"])
  os.environ.clear()
  os.environ.update(request["env"])
  sys.path[0] = request["cwd"]
  for number, (path, flags) in enumerate([
      (os.devnull, os.O_RDONLY),
      *((path, os.O_WRONLY | os.O_CREAT) for path in request["outputs"])]):
    opened = os.open(path, flags, 0o600)
    os.dup2(opened, number)
    os.close(opened)
  sys.argv = [request["module"], *request["arguments"]]


if __name__ == "__main__":
  import mtf_moe  # isort: skip  (must precede mesh_tensorflow)
  from mesh_tensorflow.transformer import utils
  import tensorflow.compat.v1 as tf
  assert mtf_moe and utils and tf.estimator.Estimator  # Which is imported late.
  if request := _next_copy():
    _become(request)
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
