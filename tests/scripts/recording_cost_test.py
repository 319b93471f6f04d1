"""The script that measures what watching a run costs: that it runs."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_runs():
  result = subprocess.run(
      [sys.executable, "scripts/recording_cost.py", "--rounds=2",
       "--gin_file=models/lm_tiny.gin", "--gin_file=meshes/cpu_1.gin",
       "--gin_file=data/bytes.gin", "--gin_param=sequence_length = 16"],
      cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
      capture_output=True, text=True, check=True)
  lines = result.stdout.splitlines()
  assert len(lines) == 6
  assert re.search(
      r"^training step +[\d.]+ \(.*\) +1\.000 \(1\.000 to 1\.000\)", lines[2])
  assert lines[3].startswith("with vital signs")
  assert re.search(r"each 100 steps +\d\.\d{3} \(", lines[5])
