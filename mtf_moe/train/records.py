"""What was recorded of the mixtures, read by tag: no TensorFlow here.

A tag is moe/<layer>/<level>/<metric>; see `mtf_moe.monitoring`. Others, which
layers of one's own may have recorded, are left alone.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import re

from mtf_moe import monitoring

_TAG = re.compile(
    r"moe/(?:transformer/)?(?P<layer>.+?)(?:/MoE2D)?/(?P<level>outer|inner)/"
    r"(?P<metric>.+)")


@dataclasses.dataclass(frozen=True)
class Tag:
  """The parts of a tag.

  Attributes:
    layer: for people, without what all layers have in common.
    level: "outer" or "inner".
    metric: such as "load/max_over_mean".
  """

  layer: str
  level: str
  metric: str

  @property
  def place(self):
    return f"{self.layer} {self.level}"


def parse(tags: Iterable[str]) -> dict[str, Tag]:
  """The parts of each tag that is of a mixture, in the same order."""
  found = ((tag, _TAG.fullmatch(tag)) for tag in tags)
  return {tag: Tag(**match.groupdict()) for tag, match in found if match}


def busiest(records: Mapping[str, float]) -> tuple[float, str] | None:
  """The worst balance.

  Args:
    records: values by tag.

  Returns:
    how many tokens the busiest expert of any level has, relative to an even
    share, and its layer and level; None where nothing was recorded.
  """
  loads = [(records[name], tag.place) for name, tag in parse(records).items()
           if tag.metric == monitoring.MAX_LOAD]
  return max(loads, default=None)


def relative_loads(
    records: Mapping[str, float]) -> dict[tuple[str, str], float]:
  """What share of an even one each expert has.

  Args:
    records: values by tag.

  Returns:
    a dict from the place (layer and level) and the name of an expert. Where
    single experts are not recorded, the least loaded one of a level has no
    name.
  """
  tags = parse(records)
  loads = {}
  for name, tag in tags.items():
    if tag.metric.startswith("load/expert_"):
      expert = tag.metric.removeprefix("load/expert_")
      loads.setdefault(tag.place, {})[expert] = records[name]
  relative = {(place, expert): share * len(shares)
              for place, shares in loads.items()
              for expert, share in shares.items()}
  for name, tag in tags.items():
    if tag.metric == monitoring.MIN_LOAD and tag.place not in loads:
      relative[tag.place, ""] = records[name]
  return relative


def vital_signs(tags: Iterable[str]) -> list[str]:
  """The tags to look at in every step, in the order of the forward pass.

  Args:
    tags: all tags, in the order in which layers recorded them.
  """
  # What enters a layer, its routers, and what leaves it.
  order = [("outer", monitoring.NOT_FINITE), ("outer", monitoring.ENTROPY),
           ("inner", monitoring.ENTROPY), ("outer", monitoring.OUTPUTS)]
  layers = {}
  for name, tag in parse(tags).items():
    layers.setdefault(tag.layer, {})[tag.level, tag.metric] = name
  return [layer[sign] for layer in layers.values() for sign in order
          if sign in layer]


def meaning(vital_sign: str) -> str:
  """What it means that a vital sign is not what it should be."""
  tag, = parse([vital_sign]).values()
  return {
      monitoring.NOT_FINITE:
          f"what entered the mixture of {tag.layer}, from the layers before it",
      monitoring.ENTROPY: f"the {tag.level} router of {tag.layer}",
      monitoring.OUTPUTS: f"the experts of {tag.layer}",
  }[tag.metric]
