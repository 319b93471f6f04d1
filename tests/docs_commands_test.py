"""The commands of the documentation, run as they stand there.

Only training is made shorter. What needs other libraries or other machines has
tests of its own: tests/xla, tests/clients, tests/plan/compile_for_test.py and
tests/scripts.
"""

import shutil

import pytest

from tests import documented
from tests import forked

NEEDS_MORE = ("mtf_moe.run", "mtf_moe.xla", "scripts/")
FLAGS_THAT_NEED_MORE = ("--runtime=xla", "--tpu=", "--compile_for=")


def runnable():
  """The `Command`s that are run here."""
  return [
      command for command in documented.commands()
      if not command.program.startswith(NEEDS_MORE)
      and "--help" not in command.arguments and not any(
          argument.startswith(FLAGS_THAT_NEED_MORE)
          for argument in command.arguments)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Has what the pages take for granted: a text, a router, a dense model."""
  path = tmp_path_factory.mktemp("user")
  (path / "my_text").mkdir()
  for page in documented.PAGES:
    shutil.copy(page, path / "my_text" / f"{page.stem}.txt")
  (path / "my_routers.py").write_text(documented.tutorials()[3])
  run(path, "mtf_moe.train", "--model_dir=dense_model",
      "--gin_file=models/lm_small_dense.gin", "--gin_file=meshes/cpu_1.gin",
      "--gin_file=data/bytes.gin",
      "--gin_param=TextFiles.glob = 'my_text/*.txt'",
      "--gin_param=batch_size = 4", "--gin_param=sequence_length = 32")
  return path


def run(folder, program, *arguments):
  """What a program says, which has to end well; training has two steps."""
  if program == "mtf_moe.train":
    arguments = [*arguments, "--gin_param=run.train_steps = 2"]
  result = forked.run(program, *arguments, cwd=folder)
  assert result.returncode == 0, (program, arguments, result.stderr)
  return result.stdout


def test_there_are_some():
  assert any(command.shown for command in runnable())
  assert {command.page for command in runnable()} >= {
      "planning.md", "surgery.md", "tpu.md", "training.md", "tutorials.md",
      "watching.md"}


def test_they_run(folder):
  for command in runnable():
    if command.program != "mtf_moe.plan":
      run(folder, command.program, *command.arguments)
  assert (folder / "my_model" / "report.html").exists()
  assert (folder / "drawn" / "model.ckpt-2.index").exists()
  assert not (folder / "new_model").exists()  # By --dry_run.


@pytest.mark.parametrize(
    "plan", [pytest.param(command, id=f"{command.page}-{number}")
             for number, command in enumerate(runnable())
             if command.program == "mtf_moe.plan"])
def test_plans_say_what_is_shown(plan, tmp_path):
  said = run(tmp_path, plan.program, *plan.arguments)
  for line in plan.shown:
    assert line.removesuffix("[...]") in said
