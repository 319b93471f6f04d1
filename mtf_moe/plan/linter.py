"""What is wrong or wasteful in a configuration, and what to write instead."""

from collections.abc import Sequence

import mesh_tensorflow as mtf

from mtf_moe import levels as levels_lib
from mtf_moe.layer_records import LayerRecord
from mtf_moe.plan.costs import Costs
from mtf_moe.plan.mixtures import LevelSizes
from mtf_moe.plan.mixtures import Mixture

# Shares and ratios from which on something is worth a word.
_MUCH_LOST = 0.1
_MUCH_EMPTY = 0.5
_MUCH_LARGER = 2.0
_MUCH_LARGER_DECODING = 4.0  # A few tokens always leave slots empty.
_MUCH_GATHERED = 2 ** 20  # Bytes.


def check(configured, records: Sequence[LayerRecord], mixtures: list[Mixture],
          costs: Costs, dimension_names: set[str]) -> list[str]:
  """Finds what a user would want to know before paying for it.

  Args:
    configured: the `ConfiguredModel`.
    records: those of its mixtures.
    mixtures: the same, by size.
    costs: of its training step.
    dimension_names: of all tensors of the model.

  Returns:
    sentences, those on the layout first, which cost most
  """
  by_scope = {record.scope: record for record in records}
  findings = []
  for record in _of_different_levels(records):
    findings += _unsplit_experts(configured, record.levels)
    findings += _different_axes(configured, record.levels)
  # Along these, rules split nothing, and nothing is gathered.
  of_size_1 = {dim.name for dim in configured.mesh_shape.dims if dim.size == 1}
  findings += rules_for_nothing(
      {dim: axis for dim, axis in configured.rules.items()
       if axis not in of_size_1}, dimension_names)
  findings += _gathered(costs, of_size_1)
  for mixture in mixtures:
    record = by_scope[mixture.layers[0]]
    for number, level in enumerate(mixture.levels):
      findings += _sizes(number, level, record)
    findings += _shares(mixture, record)
    findings += _decoding(configured, record)
  return list(dict.fromkeys(findings))


def _of_different_levels(records):
  return {tuple(level.experts.name for level in record.levels): record
          for record in records}.values()


def _axis(configured, dim_name):
  """The name of the mesh dimension that a layout rule names, or None."""
  return configured.rules.get(dim_name)


def _unsplit_experts(configured, levels):
  """Mesh dimensions along which all cores compute the same experts."""
  names = [level.experts.name for level in levels]
  # What else gives every core a part of the experts' work.
  others = ["expert_hidden", *(dim.name for dim in levels[-1].outer_dims)]
  split = {_axis(configured, name) for name in names + others}
  unsplit = [name for name in names if _axis(configured, name) is None]
  # Without a dimension of experts left, it takes a mesh of fewer dimensions.
  return [
      f"run.layout_rules splits no experts over mesh dimension {axis.name!r}: "
      f"all {axis.size} cores along it compute the same experts. "
      + (f"Add {unsplit[0]}:{axis.name}." if unsplit else
         f"Experts have the dimensions {', '.join(names)}: use a "
         "run.mesh_shape of as many.")
      for axis in configured.mesh_shape.dims
      if axis.size > 1 and axis.name not in split]


def _different_axes(configured, levels):
  """Levels whose groups and experts lie along different mesh dimensions."""
  findings = []
  for number, level in enumerate(levels):
    groups, experts = level.groups.name, level.experts.name
    groups_axis, experts_axis = (
        _axis(configured, name) for name in (groups, experts))
    if groups_axis and experts_axis and groups_axis != experts_axis:
      findings.append(
          f"run.layout_rules splits {groups} over {groups_axis!r} and "
          f"{experts} over {experts_axis!r}: to change from one to the other, "
          f"the {_ordinal(number)} level gathers its tokens on every core, "
          "where an all-to-all along one mesh dimension would do. Write "
          f"{experts}:{groups_axis}.")
  return findings


