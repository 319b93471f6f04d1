"""The mixtures of a run over time, from the tags that training records.

The tags are those of `mtf_moe.tags`; the sums that hold between the counts are
those of mtf_moe/monitoring.py. Those that are not known here are left alone.
"""

from collections.abc import Sequence
import dataclasses
import re

import numpy as np

from mtf_moe import levels as levels_lib
from mtf_moe import tags
from mtf_moe.report import older_runs
from mtf_moe.report import runs
from mtf_moe.run.layer_facts import LayerFacts
from mtf_moe.run.layer_facts import LevelFacts
from mtf_moe.run.layer_facts import Parameter

_PLACE = re.compile(r"(block_\d+/layer_\d+)")
_STACKS = {"encoder": "encoder ", "decoder": "decoder "}

# What is said to be so "now" is the mean of as many records.
_RECENT = 5


@dataclasses.dataclass(frozen=True)
class Level:
  """One level of a mixture.

  Attributes:
    name: such as "outer".
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
  def title(self) -> str:
    """Such as "level two (inner)"."""
    return tags.title_of(self.name)

  @property
  def used(self) -> np.ndarray:
    """How many tokens were no padding, [n]."""
    return self["tokens/full"] + self["tokens/partial"]

  @property
  def recent(self) -> slice:
    """The last records: at most five, and at most half of all."""
    return _recent(len(self.steps))

  def lost_now(self) -> float:
    """The share that no expert took, of the tokens that are no padding."""
    used = self.used[self.recent].sum()
    return float(self["tokens/lost"][self.recent].sum() / used) if used else 0.0

  def now(self, metric) -> float:
    """The mean of the last records."""
    return float(self[metric][self.recent].mean())

  def relative_loads(self) -> np.ndarray | None:
    """The loads of experts, 1 being an even share: [n, x], [n, x, y], ...

    Returns:
      an array; None where single experts' loads were not recorded
    """
    shares = {index: values for metric, values in self.metrics.items()
              if (index := tags.expert_of(metric)) is not None}
    if len({len(index) for index in shares}) != 1:
      return None
    shape = tuple(np.max(list(shares), axis=0) + 1)
    if len(shares) != np.prod(shape):
      return None
    loads = np.zeros((len(self.steps), *shape))
    for index, values in shares.items():
      loads[(slice(None), *index)] = values * len(shares)
    return loads


@dataclasses.dataclass(frozen=True)
class Reached:
  """What became of the tokens of a whole layer, as shares and means.

  Attributes:
    none: of the tokens that are no padding, those that no expert processed.
    fewer: likewise, those that fewer did than they had chosen.
    experts_each: how many processed a token, on average.
  """

  none: float
  fewer: float
  experts_each: float


@dataclasses.dataclass(frozen=True)
class Layer:
  """A mixture.

  Attributes:
    path: its scope, such as "transformer/block_000/layer_001/MoE2D".
    label: for legends, such as "layer 1".
    title: with its place, such as "layer 1 (block_000/layer_001)".
    levels: the first one first.
    facts: what it is.
    whole: of the whole layer, its series by metric.
  """

  path: str
  label: str
  title: str
  levels: tuple[Level, ...]
  facts: LayerFacts | None = None
  whole: dict[str, runs.Series] = dataclasses.field(default_factory=dict)

  def reached_now(self) -> Reached | None:
    """What became of its tokens lately; None in runs of earlier releases."""
    names = (tags.USED, tags.NO_EXPERT, tags.FEWER_EXPERTS, tags.EXPERTS_EACH)
    if not all(name in self.whole for name in names):
      return None
    used, none, fewer, each = (
        series.values[_recent(len(series.values))].mean()
        for series in (self.whole[name] for name in names))
    return Reached(*(float(value / used) if used else 0.0
                     for value in (none, fewer)), float(each))

  @property
  def level_names(self) -> list[str]:
    return [level.name for level in self.levels]

  def level(self, name: str) -> Level | None:
    """The level of a name, if the layer has it."""
    return next((one for one in self.levels if one.name == name), None)

  def facts_of(self, level: Level) -> LevelFacts:
    """What one of its levels is."""
    return self.facts.levels[self.level_names.index(level.name)]

  def balanced_by(self, level: Level) -> Parameter | None:
    """Of what a larger value balances the experts of a level more."""
    return self.facts.balanced_by(self.level_names.index(level.name))

  def parameter(self, name: str, level: Level | None = None) -> Parameter:
    """One of its parameters, or of a level of it."""
    return self.facts.parameter(
        name, self.level_names.index(level.name) if level else 0)


def _recent(number):
  """The last of so many: at most five, and at most half of all."""
  return slice(-max(1, min(_RECENT, number // 2)), None)


def find(run: runs.Run) -> list[Layer]:
  """The mixtures of a run, in the order of the model.

  Args:
    run: a `Run`.

  Returns:
    a list of `Layer`s, empty where nothing was recorded of any
  """
  recorded, whole = {}, {}
  for name, tag in tags.parse(run.scalars).items():
    if tag.level == tags.LAYER:
      whole.setdefault(tag.scope, {})[tag.metric] = run.scalars[name]
    else:
      levels = recorded.setdefault(tag.scope, {})
      levels.setdefault(tag.level, {})[tag.metric] = run.scalars[name]
  paths = sorted(path for path, levels in recorded.items() if _is_whole(levels))
  kept = {facts.scope: facts for facts in run.layers or ()}
  layers = []
  for path, (label, title) in zip(paths, _titles(paths)):
    names = _in_order(recorded[path])
    facts = kept.get(path)
    if facts is None or [level.name for level in facts.levels] != names:
      facts = older_runs.assumed(run, path, names)
    layers.append(Layer(path, label, title, tuple(
        _level(name, recorded[path][name]) for name in names), facts,
                        whole.get(path, {})))
  return [layer for layer in layers
          if all(len(level.steps) for level in layer.levels)]


def described(run: runs.Run, layers: Sequence[Layer]) -> list[LayerFacts]:
  """What the mixtures of a run are, recorded or not.

  Args:
    run: the `Run`.
    layers: what `find` has found in it.

  Returns:
    `LayerFacts`, none where the model is known to have no mixture
  """
  if run.layers is not None:
    return list(run.layers)
  return [layer.facts for layer in layers] or [older_runs.assumed(
      run, "MoE2D", [level.level for level in levels_lib.names(2)])]


def totals(layers: Sequence[Layer]) -> list[Layer]:
  """Layers of the same levels together: the sums of their counts.

  Args:
    layers: the layers.

  Returns:
    `Layer`s without loads and gates, at the steps of all that are in them; none
    of a layer that is the only one of its kind
  """
  alike = {}
  for layer in layers:
    alike.setdefault(tuple(layer.level_names), []).append(layer)

  def named(number):
    return "all layers" if len(alike) == 1 else (
        f"all layers of {number} level{'s' if number > 1 else ''}")

  return [
      Layer("", named(len(names)), named(len(names)) + " together",
            tuple(map(_sum, zip(*(layer.levels for layer in same)))))
      for names, same in alike.items() if len(same) > 1]


def _in_order(levels):
  return sorted(levels, key=tags.number_of)


def _is_whole(levels):
  """Whether a layer has all its levels, and those all that is needed here."""
  return _in_order(levels) == [
      level.level for level in levels_lib.names(len(levels))
  ] and all(map(_is_complete, levels.values()))


def _is_complete(metrics):
  return {"tokens", "tokens/full", "tokens/partial", "tokens/padding",
          "tokens/lost", "choices_1/kept"} <= set(metrics)


def _is_count(metric):
  return metric.startswith(("tokens", "choices", "slots"))


def _level(name, metrics):
  """Puts the metrics on common steps, those of the counts."""
  steps = _common_steps([
      series.steps for metric, series in metrics.items() if _is_count(metric)])
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
