"""What is well with a run, and what is not: plain sentences."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from mtf_moe.report import mixtures
from mtf_moe.report import runs

GOOD, WARNING, NOTE = "good", "warning", "note"

# Where a verdict turns. A balanced router with the default capacities loses a
# few percent at level one; at level two, where the slots are as many as the
# tokens that arrive, it loses more, second choices first.
MOST_LOST = {mixtures.OUTER: 0.05, mixtures.INNER: 0.3}
MOST_OVER_MEAN = 2.0  # max_over_mean: the busiest expert has twice its share.
UNUSED = 0.1  # of an even share.
SATURATED = 0.98  # Mean of the largest gate.
UNDECIDED = 0.99  # Entropy, of that of even gates.
MOST_EMPTY = 0.5
RISEN = 0.1  # Of the lowest loss.

_CAPACITY = {mixtures.OUTER: "MoE2D.capacity_factor_train",
             mixtures.INNER: "MoE2D.capacity_factor_second_level"}


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A sentence, and how it is meant: "good", "warning" or "note"."""

  kind: str
  text: str


@dataclasses.dataclass(frozen=True)
class Place:
  """The layer and level that are worst at something."""

  layer: mixtures.Layer
  level: mixtures.Level
  value: float

  @property
  def text(self) -> str:
    return f"{self.layer.title}, {mixtures.LEVEL_TITLES[self.level.name]}"


def judge(run: runs.Run, layers: Sequence[mixtures.Layer]) -> list[Verdict]:
  """All verdicts on a run, warnings first.

  Args:
    run: a `Run`.
    layers: its mixtures.

  Returns:
    a list of `Verdict`s
  """
  found = _loss(run)
  if layers:
    found += (_lost(run, layers) + _balance(run, layers) + _unused(run, layers)
              + _gates(run, layers) + _empty(run, layers))
  return sorted(found, key=lambda v: [WARNING, GOOD, NOTE].index(v.kind))


def most_lost(layers, level_name) -> Place:
  """Where most of the tokens find no expert at a level, as a share, now."""
  return _worst(layers, [level_name], lambda level: level.lost_now())


def least_balanced(layers) -> Place:
  """Where the busiest expert has most, relative to an even share, now."""
  return _worst(layers, [mixtures.OUTER, mixtures.INNER], _imbalance)


def _worst(layers, level_names, measure):
  places = [Place(layer, layer.levels[name], measure(layer.levels[name]))
            for layer in layers for name in level_names]
  return max(places, key=lambda place: (
      -math.inf if math.isnan(place.value) else place.value))


def _loss(run):
  if "loss" not in run.scalars:
    return [Verdict(NOTE, "No training loss was recorded.")]
  series = run.scalars["loss"]
  bad = ~np.isfinite(series.values)
  if bad.any():
    return [Verdict(
        WARNING, f"The loss is not finite at step {series.steps[bad][0]:,}: "
        "lower run.learning_rate_schedule, and set MoE2D.z_loss = 0.001.")]
  smooth = _smooth(series.values)
  lowest = int(smooth.argmin())
  if smooth[-1] > (1 + RISEN) * smooth[lowest]:
    return [Verdict(
        WARNING, f"The loss has risen from {smooth[lowest]:.3f} at step "
        f"{series.steps[lowest]:,} to {smooth[-1]:.3f}: lower "
        "run.learning_rate_schedule, or go back to an earlier checkpoint.")]
  return [Verdict(
      GOOD, f"The loss fell from {series.values[0]:.3f} to "
      f"{series.last:.3f}.")] if series.last < series.values[0] else [Verdict(
          NOTE, f"The loss has not fallen yet: {series.values[0]:.3f}, now "
          f"{series.last:.3f}.")]


def _smooth(values):
  """Means of up to five neighbours before each."""
  return np.array([values[max(0, i - 4):i + 1].mean()
                   for i in range(len(values))])


def _lost(run, layers):
  found = []
  for name in (mixtures.OUTER, mixtures.INNER):
    place = most_lost(layers, name)
    what = ("tokens find no expert at" if name == mixtures.OUTER else
            "the tokens that arrive find no expert with room at")
    says = f"{percent(place.value)} of {what} {_level_of(place)}"
    if place.value <= MOST_LOST[name]:
      found.append(Verdict(GOOD, f"{says} (the worst)."))
    elif _imbalance(place.level) > MOST_OVER_MEAN:
      # More slots would hardly help: those of other experts are empty.
      found.append(Verdict(
          WARNING, f"{says}, where the busiest expert is wanted "
          f"{_imbalance(place.level):.1f} times as often as the average one: "
          f"raise {_set(run, 'MoE2D.loss_coef')}."))
    else:
      found.append(Verdict(
          WARNING, f"{says}: raise {_set(run, _CAPACITY[name])}."))
  return found