def _ordinal(number):
  ordinals = ("first", "second", "third")
  return ordinals[number] if number < 3 else f"{number + 1}th"


def rules_for_nothing(rules, dimension_names) -> list[str]:
  """What is to be said of rules for dimensions that the model does not have."""
  return [
      f"run.layout_rules has {dim}:{axis}, and the model has no dimension "
      f"{dim!r}: remove the rule, or correct the name."
      for dim, axis in rules.items() if dim not in dimension_names]


def _gathered(costs, of_size_1):
  return [
      f"{t.count} all-concats along {', '.join(t.axes)} gather "
      f"{t.bytes / 2 ** 20:,.1f} MiB on every core in a step: a dimension is "
      "split for one operation, and not, or over another mesh dimension, for "
      "the next."
      for t in costs.traffic
      if t.kind == "all-concat" and t.bytes > _MUCH_GATHERED
      and not of_size_1.issuperset(t.axes)]


def _sizes(number, sizes: LevelSizes, record):
  findings = []
  level = _ordinal(number)
  if sizes.real_factor > _MUCH_LARGER * sizes.asked_factor:
    findings.append(
        f"the experts of the {level} level have {sizes.real_factor:.3g} times "
        f"the slots of an even share, where {sizes.asked_factor:g} was asked "
        f"for: {record.parameter('min_expert_capacity', number)} = "
        f"{sizes.least_capacity} is much for groups of {sizes.group_size} "
        "tokens. Lower it, or make the groups larger.")
  tokens = sizes.groups * sizes.group_size
  if 2 * sizes.group_size <= min(sizes.asked_group_size, tokens):
    findings.append(
        f"the groups of the {level} level have {sizes.group_size} tokens, "
        f"where {record.parameter('group_size', number)} = "
        f"{sizes.asked_group_size}: every slice of "
        f"the mesh needs whole groups of the {tokens:,} tokens. Small groups "
        "drop more of them; a larger run.batch_size, or one with other "
        "divisors, makes larger groups.")
  return findings


def _shares(mixture, record):
  findings = []
  capacities = " or ".join(dict.fromkeys(
      record.parameter("capacity_factor", number)
      for number, _ in enumerate(mixture.levels)))
  if mixture.balanced.lost_tokens > _MUCH_LOST:
    findings.append(
        f"a balanced router still loses {mixture.balanced.lost_tokens:.0%} of "
        f"the tokens, which reach no expert: raise {capacities}.")
  if mixture.balanced.empty_slots > _MUCH_EMPTY:
    findings.append(
        f"a balanced router leaves {mixture.balanced.empty_slots:.0%} of the "
        "experts' slots empty, which are computed all the same: lower the "
        f"capacity factors or {record.parameter('min_expert_capacity')}.")
  return findings


def _decoding(configured, record):
  """Decoding has a batch without outer_batch, and one position at a time."""
  batch = mtf.Dimension("batch", configured.num_sequences)
  num_levels = len(record.levels)
  batch_dims, length = levels_lib.batch_and_length(
      [batch, mtf.Dimension("length", 1)], num_levels, record.mesh)
  try:
    first, *_ = levels_lib.size(
        batch_dims, length, record.hparams, False, record.mesh)
  except ValueError as error:
    return [f"decoding {batch.size} sequences at a time is refused: {error}"]
  tokens, slots = first.group_size.size, first.capacity.size
  factor = first.experts.size * slots / tokens
  asked = first.settings.capacity_factor(train=False)
  if factor <= _MUCH_LARGER_DECODING * asked:
    return []
  return [
      f"decoding {batch.size} sequences at a time makes groups of {tokens} "
      f"tokens, for which {first.experts.size} experts have {slots} slots each "
      f"({record.parameter('min_expert_capacity')}), {factor:.3g} times as "
      "many: most of what is computed is empty. Decode more at a time."]
