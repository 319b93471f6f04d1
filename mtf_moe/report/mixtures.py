"""The mixtures of a run over time, from the tags that training records.

The tags, and the sums that hold between the counts, are those of
mtf_moe/monitoring.py. Those that are not known here are left alone.
"""

from collections.abc import Sequence
import dataclasses
import re

import numpy as np

from mtf_moe.report import runs

OUTER, INNER = "outer", "inner"
LEVEL_TITLES = {OUTER: "level one (outer)", INNER: "level two (inner)"}

_TAG = re.compile(
    r"moe/(?:(?P<layer>.+?)/)?(?P<level>outer|inner)/(?P<metric>.+)")
_PLACE = re.compile(r"(block_\d+/layer_\d+)")
_STACKS = {"encoder": "encoder ", "decoder": "decoder "}

# What is said to be so "now" is the mean of as many records.
_RECENT = 5


@dataclasses.dataclass(frozen=True)
class Level:
  """One level of a mixture.

  Attributes:
    name: "outer" or "inner".
    steps: those in which all of its counts were recorded, [n].
    metrics: a dict from metric, such as "tokens/lost", to [n] values.
  """

  name: str
  steps: np.ndarray
  metrics: dict[str, np.ndarray]

  def __getitem__(self, metric) -> np.ndarray:
    return self.metrics[metric]

  def __contains__(self, metric) -> bool:
    return metric in self.metrics

  @property
  def used(self) -> np.ndarray:
    """How many tokens were no padding, [n]."""
    return self["tokens/full"] + self["tokens/partial"]

  @property
  def recent(self) -> slice:
    """The last records: at most five, and at most half of all."""
    return slice(-max(1, min(_RECENT, len(self.steps) // 2)), None)

  def lost_now(self) -> float:
    """The share that no expert took, of the tokens that are no padding."""
    used = self.used[self.recent].sum()
    return float(self["tokens/lost"][self.recent].sum() / used) if used else 0.0

  def now(self, metric) -> float:
    """The mean of the last records."""
    return float(self[metric][self.recent].mean())

  def relative_loads(self) -> np.ndarray | None:
    """The loads of experts, 1 being an even share: [n, x] or [n, x, y].

    Returns:
      an array; None where single experts' loads were not recorded
    """
    shares = {}
    for metric in self.metrics:
      if found := re.fullmatch(r"load/expert_(\d+)(?:_(\d+))?", metric):
        shares[tuple(int(i) for i in found.groups() if i)] = self[metric]
    if not shares:
      return None
    shape = tuple(np.max(list(shares), axis=0) + 1)
    if len(shares) != np.prod(shape):
      return None
    loads = np.zeros((len(self.steps), *shape))
    for index, values in shares.items():
      loads[(slice(None), *index)] = values * len(shares)
    return loads


@dataclasses.dataclass(frozen=True)
class Layer:
  """A mixture.

  Attributes:
    path: its scope, such as "transformer/block_000/layer_001/MoE2D".
    label: for legends, such as "layer 1".
    title: with its place, such as "layer 1 (block_000/layer_001)".
    levels: a dict from "outer" and "inner" to `Level`.
  """

  path: str
  label: str
  title: str
  levels: dict[str, Level]


def find(run: runs.Run) -> list[Layer]:
  """The mixtures of a run, in the order of the model.

  Args:
    run: a `Run`.

  Returns:
    a list of `Layer`s, empty where nothing was recorded of any
  """
  recorded = {}
  for tag, series in run.scalars.items():
    if found := _TAG.fullmatch(tag):
      levels = recorded.setdefault(found["layer"] or "", {})
      levels.setdefault(found["level"], {})[found["metric"]] = series
  paths = sorted(path for path, levels in recorded.items() if all(
      _is_complete(levels.get(name, {})) for name in (OUTER, INNER)))
  layers = [
      Layer(path, label, title, {
          name: _level(name, recorded[path][name]) for name in (OUTER, INNER)})
      for path, (label, title) in zip(paths, _titles(paths))]
  return [layer for layer in layers
          if all(len(level.steps) for level in layer.levels.values())]


def total(layers: Sequence[Layer]) -> Layer:
  """All layers together: the sums of their counts, at the steps of all.

  Args:
    layers: the layers, one at least.

  Returns:
    a `Layer` without loads and gates
  """
  return Layer("", "all layers", "all layers together", {
      name: _sum([layer.levels[name] for layer in layers])
      for name in (OUTER, INNER)})


def _is_complete(metrics):
  return {"tokens", "tokens/full", "tokens/partial", "tokens/padding",
          "tokens/lost", "choices_1/kept", "choices_1/dropped"} <= set(metrics)


def _is_count(metric):
  return metric.startswith(("tokens", "choices", "slots"))


def _level(name, metrics):
  """Puts the metrics on common steps, those of the counts."""
  steps = _common_steps([
      series.steps for metric, series in metrics.items()
      if _is_count(metric) and metric != "tokens/not_finite"])
  return Level(name, steps, {
      metric: _at(steps, series.steps, series.values)
      for metric, series in metrics.items()})


def _sum(levels):
  steps = _common_steps([level.steps for level in levels])
  shared = set.intersection(*[set(level.metrics) for level in levels])
  return Level(levels[0].name, steps, {
      metric: sum(_at(steps, level.steps, level[metric]) for level in levels)
      for metric in sorted(shared) if _is_count(metric)})


def _common_steps(all_steps):
  common = set.intersection(*[set(steps.tolist()) for steps in all_steps])
  return np.array(sorted(common), dtype=np.int64)


def _at(steps, recorded_steps, values):
  """The values at some steps; NaN where there is none."""
  known = dict(zip(recorded_steps.tolist(), values))
  return np.array([known.get(step, np.nan) for step in steps.tolist()])


def _titles(paths):
  """Short names of layers, numbered within the encoder or the decoder."""
  counted, titles = {}, []
  for path in paths:
    stack = next((text for name, text in _STACKS.items()
                  if name in path.split("/")), "")
    counted[stack] = number = counted.get(stack, 0) + 1
    label = f"{stack}layer {number}"
    place = _PLACE.search(path)
    where = place[1] if place else path
    titles.append((label, f"{label} ({where})" if where else label))
  return titles
