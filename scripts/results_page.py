"""Brings the results of the quick start's studies into docs/results.md.

  python scripts/results_page.py

A line such as <!-- study: capacity --> of the page has the table of
scripts/studies/capacity.toml behind it, which is made from
docs/results/quick_start/results.jsonl (that of rate_0_04 from a folder of its
own), and its picture is docs/results/capacity.png. It needs the extra
"benchmark" of setup.py.
"""

import dataclasses
import math
import pathlib
import re

from studying import runs
from studying import tables

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
PICTURES = ROOT / "docs" / "results"
RESULTS = PICTURES / "quick_start"  # As a study folder, to report or to go on.

NEW_TEXT, LATER = "new text", "later addresses"
TWO_LEVELS, DENSE = "two levels, 4 x 4", "dense, the same FLOPs"

NO_EXPERT, CPU = "no expert", "CPU"
LEVEL_ONE, LEVEL_TWO = "busiest, level one", "level two"
SHOWN = {NEW_TEXT: ".3f", LATER: ".4f", NO_EXPERT: ".1%", CPU: ".0f",
         LEVEL_ONE: ".2f", LEVEL_TWO: ".2f"}


@dataclasses.dataclass(frozen=True)
class Table:
  """What is shown of a study.

  Attributes:
    baseline: the row that others are compared with, where the study names none.
    beside: columns that are not compared.
    metrics: columns that are.
    results: the study folder that has them.
  """

  baseline: str
  beside: tuple[str, ...]
  metrics: tuple[str, ...] = (NEW_TEXT, LATER)
  results: pathlib.Path = RESULTS


TABLES = {
    "quick_start": Table(DENSE, (NO_EXPERT, CPU)),
    "experts": Table(DENSE, (NO_EXPERT, CPU)),
    # Short runs have no 100 steps at their end, which new text is the mean of.
    "length": Table(DENSE, (CPU,), (LATER,)),
    "balance": Table(TWO_LEVELS, (NO_EXPERT, LEVEL_ONE, LEVEL_TWO)),
    "capacity": Table(TWO_LEVELS, (NO_EXPERT, CPU)),
    "routers": Table(TWO_LEVELS, (NO_EXPERT, LEVEL_ONE, LEVEL_TWO)),
    "settings": Table(TWO_LEVELS, ()),
    "rate_0_04": Table(DENSE, (NO_EXPERT, CPU),
                       results=PICTURES / "quick_start_rate_0_04"),
}


def numbers(result):
  """What the tables show of a result, by the name of its column."""
  training = result["training"]
  records = training["records"] or {}
  auxiliary_free = training["loss_without_auxiliary"]
  found = {
      # Dense layers add nothing to the loss, and so record nothing.
      NEW_TEXT: training["loss"] if auxiliary_free is None else auxiliary_free,
      LATER: result["bits_per_byte"], CPU: training["cpu_seconds"]}
  if "layer/tokens/used" in records:
    found[NO_EXPERT] = (
        records["layer/tokens/no_expert"] / records["layer/tokens/used"])
  for column, level in ((LEVEL_ONE, "outer"), (LEVEL_TWO, "inner")):
    if (tag := f"{level}/load/max_over_mean") in records:
      found[column] = records[tag]
  return {name: value for name, value in found.items() if value is not None}


def of_study(name):
  """The rows of a study that have results.

  Returns:
    for each metric, `tables.Row`s by name
    the name of the row that each is compared with, which may be itself
  """
  shown = TABLES[name]
  study = runs.Study.read(ROOT / "scripts" / "studies" / f"{name}.toml")
  kept = runs.read(shown.results)
  results = [{"row": row, "seed": result["seed"], **numbers(result)}
             for row in study.rows for result in kept if result["row"] == row]
  found = {metric: {row.name: row
                    for row in tables.rows(results, metric, shown.beside)}
           for metric in shown.metrics}
  return found, {row: study.baseline(row, shown.baseline)
                 for row in found[LATER]}


def table(name):
  """The lines of a study's table."""
  found, against = of_study(name)
  shown = TABLES[name]
  columns = ["", "seeds"]
  for metric in shown.metrics:
    columns += [metric, "difference"]
  columns += shown.beside
  lines = [_line(columns), "|---" * len(columns) + "|"]
  for row, other in against.items():
    cells = [row, str(len(found[LATER][row].values))]
    for metric in shown.metrics:
      form = SHOWN[metric]
      cells.append(format(found[metric][row].mean, form))
      cells.append("" if other == row else _with_error(
          *found[metric][row].difference(found[metric][other]), form))
    cells += ["" if value is None else format(value, SHOWN[column])
              for column, value in found[LATER][row].beside.items()]
    lines.append(_line(cells))
  return lines


def _with_error(mean, half, form):
  """A difference, with the half of its interval if several seeds give one."""
  error = "" if math.isnan(half) else f" +- {half:{form}}"
  return f"{mean:+{form}}{error}"


def _line(cells):
  return f"| {' | '.join(cells)} |"


def page(text):
  """The text of the page, with the tables as they are now."""
  def replaced(match):
    return "\n".join([match[1], "", *table(match[2]), "", ""])
  return re.sub(r"(<!-- study: (\w+) -->)\n\n(?:(?:\|.*\n)+\n)?", replaced,
                text)


def main():
  PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
  for name in TABLES:
    found, against = of_study(name)
    tables.plot(list(found[LATER].values()),
                {row: found[LATER][other] for row, other in against.items()},
                f"bits per byte of {LATER}", PICTURES / f"{name}.png")


if __name__ == "__main__":
  main()