def _balance(run, layers):
  place = least_balanced(layers)
  if math.isnan(place.value):
    return []
  says = (f"The busiest expert of {_level_of(place)} is wanted "
          f"{place.value:.1f} times as often as the average one")
  if place.value > MOST_OVER_MEAN:
    return [Verdict(
        WARNING, f"{says}: raise {_set(run, 'MoE2D.loss_coef')}.")]
  return [Verdict(GOOD, f"{says} (the worst).")]


def _unused(run, layers):
  """About experts of the second level: all experts there are."""
  starved = {}
  number = 0
  for layer in layers:
    level = layer.levels[mixtures.INNER]
    loads = level.relative_loads()
    if loads is None:
      continue
    now = np.nanmean(loads[level.recent], axis=0)
    number += now.size
    if few := int((now < UNUSED).sum()):
      starved[layer.title] = few
  if starved:
    where = ", ".join(f"{few} of {title}" for title, few in starved.items())
    return [Verdict(
        WARNING, f"{sum(starved.values())} of {number} experts get less than a "
        f"tenth of an even share ({where}): raise "
        f"{_set(run, 'MoE2D.loss_coef')}.")]
  return [Verdict(
      GOOD, f"Every one of the {number} experts is used: each gets a tenth of "
      "an even share or more.")] if number else []


def _gates(run, layers):
  """Whether routers are certain of everything, or of nothing."""
  found = []
  for layer in layers:
    for name, level in layer.levels.items():
      where = f"{mixtures.LEVEL_TITLES[name]} of {layer.title}"
      confidence, entropy = (
          level.now(metric) if metric in level else math.nan
          for metric in ("router/confidence", "router/entropy"))
      experts = experts_in(run, name)
      highest = highest_entropy(experts) if experts else None
      if confidence > SATURATED:
        found.append(Verdict(
            WARNING, f"The router of {where} is certain of nearly every token "
            f"(confidence {confidence:.3f}) and learns little more: set "
            f"{_set(run, 'MoE2D.z_loss')} to 0.001."))
      elif highest and entropy > UNDECIDED * highest:
        found.append(Verdict(
            NOTE, f"The router of {where} hardly prefers any expert (entropy "
            f"{entropy:.2f} of at most {highest:.2f}): if it stays so, lower "
            f"{_set(run, 'MoE2D.loss_coef')}."))
  return found


def experts_in(run, level_name) -> int | None:
  """Among how many a token chooses, where the configuration tells."""
  experts = run.parameter(
      "MoE2D.expert_x" if level_name == mixtures.OUTER else "MoE2D.expert_y")
  return int(experts) if experts and experts.isdecimal() else None


def highest_entropy(experts: int) -> float:
  """That of even gates, in nats."""
  return math.log(experts)


def _empty(run, layers):
  place = _worst(layers, [mixtures.INNER], _empty_now)
  if place.value <= MOST_EMPTY:
    return []
  return [Verdict(
      NOTE, f"{percent(place.value)} of the experts' slots in {place.layer.title} "
      "are empty, and computed all the same: if few tokens are dropped, lower "
      f"{_set(run, 'MoE2D.capacity_factor_second_level')} or "
      f"{_set(run, 'MoE2D.min_expert_capacity')}.")]


def _empty_now(level):
  if "slots" not in level or "slots/empty" not in level:
    return 0.0
  return float(level["slots/empty"][level.recent].sum()
               / level["slots"][level.recent].sum())


def _imbalance(level):
  metric = "load/max_over_mean"
  return level.now(metric) if metric in level else math.nan


def percent(share: float) -> str:
  """Such as "12%", or "0.4%"."""
  return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


def _level_of(place):
  """Such as "level outer of layer 2 (block_001/layer_001)"."""
  return f"level {place.level.name} of {place.layer.title}"


def _set(run, parameter):
  """A parameter with its value, where that is known."""
  value = run.parameter(parameter)
  return parameter if value is None else f"{parameter} (now {value})"
