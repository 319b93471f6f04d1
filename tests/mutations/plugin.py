"""A plugin of pytest: all tests of a process see the package with a mutant.

    MTF_MOE_MUTANT=a_bias MTF_MOE_MUTANT_REPORT=report.txt \
        python -m pytest -p tests.mutations.plugin tests/oracle

Also those of each process of pytest-xdist.
"""

import contextlib
import os

import pytest

from tests.mutations import mutants
from tests.mutations import seams

MUTANT = "MTF_MOE_MUTANT"
REPORT = "MTF_MOE_MUTANT_REPORT"


def pytest_configure(config):
  """Breaks the package, until pytest ends."""
  stack = contextlib.ExitStack()
  try:
    stack.enter_context(seams.applied(
        mutants.MUTANTS[os.environ[MUTANT]], _writer(os.environ[REPORT])))
  except seams.SeamGoneError as error:
    raise pytest.UsageError(str(error)) from error
  config.add_cleanup(stack.close)


def _writer(path):
  """A function that adds a line to a file, each one once."""
  written = set()

  def tell(line):
    if line not in written:
      written.add(line)
      with open(path, "a") as f:
        f.write(line + "\n")

  return tell
