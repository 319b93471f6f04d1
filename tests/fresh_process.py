"""Python processes in which nothing is imported yet."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(code, python_path=()):
  """Runs `code` in a fresh process; its last line of output may be JSON."""
  paths = [*map(str, python_path), str(_ROOT)]
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths),
                 "TF_CPP_MIN_LOG_LEVEL": "3"}
  return subprocess.run(
      [sys.executable, "-c", textwrap.dedent(code)], env=environment,
      capture_output=True, text=True, timeout=300, check=False)


def json_of(code, python_path=()):
  result = run(code, python_path)
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])
