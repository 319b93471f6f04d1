"""What was measured, as tables, as a plot and as raw numbers."""

import dataclasses
import json
import os

from matplotlib import figure
from matplotlib import ticker
import numpy as np
import tabulate

from benchmarking import peers
from benchmarking import settings

# Of which contender over which other.
RATIOS = (
    ("reference", "index"),
    ("reference", "einsum"),
    ("einsum", "index"),
    ("index", "bound"),
    ("index", "dense"),
    *((peer, "index") for peer in peers.CLASSES),
)


@dataclasses.dataclass(frozen=True)
class Result:
  """What was measured of one setting in one mode.

  Attributes:
    setting: a `Setting`.
    mode: "forward" or "training".
    samples: milliseconds of CPU time by contender, one number a round.
    peaks: megabytes by contender, where they are known.
    load: load averages of the machine, before and after.
  """

  setting: settings.Setting
  mode: str
  samples: dict[str, list[float]]
  peaks: dict[str, float]
  load: tuple[float, float]

  def ratio(self, one, other):
    """Of the medians, and the quartiles of the ratios within rounds.

    Returns:
      (first quartile, ratio of medians, third quartile)
    """
    a, b = (np.array(self.samples[name]) for name in (one, other))
    low, _, high = quartiles(a / b)
    return low, float(np.median(a) / np.median(b)), high

  def as_json(self):
    """All of it, with the shapes that follow from the setting."""
    setting = self.setting
    return {
        "setting": dataclasses.asdict(setting),
        "mode": self.mode,
        "group_sizes": setting.group_sizes,
        "expert_inputs": [dim.size for dim in setting.expert_input_dims],
        "dense_hidden": setting.dense_hidden,
        "cpu_ms": self.samples,
        "peak_mb": self.peaks,
        "load_average": self.load}


def quartiles(samples):
  """(first quartile, median, third quartile)."""
  return tuple(map(float, np.percentile(samples, [25, 50, 75])))


def text(environment, results):
  """The report in Markdown.

  Args:
    environment: what the results depend on, by name.
    results: a list of `Result`s, not empty.
  """
  names = _names(results)
  ratios = [pair for pair in RATIOS if set(pair) <= set(names)]
  circumstances = ", ".join(f"{key} {environment[key]}" for key in environment)
  return "\n".join([
      "# Benchmark", "",
      f"{circumstances}; load average {results[0].load[0]:.1f} at the start, "
      f"{results[-1].load[1]:.1f} at the end.", "",
      "## CPU time of a step, ms: median (quartiles)", "",
      _table(results, names, lambda result, name: _spread(
          quartiles(result.samples[name]), "{:.4g}")), "",
      "## Ratios: of the medians (quartiles of those within a round)", "",
      _table(results, ["/".join(pair) for pair in ratios],
             lambda result, pair: _spread(
                 result.ratio(*pair.split("/")), "{:.2f}")), "",
      "## Peak memory of a step, MB", "",
      _table(results, [name for name in names if name in results[0].peaks],
             lambda result, name: f"{result.peaks[name]:.1f}"), "",
      "## Sizes", "", _sizes(results), ""])


def _names(results):
  return list(results[0].samples)


def _spread(numbers, form):
  low, middle, high = map(form.format, numbers)
  return f"{middle} ({low}-{high})"


def _row(setting):
  return [setting.tokens, setting.d_model, setting.hidden,
          settings.pair(setting.experts), settings.pair(setting.mesh),
          setting.group]


_ROW = ["tokens", "d_model", "hidden", "experts", "mesh", "group"]


def _table(results, columns, cell):
  """A line for each result."""
  return tabulate.tabulate(
      [[*_row(result.setting), result.mode,
        *(cell(result, column) for column in columns)] for result in results],
      headers=[*_ROW, "mode", *columns], tablefmt="github",
      disable_numparse=True)


def _sizes(results):
  """A line for each setting, of what follows from it."""
  lines = [
      [*_row(setting), "{}, {}".format(*setting.group_sizes),
       " ".join(str(dim.size) for dim in setting.expert_input_dims),
       setting.dense_hidden]
      for setting in dict.fromkeys(result.setting for result in results)]
  return tabulate.tabulate(
      lines, tablefmt="github", disable_numparse=True,
      headers=[*_ROW, "groups (s, t)",
               "experts' inputs [y, x, h, d, m]", "hidden of dense"])


def plot(results):
  """CPU time relative to the bound over the group size.

  A row for settings that differ in their group only, a column for each mode;
  bars from the first to the third quartile of the ratios within a round.

  Args:
    results: a list of `Result`s with the contender "bound".

  Returns:
    a matplotlib Figure
  """
  families = list(dict.fromkeys(r.setting.family for r in results))
  modes = list(dict.fromkeys(r.mode for r in results))
  drawing = figure.Figure(
      figsize=(5.5 * len(modes), 0.6 + 3.6 * len(families)),
      layout="constrained")
  axes = drawing.subplots(len(families), len(modes), squeeze=False)
  for row, family in zip(axes, families):
    for ax, mode in zip(row, modes):
      shown = [
          r for r in results if (r.setting.family, r.mode) == (family, mode)]
      if shown:  # Or it is not measured yet.
        _draw(ax, sorted(shown, key=lambda r: r.setting.group))
      ax.set_title(f"{family}\n{mode}", fontsize="small")
  drawing.legend(
      *axes[0, 0].get_legend_handles_labels(), loc="outside lower center",
      ncols=4)
  return drawing


def _draw(ax, results):
  groups = [result.setting.group for result in results]
  for name in _names(results):
    if name == "bound":
      continue
    low, middle, high = np.array(
        [result.ratio(name, "bound") for result in results]).T
    ax.plot(groups, middle, marker="o", label=name)
    ax.vlines(groups, low, high, color=ax.lines[-1].get_color())
  ax.axhline(1, color="black", linewidth=1, label="bound: the experts alone")
  ax.set_xscale("log", base=2)
  ax.set_yscale("log", base=2)
  ax.set_xticks(groups, [str(group) for group in groups])
  ax.yaxis.set_major_locator(ticker.LogLocator(base=2, subs=[1, 1.5]))
  ax.yaxis.set_major_formatter("{x:g}")
  ax.set_xlabel("group size")
  ax.set_ylabel("CPU time / bound")
  ax.grid(alpha=0.3)


def write(folder, environment, results):
  """Writes benchmark.json, benchmark.md and, with a bound, benchmark.png.

  Args:
    folder: an existing folder.
    environment: as for `text`.
    results: as for `text`.
  """
  raw = {"environment": environment,
         "results": [result.as_json() for result in results]}
  with open(os.path.join(folder, "benchmark.json"), "w") as f:
    json.dump(raw, f, indent=1)
  with open(os.path.join(folder, "benchmark.md"), "w") as f:
    f.write(text(environment, results))
  drawing = os.path.join(folder, "benchmark.png")
  if "bound" in _names(results):
    plot(results).savefig(drawing, dpi=120)
  elif os.path.exists(drawing):
    os.remove(drawing)  # That of an earlier run, with other numbers.
