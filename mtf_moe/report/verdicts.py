"""What is well with a run, and what is not: plain sentences."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from mtf_moe.report import mixtures
from mtf_moe.report import runs
from mtf_moe.run import layer_facts
from mtf_moe.run.layer_facts import Parameter

GOOD, WARNING, NOTE = "good", "warning", "note"

# Where a verdict turns: good below the first, a warning above the second.
# Of tokens that no expert processes: those have nothing of the layer, where one
# that lost a second choice has most of it.
_NO_EXPERT = 0.05
# Balanced routers with the default capacities lose few tokens at level one.
# Below it, where slots are no more than the tokens that arrive, some loss is
# usual, of second choices first.
_LOST_AT_FIRST, _LOST_BELOW = (0.05, 0.05), (0.1, 0.3)
# Of the busiest expert, over the average one.
_UNEVEN = 2.0
# With that, uneven loads are why tokens are lost, more than few slots.
_UNEVEN_LOSES = 1.5
_UNUSED = 0.1  # Of an even share.
_SATURATED = 0.98  # Mean of the largest gate.
_UNDECIDED = 0.99  # Entropy, of that of even gates.
_EMPTY = 0.5  # Of the slots.
_RISEN = 0.1  # Of the lowest loss.


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
    """Such as "level two (inner) of layer 1 (block_000/layer_001)"."""
    return f"{self.level.title} of {self.layer.title}"

  @property
  def balanced_by(self) -> Parameter | None:
    return self.layer.balanced_by(self.level)

  @property
  def to_balance(self) -> str:
    """What to do about uneven loads, the end of a sentence."""
    parameter = self.balanced_by
    return (f"raise {parameter}" if parameter
            else "use a router that balances its experts")


def judge(run: runs.Run, layers: Sequence[mixtures.Layer]) -> list[Verdict]:
  """All verdicts on a run, warnings first.

  Args:
    run: a `Run`.
    layers: its mixtures.

  Returns:
    a list of `Verdict`s
  """
  found = _loss(run, mixtures.described(run, layers))
  if layers:
    found += (_lost(layers) + _balance(layers) + _unused(layers)
              + _gates(layers) + _empty(layers))
  return sorted(found, key=lambda v: [WARNING, GOOD, NOTE].index(v.kind))


def depth(layers: Sequence[mixtures.Layer]) -> int:
  """The levels of the layer that has most."""
  return max(len(layer.levels) for layer in layers)


def most_lost(layers: Sequence[mixtures.Layer], number: int) -> Place:
  """Where most of the tokens find no expert at a level, as a share, now.

  Args:
    layers: the mixtures.
    number: the level, 0 for the first.
  """
  return _worst([(layer, layer.levels[number]) for layer in layers
                 if number < len(layer.levels)], mixtures.Level.lost_now)


def least_balanced(layers: Sequence[mixtures.Layer]) -> Place:
  """Where the busiest expert has most, relative to an even share, now."""
  return _worst([(layer, level) for layer in layers for level in layer.levels],
                _imbalance)


def _worst(levels, measure):
  places = [Place(layer, level, measure(level)) for layer, level in levels]
  return max(places, key=lambda place: (
      -math.inf if math.isnan(place.value) else place.value))


def _loss(run, described):
  if "loss" not in run.scalars:
    return [Verdict(NOTE, "No training loss was recorded.")]
  series = run.scalars["loss"]
  bad = ~np.isfinite(series.values)
  if bad.any():
    return [Verdict(
        WARNING, f"The loss is not finite at step {series.steps[bad][0]:,}: "
        "lower run.learning_rate_schedule"
        + (", and set " + layer_facts.settings(described, "z_loss", 0.001)
           if described else "") + ".")]
  if len(series.values) == 1:
    return [Verdict(NOTE, "The loss is known of one step only.")]
  smooth = _smooth(series.values)
  lowest = int(smooth.argmin())
  if smooth[-1] > (1 + _RISEN) * smooth[lowest]:
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


def _lost(layers):
  by_level = [_lost_at(most_lost(layers, number), number)
              for number in range(depth(layers))]
  reached = {layer.title: layer.reached_now() for layer in layers}
  if None in reached.values():  # Of an earlier release.
    return by_level
  worst = max(layers, key=lambda layer: reached[layer.title].none)
  now = reached[worst.title]
  fewest = min(layers, key=lambda layer: reached[layer.title].experts_each)
  says = (f"{percent(now.none)} of tokens reach no expert in {worst.title}, "
          f"through all levels; {percent(now.fewer)} reach fewer than they "
          f"chose. In {fewest.title}, a token has "
          f"{reached[fewest.title].experts_each:.2f} experts on average")
  if now.none <= _NO_EXPERT:
    # What is lost beside that are second choices.
    return [Verdict(GOOD, f"At most {says}.")]
  place = _worst([(worst, level) for level in worst.levels],
                 mixtures.Level.lost_now)
  return [Verdict(WARNING, f"{says}. Most are lost at {place.level.title}"
                  f"{_remedy(place)}."), *by_level]


def _remedy(place):
  """Why tokens are lost at a level, and what to do: the end of a sentence."""
  imbalance = _imbalance(place.level)
  if imbalance > _UNEVEN_LOSES:
    # More slots would hardly help: those of other experts are empty.
    return (f", as the busiest expert is wanted {imbalance:.1f} times as often "
            f"as the average one: {place.to_balance}")
  return f": raise {place.layer.parameter('capacity_factor', place.level)}"


def _lost_at(place, number):
  """About the layer that loses most at a level, 0 for the first."""
  few, many = _LOST_BELOW if number else _LOST_AT_FIRST
  what = ("the tokens that arrive find no expert with room" if number else
          "tokens find no expert")
  says = f"{percent(place.value)} of {what} at {place.text}"
  capacity = place.layer.parameter("capacity_factor", place.level)
  if place.value <= few:
    return Verdict(GOOD, f"At most {says}.")
  if place.value <= many:
    return Verdict(
        NOTE, f"{says}: usual where slots are no more than arrivals. Fewer "
        f"would be with more {capacity}, at a higher cost.")
  return Verdict(WARNING, f"{says}{_remedy(place)}.")


def _balance(layers):
  place = least_balanced(layers)
  if math.isnan(place.value):
    return []
  says = (f"the busiest expert of {place.text} is wanted {place.value:.1f} "
          "times as often as the average one")
  if place.value > _UNEVEN:
    to_balance = place.to_balance[0].upper() + place.to_balance[1:]
    return [Verdict(WARNING, f"Loads are uneven: {says}. {to_balance}.")]
  return [Verdict(GOOD, f"Loads are balanced: even {says}.")]


def _unused(layers):
  """About experts of the last level: all experts there are."""
  starved = {}
  number = 0
  for layer in layers:
    level = layer.levels[-1]
    loads = level.relative_loads()
    if loads is None:
      continue
    now = loads[level.recent].mean(axis=0)
    number += now.size
    if few := int((now < _UNUSED).sum()):
      starved[layer.title] = few, Place(layer, level, math.nan).to_balance
  if starved:
    where = ", ".join(f"{few} of {title}"
                      for title, (few, _) in starved.items())
    first, *others = dict.fromkeys(remedy for _, remedy in starved.values())
    remedies = " and ".join(
        [first, *(other.removeprefix("raise ") for other in others)])
    return [Verdict(
        WARNING, f"{sum(few for few, _ in starved.values())} of {number} "
        f"experts get less than a tenth of an even share ({where}): "
        f"{remedies}.")]
  return [Verdict(
      GOOD, f"Every one of the {number} experts is used: each gets a tenth of "
      "an even share or more.")] if number else []


def _gates(layers):
  """Whether routers are certain of everything, or of nothing."""
  found = []
  for layer in layers:
    for level in layer.levels:
      place = Place(layer, level, math.nan)
      confidence, entropy = (
          level.now(metric) if metric in level else math.nan
          for metric in ("router/confidence", "router/entropy"))
      experts = layer.facts_of(level).experts
      highest = highest_entropy(experts) if experts else None
      if confidence > _SATURATED:
        found.append(Verdict(
            WARNING, f"The router of {place.text} is certain of nearly every "
            f"token (confidence {confidence:.3f}) and learns little more: set "
            f"{layer.parameter('z_loss', level)} to 0.001."))
      elif (highest and entropy > _UNDECIDED * highest and place.balanced_by
            == layer.parameter("loss_coef")):
        found.append(Verdict(
            NOTE, f"The router of {place.text} hardly prefers any expert "
            f"(entropy {entropy:.2f} of at most {highest:.2f}): if it stays "
            f"so, lower {place.balanced_by}."))
  return found


def experts_in(
    layers: Sequence[mixtures.Layer], level_name: str) -> int | None:
  """Among how many a token chooses, where that is known and always the same."""
  numbers = {layer.facts_of(level).experts for layer in layers
             if (level := layer.level(level_name))}
  return numbers.pop() if len(numbers) == 1 else None


def highest_entropy(experts: int) -> float:
  """That of even gates, in nats."""
  return math.log(experts)


def _empty(layers):
  place = _worst([(layer, layer.levels[-1]) for layer in layers], _empty_now)
  if place.value <= _EMPTY:
    return []
  capacity, smallest = (place.layer.parameter(name, place.level) for name in (
      "capacity_factor", "min_expert_capacity"))
  return [Verdict(
      NOTE, f"{percent(place.value)} of the experts' slots in "
      f"{place.layer.title} are empty, and computed all the same: if few "
      f"tokens are dropped, lower {capacity} or {smallest}.")]


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
