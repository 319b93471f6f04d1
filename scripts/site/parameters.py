"""Writes the table of docs/parameters.md from the code.

  python scripts/site/parameters.py

Names and defaults are those of MoE2D, and meanings those of its docstring and
of the docstring of MoeHparams.
"""

import inspect
import json
import pathlib
import re

import mtf_moe

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "parameters.md"
FIRST_LINE = "| parameter | default | what it is |"


def _meanings(cls):
  """What a docstring says of arguments or attributes, by their names."""
  _, _, section = re.split(
      r"^(Args|Attributes):\n", inspect.getdoc(cls), flags=re.MULTILINE)
  section, _, _ = section.partition("\n\n")
  entries = re.split(r"^  (\w+): ", section, flags=re.MULTILINE)[1:]
  return {name.removeprefix("moe_"): " ".join(text.split()).replace("|", r"\|")
          for name, text in zip(entries[::2], entries[1::2])}


def _default(value):
  if callable(value):
    return f"`{value.__name__}`"
  return json.dumps(value) if isinstance(value, str) else repr(value)


def table():
  """The parameters of MoE2D, in their order."""
  meanings = {**_meanings(mtf_moe.MoeHparams), **_meanings(mtf_moe.MoE2D)}
  lines = [FIRST_LINE, "|---|---|---|"]
  for name, parameter in inspect.signature(mtf_moe.MoE2D).parameters.items():
    meaning = meanings[name.removeprefix("moe_")]
    lines.append(f"| `{name}` | {_default(parameter.default)} | {meaning} |")
  return "\n".join(lines) + "\n"


def with_table(page):
  """The text of the page, with the table as it is now."""
  before, first_line, rest = page.partition(FIRST_LINE)
  if not first_line:
    raise ValueError(f"{PAGE} has no table that begins with {FIRST_LINE}.")
  _, _, after = rest.partition("\n\n")
  return f"{before}{table()}\n{after}"


if __name__ == "__main__":
  PAGE.write_text(with_table(PAGE.read_text()))
