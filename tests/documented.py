"""The code and the commands of the documentation."""

import pathlib
import re
import shlex
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md",
         *sorted((ROOT / "docs").glob("*.md"))]


class Command(NamedTuple):
  """A program of ours that a page runs.

  Attributes:
    page: the name of its file.
    program: a module, or the path of a script.
    arguments: without what stands for others.
    shown: lines that it says, if it is shown with a prompt.
  """

  page: str
  program: str
  arguments: list[str]
  shown: list[str]


def blocks():
  """(page, language, block) of all code."""
  for page in PAGES:
    for language, block in re.findall(
        r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL):
      yield page.name, language, block


def commands():
  """A list of `Command`s."""
  found = []
  for page, _, block in blocks():
    command = None
    for line in block.replace("\\\n", " ").splitlines():
      match = re.match(
          r"\s*(?:\$ )?(?:python -m|python|bash) (mtf_moe[\w.]*|scripts/\S+)",
          line)
      if match:
        arguments = shlex.split(line[match.end():].partition(" #")[0])
        command = Command(page, match[1], [
            argument for argument in arguments
            if argument not in ("...", "$FLAGS")], [])
        found.append(command)
      elif command and block.startswith("$ ") and line not in ("", "..."):
        command.shown.append(line.strip())
  return found


def python_of(page):
  """The blocks of Python of a page, by their number."""
  return [block for name, language, block in blocks()
          if (name, language) == (page, "python")]


def tutorials():
  """Those of the page of tutorials."""
  return python_of("tutorials.md")
