"""What was recorded of the mixtures, read by tag: no TensorFlow here.

Tags are those of `mtf_moe.tags`. Others, which layers of one's own may have
recorded, are left alone.
"""

from collections.abc import Iterable, Mapping

from mtf_moe import tags as tags_lib
from mtf_moe.tags import Tag


def busiest(records: Mapping[str, float]) -> tuple[float, str] | None:
  """The worst balance.

  Args:
    records: values by tag.

  Returns:
    how many tokens the busiest expert of any level has, relative to an even
    share, and its layer and level; None where nothing was recorded.
  """
  loads = [(records[name], tag.place)
           for name, tag in tags_lib.parse(records).items()
           if tag.metric == tags_lib.MAX_LOAD]
  return max(loads, default=None)


def relative_loads(records: Mapping[str, float]) -> dict[Tag, float]:
  """What share of an even one each expert has.

  Args:
    records: values by tag.

  Returns:
    a dict from the tag of an expert's load. Where single experts are not
    recorded, there is that of the least loaded one of a level.
  """
  tags = tags_lib.parse(records)
  loads = {}
  for name, tag in tags.items():
    if tags_lib.expert_of(tag.metric) is not None:
      loads.setdefault((tag.scope, tag.level), {})[tag] = records[name]
  relative = {tag: share * len(shares) for shares in loads.values()
              for tag, share in shares.items()}
  for name, tag in tags.items():
    if tag.metric == tags_lib.MIN_LOAD and (tag.scope, tag.level) not in loads:
      relative[tag] = records[name]
  return relative


def vital_signs(tags: Iterable[str]) -> list[str]:
  """The tags to look at in every step, in the order of the forward pass.

  Args:
    tags: all tags, in the order in which layers recorded them.
  """
  layers = {}
  for name, tag in tags_lib.parse(tags).items():
    place = _in_forward_pass(tag)
    if place is not None:
      layers.setdefault(tag.scope, {})[place] = name
  return [signs[place] for signs in layers.values() for place in sorted(signs)]


def _in_forward_pass(tag):
  """Where in a layer it is: what enters it, its routers, what leaves it."""
  if tag.level == tags_lib.LAYER:
    return {tags_lib.NOT_FINITE: (0, 0),
            tags_lib.OUTPUTS: (2, 0)}.get(tag.metric)
  if tag.metric == tags_lib.ENTROPY:
    return 1, tags_lib.number_of(tag.level)
  return None


def meaning(vital_sign: str) -> str:
  """What it means that a vital sign is not what it should be."""
  tag, = tags_lib.parse([vital_sign]).values()
  return {
      tags_lib.NOT_FINITE:
          f"what entered the mixture of {tag.layer}, from the layers before it",
      tags_lib.ENTROPY: f"the {tag.level} router of {tag.layer}",
      tags_lib.OUTPUTS: f"the experts of {tag.layer}",
  }[tag.metric]
