"""What was recorded of the mixtures, read by tag: no TensorFlow here.

A tag is moe/<layer>/<level>/<metric>; see `mtf_moe.monitoring`.
"""

from collections.abc import Mapping
import dataclasses
import re

from mtf_moe import monitoring

_TAG = re.compile(
    r"moe/(?:transformer/)?(?P<layer>.*?)(?:/MoE2D)?/(?P<level>outer|inner)/"
    r"(?P<metric>.*)")


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

  @classmethod
  def of(cls, tag: str) -> "Tag":
    return cls(**_TAG.fullmatch(tag).groupdict())

  @property
  def place(self):
    return f"{self.layer} {self.level}"


def busiest(records: Mapping[str, float]) -> tuple[float, str] | None:
  """The worst balance.

  Args:
    records: values by tag.

  Returns:
    how many tokens the busiest expert of any level has, relative to an even
    share, and its layer and level; None where nothing was recorded.
  """
  loads = [(value, Tag.of(tag).place) for tag, value in records.items()
           if tag.endswith(monitoring.MAX_LOAD)]
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
  loads = {}
  for tag, value in records.items():
    tag = Tag.of(tag)
    if tag.metric.startswith("load/expert_"):
      loads.setdefault(tag.place, {})[tag.metric.rpartition("expert_")[2]] = (
          value)
  relative = {(place, name): share * len(shares)
              for place, shares in loads.items()
              for name, share in shares.items()}
  for tag, value in records.items():
    tag = Tag.of(tag)
    if tag.metric == monitoring.MIN_LOAD and tag.place not in loads:
      relative[tag.place, ""] = value
  return relative


def vital_signs(tags) -> list[str]:
  """The tags to look at in every step, in the order of the forward pass.

  Args:
    tags: all tags, in the order in which layers recorded them.
  """
  # What enters a layer, its routers, and what leaves it.
  order = [("outer", monitoring.NOT_FINITE), ("outer", monitoring.ENTROPY),
           ("inner", monitoring.ENTROPY), ("outer", monitoring.OUTPUTS)]
  layers = {}
  for tag in tags:
    parts = Tag.of(tag)
    layers.setdefault(parts.layer, {})[parts.level, parts.metric] = tag
  return [layer[sign] for layer in layers.values() for sign in order
          if sign in layer]


def meaning(vital_sign: str) -> str:
  """What it means that a vital sign is not what it should be."""
  tag = Tag.of(vital_sign)
  return {
      monitoring.NOT_FINITE:
          f"what entered the mixture of {tag.layer}, from the layers before it",
      monitoring.ENTROPY: f"the {tag.level} router of {tag.layer}",
      monitoring.OUTPUTS: f"the experts of {tag.layer}",
  }[tag.metric]
