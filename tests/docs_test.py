"""What the documentation says of parameters is what the code has."""

import ast
import pathlib
import re

import mtf_moe
from mtf_moe import hparams

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
