"""The commands that an installation makes."""

import importlib.metadata
import pathlib
import runpy
import subprocess
import sys

import pytest

import mtf_moe
from tests import forked

COMMANDS = [point for point in
            importlib.metadata.distribution("mtf_moe").entry_points
            if point.group == "console_scripts"]


def test_there_is_one_for_each_program():
  assert {point.name for point in COMMANDS} == {
      f"mtf-moe-{name}" for name in (
          "train", "plan", "report", "surgery", "vocabulary", "export", "run")}


@pytest.mark.parametrize("point", COMMANDS, ids=lambda point: point.name)
def test_it_runs_a_module_that_there_is(point, monkeypatch):
  called = []
  monkeypatch.setattr(
      runpy, "run_module",
      lambda module, run_name, alter_sys: called.append(
          (module, run_name, alter_sys)))
  point.load()()
  (module, *how), = called
  assert how == ["__main__", True]
  path = pathlib.Path(mtf_moe.__file__).parents[1] / module.replace(".", "/")
  assert (path / "__main__.py").exists() or path.with_suffix(".py").exists()


def test_help_and_version():
  """absl lists the flags of the module that is __main__."""
  command = str(pathlib.Path(sys.executable).with_name("mtf-moe-plan"))

  def said(flag):
    return subprocess.run([command, flag], capture_output=True, text=True,
                          check=False).stdout

  explained = said("--help")
  assert "--compile_for" in explained and "--[no]version" in explained
  assert said("--version") == (
      f"mtf_moe.plan, mtf_moe {importlib.metadata.version('mtf_moe')}\n")


def test_versions_of_programs_that_need_flags():
  """The one for vocabularies refuses to begin without its own."""
  found = forked.run("mtf_moe.text.vocabulary", "--version", check=True)
  assert found.stdout.startswith("mtf_moe.text.vocabulary, mtf_moe ")
