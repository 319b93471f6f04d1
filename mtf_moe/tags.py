"""The one grammar of the tags under which layers record themselves.

    moe/<scope of the layer>/<level>/<metric>     of a level
    moe/<scope of the layer>/layer/<metric>       of the whole layer

Levels are called "outer" and "inner" where there are two, else "level_1",
"level_2" and so on. No TensorFlow here: reports read tags without it.
"""

from collections.abc import Iterable
import dataclasses
import re

# In the place of a level.
LAYER = "layer"

# Names that a run is watched by, beside being drawn. The entropy is NaN where
# any probability of a router is, and the outputs where those of an expert are.
NOT_FINITE = "tokens/not_finite"
ENTROPY = "router/entropy"
OUTPUTS = "outputs/rms"
# Of a whole layer, through all its levels: the tokens that are no padding; of
# them, those that no expert processed, and those that some did, and others that
# they had chosen did not; how many experts processed one, on average.
USED = "tokens/used"
NO_EXPERT = "tokens/no_expert"
FEWER_EXPERTS = "tokens/fewer_experts"
EXPERTS_EACH = "tokens/experts_each"
# What a whole layer adds to the training loss.
AUXILIARY_LOSS = "loss/auxiliary"
MAX_LOAD = "load/max_over_mean"
MIN_LOAD = "load/min_over_mean"
# The share of one expert: its place at each level behind it, such as "2_0".
EXPERT_LOAD = "load/expert_"

# Older runs have these under their first level.
_OF_LAYER = (NOT_FINITE, OUTPUTS)

_TAG = re.compile(
    r"moe/(?:(?P<scope>.+?)/)?(?P<level>outer|inner|level_\d+|layer)/"
    r"(?P<metric>(?:tokens|choices_\d+|slots|load|router|loss|outputs)\b.*)")
_NUMBERS = {"outer": 1, "inner": 2}
_ORDINALS = ("one", "two", "three", "four", "five", "six")


@dataclasses.dataclass(frozen=True)
class Tag:
  """The parts of a tag.

  Attributes:
    scope: the layer's variable scope.
    level: its name, or `LAYER`.
    metric: such as "load/max_over_mean".
  """

  scope: str
  level: str
  metric: str

  def __str__(self):
    return "/".join(
        part for part in ("moe", self.scope, self.level, self.metric) if part)

  @property
  def layer(self) -> str:
    """The scope for people, without what all layers have in common."""
    return re.sub(r"/(MoE\w*)$", "", self.scope.removeprefix("transformer/"))

  @property
  def place(self) -> str:
    return f"{self.layer} {self.level}"


def parse(tags: Iterable[str]) -> dict[str, Tag]:
  """The parts of each tag that is of a mixture, in the same order."""
  found = ((tag, _TAG.fullmatch(tag)) for tag in tags)
  return {tag: _of(match) for tag, match in found if match}


def _of(match):
  metric = match["metric"]
  level = LAYER if metric in _OF_LAYER else match["level"]
  return Tag(match["scope"] or "", level, metric)


def expert_of(metric: str) -> tuple[int, ...] | None:
  """Whose load a metric is: an index a level, the first one first.

  Args:
    metric: such as "load/expert_2_0".

  Returns:
    such as (2, 0), or None where the metric is not of one expert
  """
  found = re.fullmatch(rf"{EXPERT_LOAD}(\d+(?:_\d+)*)", metric)
  return tuple(map(int, found[1].split("_"))) if found else None


def number_of(level: str) -> int:
  """Which level a name means, 1 for the first."""
  return _NUMBERS.get(level) or int(level.removeprefix("level_"))


def title_of(level: str) -> str:
  """A level for people, such as "level two (inner)"."""
  number = number_of(level)
  ordinal = (_ORDINALS[number - 1] if number <= len(_ORDINALS) else
             str(number))
  return f"level {ordinal}" + (f" ({level})" if level in _NUMBERS else "")
