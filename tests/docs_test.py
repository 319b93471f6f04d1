"""What the documentation says is what the code has and does."""

import collections
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys

import mtf_moe
from mtf_moe import hparams
from scripts.site import parameters
from tests import documented
from tests import forked
from tests.train import program

ROOT = documented.ROOT


def rows():
  """(name, meaning) of the table of parameters."""
  return re.findall(r"^\| `(\w+)` \| [^|]+ \| (.*) \|$", parameters.table(),
                    re.MULTILINE)


def test_the_parameters_are_those_of_the_code():
  page = parameters.PAGE.read_text()
  assert page == parameters.with_table(page), f"run {parameters.__file__}"
  assert [name for name, _ in rows()] == list(
      inspect.signature(mtf_moe.MoE2D).parameters)


def test_which_are_of_a_level():
  for name, meaning in rows():
    of_level = hasattr(hparams.Level, name)
    if name not in ("experts", "moe_gating"):
      assert meaning.startswith("(level") == of_level, name


def test_links_from_files_that_are_not_of_the_site():
  for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text()):
      if not link.startswith("http"):
        assert (ROOT / link).exists(), (name, link)


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def help_of(name):
  """What a program says of all its flags."""
  if name.startswith("mtf_moe"):
    return forked.run(
        name, "--help" if name == "mtf_moe.xla" else "--helpfull").stdout
  command = ["bash" if name.endswith(".sh") else sys.executable, name, "--help"]
  return subprocess.run(command, capture_output=True, text=True, check=False,
                        cwd=ROOT).stdout


def test_flags_of_commands_are_known():
  by_program = collections.defaultdict(set)
  for command in documented.commands():
    by_program[command.program] |= {
        argument[2:].partition("=")[0] for argument in command.arguments
        if argument.startswith("--") and argument != "--"}
  assert {"mtf_moe.train", "mtf_moe.plan", "mtf_moe.xla.export", "mtf_moe.xla",
          "mtf_moe.report", "scripts/study.py", "scripts/benchmark.py",
          "scripts/test.sh"} <= by_program.keys()
  # They need JAX, or hand their flags to another program.
  elsewhere = {"mtf_moe.run"} | (
      set() if importlib.util.find_spec("jax") else
      {"mtf_moe.xla", "mtf_moe.xla.export"})
  for name in by_program.keys() - elsewhere:
    known = set(re.findall(r"--(?:\[no\])?(\w+)", help_of(name)))
    if name == "scripts/study.py":  # Its commands have their own.
      known |= {"study", "beside"}
    assert by_program[name] - {"help"} <= known, name


def test_gin_files_of_commands_are_there():
  of_users = {"my_mixtures.gin", "models/t5.1.1.small.gin"}
  files = {argument.partition("=")[2] for command in documented.commands()
           for argument in command.arguments
           if argument.startswith("--gin_file=")}
  assert "models/lm_small.gin" in files
  for file in files - of_users:
    assert (ROOT / "configs" / file).exists(), file


def test_gin_of_the_pages_is_known():
  bindings = sorted({
      argument.partition("=")[2] for command in documented.commands()
      for argument in command.arguments
      if argument.startswith("--gin_param=")})
  files = [block for _, language, block in documented.blocks()
           if not language and re.match(
               r"(import|include|[\w/]+\.\w+ =) ", block)]
  assert len(bindings) > 5 and len(files) > 2
  parse = ("import mtf_moe.train.__main__, gin, json, sys\n"
           "from mtf_moe.run import config_files\n"
           "gin.add_config_file_search_path(config_files.directory())\n"
           "for text in json.loads(sys.argv[1]): gin.parse_config(text)")
  texts = json.dumps(["\n".join(bindings), *files])
  subprocess.run(
      [sys.executable, "-c", parse, texts], check=True, cwd=ROOT)


def test_files_that_the_pages_name_are_there():
  named = {path for page in documented.PAGES for path in re.findall(
      r"(?:scripts|tests|constraints|configs|mtf_moe|docs)/[\w./-]+\w",
      page.read_text())}
  assert len(named) > 20
  for path in named - {"mtf_moe/configs"}:  # As it is installed.
    assert (ROOT / path).exists(), path


def test_messages_under_trouble_are_those_of_the_code():
  said = " ".join(
      re.sub(r"""['"]\s*\n\s*f?['"]""", "", path.read_text())
      for path in (ROOT / "mtf_moe").rglob("*.py"))
  page = (ROOT / "docs" / "trouble.md").read_text()
  quoted = [message for row in re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
            for message in re.findall(r'"([^"]{6,})"', row)
            if message not in ("einsum",)]
  assert len(quoted) > 8
  for message in quoted:
    assert message.removesuffix(" nan") in said, message


def said_by(text, folder):
  """What a program in a file of its own prints."""
  path = folder / "tutorial.py"
  path.write_text(text)
  result = subprocess.run(
      [sys.executable, path], capture_output=True, text=True, check=False,
      env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=folder)
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_tutorial_of_the_layer(tmp_path):
  lines = [line for line in documented.tutorials()[0].splitlines() if line]
  assert len(lines) <= 31
  first, *variables = said_by(documented.tutorials()[0], tmp_path).splitlines()
  assert first.startswith("(4, 8, 16) balancing loss 0.0")
  assert len(variables) == 4


def test_tutorial_of_the_mesh(tmp_path):
  difference = said_by(documented.tutorials()[1], tmp_path).rpartition(":")[2]
  assert float(difference) < 1e-4  # Of outputs of some 100.


def test_tutorial_of_a_group(tmp_path):
  """As the table of the page on the idea has it."""
  assert said_by(documented.tutorials()[2], tmp_path).splitlines() == [
      "token 0 wants AB: A0 0.67", "token 1 wants AC: A1 0.67, C1 0.33",
      "token 2 wants AD: D1 0.33", "token 3 wants BC: B0 0.67",
      "token 4 wants BD: B1 0.67", "token 5 wants CA: C0 0.67",
      "token 6 wants DB: D0 0.67", "token 7 wants AD: finds no expert"]


def test_tutorial_of_a_router(tmp_path):
  assert "'drawn'" in said_by(documented.tutorials()[3], tmp_path)
  program.write_text(tmp_path)
  (tmp_path / "my_routers.py").write_text(documented.tutorials()[3])
  arguments = program.program(
      tmp_path, "MoE2D.moe_gating = 'drawn'", "run.train_steps = 2")
  arguments["args"].append("--module_import=my_routers")
  assert "step 2 of 2" in program.run_arguments(arguments).stdout


def test_all_tutorials_are_run():
  assert len(documented.tutorials()) == 4
