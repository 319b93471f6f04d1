"""The results of a study as a table and a plot."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
import statistics
from typing import Any

from matplotlib import figure
from scipy import stats
import tabulate

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Row:
  """What the runs of one row have found.

  Attributes:
    name: the row's.
    values: the metric, by seed.
    beside: means of further numbers, by name; None where a result lacks one.
  """

  name: str
  values: Mapping[int, float]
  beside: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

  @property
  def mean(self) -> float:
    return statistics.fmean(self.values.values())

  @property
  def deviation(self) -> float:
    """The standard deviation over seeds; NaN of one."""
    return (statistics.stdev(self.values.values())
            if len(self.values) > 1 else math.nan)

  def differences(self, other: "Row") -> list[float]:
    """How far it is from another row, for each seed that both have."""
    return [value - other.values[seed] for seed, value in self.values.items()
            if seed in other.values]

  def difference(self, other: "Row") -> tuple[float, float]:
    """How far it is from another row, paired by seed.

    Returns:
      the mean, and half of the width of its confidence interval, by Student's
      distribution; NaN where there are no seeds, or only one, in both
    """
    differences = self.differences(other)
    if not differences:
      return math.nan, math.nan
    mean = statistics.fmean(differences)
    if len(differences) == 1:
      return mean, math.nan
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, error * stats.t.ppf(
        (1 + CONFIDENCE) / 2, len(differences) - 1)


def rows(results: Sequence[Mapping[str, Any]], metric: str,
         beside: Sequence[str] = ()) -> list[Row]:
  """The rows of results, in their order.

  Args:
    results: as `runs.read` returns them.
    metric: the name of a number in them; one that is inside of others is named
      with them, such as "training.loss".
    beside: names of further numbers.

  Raises:
    ValueError: if a result does not have the metric, or none has a number that
      is wanted beside it.
  """
  found: dict[str, dict[int, Mapping[str, float]]] = {}
  for result in results:
    numbers = dict(_numbers(result))
    if metric not in numbers:
      raise ValueError(
          f"--metric={metric} is no number in the result of {result['row']!r}, "
          f"seed {result['seed']}: choose one of {', '.join(sorted(numbers))}.")
    found.setdefault(result["row"], {})[result["seed"]] = numbers
  known = {name for by_seed in found.values() for numbers in by_seed.values()
           for name in numbers}
  for name in beside:
    if name not in known:
      raise ValueError(f"--beside={name} is no number in any result: choose "
                       f"from {', '.join(sorted(known))}.")
  return [
      Row(row, {seed: numbers[metric] for seed, numbers in by_seed.items()},
          {name: _mean([numbers.get(name) for numbers in by_seed.values()])
           for name in beside})
      for row, by_seed in found.items()]


def _numbers(result, prefix=""):
  """(name, number) pairs of a result, and of what is inside of it."""
  for name, value in result.items():
    if isinstance(value, Mapping):
      yield from _numbers(value, f"{prefix}{name}.")
    elif isinstance(value, int | float) and not isinstance(value, bool):
      yield prefix + name, value


def _mean(values):
  return None if None in values else statistics.fmean(values)


def table(found: Sequence[Row], baselines: Mapping[str, Row],
          metric: str) -> str:
  """Rows with their means, and how far they are from those of others.

  Args:
    found: the rows.
    baselines: by the name of each row, the one that it is compared with, which
      may be itself.
    metric: what it is that they have found.
  """
  def number(value, form):
    return "" if value is None or math.isnan(value) else format(value, form)

  lines = []
  for row in found:
    baseline = baselines[row.name]
    mean, half = row.difference(baseline)
    lines.append([
        row.name, len(row.values), f"{row.mean:.4f}",
        number(row.deviation, ".4f"),
        *(["", "", ""] if row is baseline else
          [number(mean, "+.4f"), number(half, ".4f"), baseline.name]),
        *(number(value, ",.4g") for value in row.beside.values())])
  return tabulate.tabulate(lines, headers=[
      "", "seeds", metric, "deviation", "difference", f"+- ({CONFIDENCE:.0%})",
      "from", *found[0].beside], tablefmt="github", disable_numparse=True)


def plot(found: Sequence[Row], baselines: Mapping[str, Row], metric: str,
         path: pathlib.Path):
  """Differences: a dot a seed, and the interval of the mean.

  Args:
    found: the rows.
    baselines: as for `table`.
    metric: likewise.
    path: of the picture. One where no row is compared with another is empty.
  """
  compared = [row for row in found if row is not baselines[row.name]]
  names = {baselines[row.name].name for row in compared}
  drawing = figure.Figure(figsize=(7, 1.2 + 0.4 * len(compared)),
                          layout="constrained")
  axes = drawing.subplots()
  for place, row in enumerate(compared):
    baseline = baselines[row.name]
    pairs = row.differences(baseline)
    axes.plot(pairs, [place] * len(pairs), "o", color="tab:blue", alpha=0.5)
    mean, half = row.difference(baseline)
    axes.errorbar(mean, place, xerr=0.0 if math.isnan(half) else half,
                  fmt="|", color="black", capsize=4, markersize=12)
  axes.axvline(0.0, color="gray", linewidth=0.8)
  axes.set_yticks(range(len(compared)), [
      row.name if len(names) == 1 else
      f"{row.name}\nfrom {baselines[row.name].name}" for row in compared])
  axes.set_ylim(len(compared) - 0.5, -0.5)
  axes.locator_params(axis="x", nbins=6)
  label = f"{metric.replace('_', ' ')}: difference, paired by seed"
  if len(names) == 1:
    label += f",\nfrom {min(names)}"
  axes.set_xlabel(label)
  drawing.savefig(path, dpi=120)
