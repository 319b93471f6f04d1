"""The mutations of scripts/check_mutations.py still fit the code.

Running them takes an hour; that each finds its line takes none.
"""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def script():
  spec = importlib.util.spec_from_file_location(
      "check_mutations", ROOT / "scripts" / "check_mutations.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
    "mutation", script().MUTATIONS, ids=lambda m: f"{m.rule} {m.what}")
def test_changes_one_place(mutation):
  text = (ROOT / "mtf_moe" / mutation.file).read_text()
  assert text.count(mutation.old) == 1
  assert mutation.new != mutation.old
