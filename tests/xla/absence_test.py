"""Where there is no JAX."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = str(pathlib.Path(__file__).parents[2])
WITHOUT_JAX = """
import sys
sys.modules["jax"] = None
import mtf_moe
import mtf_moe.xla.{module}
"""


@pytest.mark.parametrize("module", ["export", "devices"])
def test_it_is_said(module):
  result = subprocess.run(
      [sys.executable, "-c", WITHOUT_JAX.format(module=module)],
      env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True,
      check=False)
  assert result.returncode == 1
  *_, said = result.stderr.strip().splitlines()
  assert said.startswith("ImportError: mtf_moe.xla needs JAX")


@pytest.mark.parametrize("program", ["mtf_moe.xla", "mtf_moe.xla.export"])
def test_a_program_says_it_in_one_line(program, tmp_path):
  # What Python imports at its start.
  (tmp_path / "sitecustomize.py").write_text(
      "import sys\nsys.modules['jax'] = None\n")
  result = subprocess.run(
      [sys.executable, "-m", program, "--help"],
      env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), ROOT])},
      capture_output=True, text=True, check=False)
  assert result.returncode == 1
  said, = result.stderr.strip().splitlines()
  assert "mtf_moe.xla needs JAX, which is not installed: pip install" in said
