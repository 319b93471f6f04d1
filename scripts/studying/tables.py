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
    cost: seconds of CPU of a training, the mean; None where not known.
  """

  name: str
  values: Mapping[int, float]
  cost: float | None

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


def rows(results: Sequence[Mapping[str, Any]], metric: str) -> list[Row]:
  """The rows of results, in their order.

  Args:
    results: as `runs.read` returns them.
    metric: the name of a number in them.

  Raises:
    ValueError: if a result does not have it.
  """
  found: dict[str, dict[int, Mapping[str, Any]]] = {}
  for result in results:
    if not isinstance(result.get(metric), int | float):
      numbers = sorted(name for name, value in result.items()
                       if isinstance(value, float))
      raise ValueError(
          f"--metric={metric} is no number in the result of {result['row']!r}, "
          f"seed {result['seed']}: choose one of {', '.join(numbers)}.")
    found.setdefault(result["row"], {})[result["seed"]] = result
  return [Row(name, {seed: one[metric] for seed, one in by_seed.items()},
              _cost(by_seed.values()))
          for name, by_seed in found.items()]


def _cost(results):
  seconds = [(result.get("training") or {}).get("cpu_seconds")
             for result in results]
  return None if None in seconds else statistics.fmean(seconds)


def table(found: Sequence[Row], baseline: Row, metric: str) -> str:
  """Rows with their means, and how far they are from the baseline's."""
  def number(value, form):
    return "" if value is None or math.isnan(value) else format(value, form)

  lines = []
  for row in found:
    mean, half = row.difference(baseline)
    lines.append([
        row.name, len(row.values), f"{row.mean:.4f}",
        number(row.deviation, ".4f"),
        "" if row is baseline else number(mean, "+.4f"),
        "" if row is baseline else number(half, ".4f"),
        number(row.cost, ",.0f")])
  return tabulate.tabulate(lines, headers=[
      "", "seeds", metric, "deviation", f"from {baseline.name!r}",
      f"+- ({CONFIDENCE:.0%})", "CPU seconds"], tablefmt="github",
                           disable_numparse=True)


def plot(found: Sequence[Row], baseline: Row, metric: str,
         path: pathlib.Path):
  """Differences from the baseline: a dot a seed, and the interval of the mean.
  """
  drawing = figure.Figure(figsize=(7, 1 + 0.4 * len(found)),
                          layout="constrained")
  axes = drawing.subplots()
  for place, row in enumerate(found):
    pairs = row.differences(baseline)
    axes.plot(pairs, [place] * len(pairs), "o", color="tab:blue", alpha=0.5)
    mean, half = row.difference(baseline)
    axes.errorbar(mean, place, xerr=0.0 if math.isnan(half) else half,
                  fmt="|", color="black", capsize=4, markersize=12)
  axes.axvline(0.0, color="gray", linewidth=0.8)
  axes.set_yticks(range(len(found)), [row.name for row in found])
  axes.invert_yaxis()
  axes.set_xlabel(f"{metric.replace('_', ' ')}: difference from\n"
                  f"{baseline.name}, paired by seed")
  drawing.savefig(path, dpi=120)
