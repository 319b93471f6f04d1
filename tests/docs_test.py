"""What the documentation says is what the code has and does."""

import ast
import collections
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import mtf_moe
from mtf_moe import hparams
from tests import forked
from tests.train import program

ROOT = pathlib.Path(__file__).parents[1]
# How gin calls the experts of MoE2D, and the function of transformer_layers.
OTHER_NAMES = {"expert_x", "expert_y", "experts", "moe_gating"}


def rows():
  """(name, default, meaning) of the table of parameters."""
  text = (ROOT / "docs" / "parameters.md").read_text()
  for line in text.splitlines():
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    if len(cells) == 5 and cells[0].startswith("`"):
      names = re.findall(r"`(\w+)`", cells[0])
      defaults = re.split(", ", cells[1]) if len(names) > 1 else [cells[1]]
      assert len(names) == len(defaults), line
      for name, default in zip(names, defaults):
        yield name, default, cells[2]


def test_all_parameters_are_explained_with_their_defaults():
  documented = {name: default for name, default, _ in rows()}
  assert len(documented) == len(list(rows()))
  fields = {name.removeprefix("moe_"): mtf_moe.MoeHparams.default(name)
            for name in mtf_moe.MoeHparams.names()}
  assert documented.keys() - OTHER_NAMES == fields.keys() - {
      "num_experts", "gating", "levels"}
  for name in documented.keys() - OTHER_NAMES:
    assert ast.literal_eval(documented[name].strip("`")) == fields[name], name
  assert (documented["expert_x"], documented["expert_y"]) == ("8", "8")
  assert documented["moe_gating"] == '"top_2"' and fields["gating"] == "top_2"


def test_which_are_of_a_level():
  for name, _, meaning in rows():
    of_level = hasattr(hparams.Level, name) or name == "moe_gating"
    if name not in OTHER_NAMES:
      assert meaning.startswith("(level") == of_level, name


def test_links_from_files_that_are_not_of_the_site():
  for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text()):
      if not link.startswith("http"):
        assert (ROOT / link).exists(), (name, link)


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def blocks():
  """(page, block) of all code in the documentation."""
  for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md",
               *sorted((ROOT / "docs").glob("*.md"))]:
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
      yield page.name, block


def commands():
  """The programs of ours that the pages run: (name, arguments), without ..."""
  found = []
  for _, block in blocks():
    for line in block.replace("\\\n", " ").splitlines():
      line = line.strip().removeprefix("$ ").partition(" #")[0]
      match = re.match(r"(?:python -m|python|bash) (mtf_moe[\w.]*|scripts/\S+)",
                       line)
      if match:
        found.append((match[1], [
            argument for argument in shlex.split(line[match.end():])
            if argument not in ("...", "$FLAGS")]))
  return found


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
  for name, arguments in commands():
    by_program[name] |= {
        argument[2:].partition("=")[0] for argument in arguments
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
  files = {argument.partition("=")[2] for _, arguments in commands()
           for argument in arguments if argument.startswith("--gin_file=")}
  assert "models/lm_small.gin" in files
  for file in files - of_users:
    assert (ROOT / "configs" / file).exists(), file


def test_gin_parameters_of_commands_are_known():
  parameters = sorted({
      argument.partition("=")[2] for _, arguments in commands()
      for argument in arguments if argument.startswith("--gin_param=")})
  assert len(parameters) > 5
  parse = ("import mtf_moe.train.__main__, gin, json, sys\n"
           "gin.parse_config(json.loads(sys.argv[1]))")
  subprocess.run([sys.executable, "-c", parse, json.dumps(parameters)],
                 check=True, cwd=ROOT)


def test_files_that_the_pages_name_are_there():
  named = {path for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md",
                             *(ROOT / "docs").glob("*.md")]
           for path in re.findall(
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


def tutorials():
  """The blocks of Python of the page, by their number."""
  text = (ROOT / "docs" / "tutorials.md").read_text()
  return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


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
  lines = [line for line in tutorials()[0].splitlines() if line]
  assert len(lines) <= 31
  first, *variables = said_by(tutorials()[0], tmp_path).splitlines()
  assert first.startswith("(4, 8, 16) balancing loss 0.0")
  assert len(variables) == 4


def test_tutorial_of_the_mesh(tmp_path):
  difference = said_by(tutorials()[1], tmp_path).rpartition(":")[2]
  assert float(difference) < 1e-4  # Of outputs of some 100.


def test_tutorial_of_a_group(tmp_path):
  """As the table of the page on the idea has it."""
  assert said_by(tutorials()[2], tmp_path).splitlines() == [
      "token 0 wants AB: A0 0.67", "token 1 wants AC: A1 0.67, C1 0.33",
      "token 2 wants AD: D1 0.33", "token 3 wants BC: B0 0.67",
      "token 4 wants BD: B1 0.67", "token 5 wants CA: C0 0.67",
      "token 6 wants DB: D0 0.67", "token 7 wants AD: finds no expert"]


def test_tutorial_of_a_router(tmp_path):
  assert "'drawn'" in said_by(tutorials()[3], tmp_path)
  program.write_text(tmp_path)
  (tmp_path / "my_routers.py").write_text(tutorials()[3])
  arguments = program.program(
      tmp_path, "MoE2D.moe_gating = 'drawn'", "run.train_steps = 2")
  arguments["args"].append("--module_import=my_routers")
  assert "step 2 of 2" in program.run_arguments(arguments).stdout


def test_all_tutorials_are_run():
  assert len(tutorials()) == 4
