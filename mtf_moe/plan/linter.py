"""What is wrong or wasteful in a configuration, and what to write instead."""

import math

from mtf_moe import levels
from mtf_moe.hparams import MoeHparams
from mtf_moe.plan.costs import Costs
from mtf_moe.plan.mixtures import LevelSizes
from mtf_moe.plan.mixtures import Mixture

# Shares and ratios from which on something is worth a word.
_MUCH_LOST = 0.1
_MUCH_EMPTY = 0.5
_MUCH_LARGER = 2.0
_MUCH_GATHERED = 2 ** 20  # Bytes.


def check(configured, mixtures: list[Mixture], costs: Costs,
          hparams: MoeHparams, dimension_names: set[str]) -> list[str]:
  """Finds what a user would want to know before paying for it.

  Args:
    configured: the `ConfiguredModel`.
    mixtures: those of its model.
    costs: of its training step.
    hparams: of the mixtures.
    dimension_names: of all tensors of the model.

  Returns:
    sentences, those on the layout first, which cost most
  """
  findings = []
  if mixtures:
    findings += _unsplit_experts(configured)
    findings += _different_axes(configured)
  findings += _rules_for_nothing(configured.rules, dimension_names)
  findings += _gathered(costs)
  for mixture in mixtures:
    findings += _sizes("first", mixture.outer, hparams)
    findings += _sizes("second", mixture.inner, hparams)
    findings += _shares(mixture)
  return findings + _decoding(configured)


def _axis(configured, dim_name):
  """The name of the mesh dimension that a layout rule names, or None."""
  return configured.rules.get(dim_name)


def _unsplit_experts(configured):
  """Mesh dimensions along which all cores compute the same experts."""
  split = {_axis(configured, name) for name in ("expert_x", "expert_y")}
  unsplit = [name for name in ("expert_y", "expert_x")
             if _axis(configured, name) is None]
  # Without a dimension of experts left, it takes a mesh of two dimensions.
  return [
      f"run.layout_rules splits no experts over mesh dimension {axis.name!r}: "
      f"all {axis.size} cores along it compute the same experts. "
      + (f"Add {unsplit[-1]}:{axis.name}." if unsplit else
         "Experts have two dimensions, expert_x and expert_y: use a "
         "run.mesh_shape of two.")
      for axis in configured.mesh_shape.dims
      if axis.size > 1 and axis.name not in split]


def _different_axes(configured):
  """Levels whose groups and experts lie along different mesh dimensions."""
  pairs = (("batch", "expert_x", "first"),
           (levels.OUTER_BATCH, "expert_y", "second"))
  found = [(*pair, _axis(configured, pair[0]), _axis(configured, pair[1]))
           for pair in pairs]
  return [
      f"run.layout_rules splits {groups} over {groups_axis!r} and {experts} "
      f"over {experts_axis!r}: to change from one to the other, the {level} "
      "level gathers its tokens on every core, where an all-to-all along one "
      f"mesh dimension would do. Write {experts}:{groups_axis}."
      for groups, experts, level, groups_axis, experts_axis in found
      if groups_axis and experts_axis and groups_axis != experts_axis]


def _rules_for_nothing(rules, dimension_names):
  return [
      f"run.layout_rules has {dim}:{axis}, and the model has no dimension "
      f"{dim!r}: remove the rule, or correct the name."
      for dim, axis in rules.items() if dim not in dimension_names]


def _gathered(costs):
  return [
      f"{t.count} all-concats along {', '.join(t.axes)} gather "
      f"{t.bytes / 2 ** 20:,.1f} MiB on every core in a step: a dimension is "
      "split for one operation, and not, or over another mesh dimension, for "
      "the next."
      for t in costs.traffic
      if t.kind == "all-concat" and t.bytes > _MUCH_GATHERED]


def _sizes(level, sizes: LevelSizes, hparams):
  findings = []
  if sizes.real_factor > _MUCH_LARGER * sizes.asked_factor:
    findings.append(
        f"the experts of the {level} level have {sizes.real_factor:.3g} times "
        f"the slots of an even share, where {sizes.asked_factor:g} was asked "
        f"for: MoE2D.min_expert_capacity = {hparams.moe_min_expert_capacity} "
        f"is much for groups of {sizes.group_size} tokens. Lower it, or make "
        "the groups larger.")
  tokens = sizes.groups * sizes.group_size
  if 2 * sizes.group_size <= min(hparams.moe_group_size, tokens):
    findings.append(
        f"the groups of the {level} level have {sizes.group_size} tokens, "
        f"where MoE2D.group_size allows {hparams.moe_group_size}: every slice "
        f"of the mesh needs whole groups of the {tokens:,} tokens. Small "
        "groups drop more of them; a larger run.batch_size, or one with other "
        "divisors, makes larger groups.")
  return findings


def _shares(mixture):
  findings = []
  if mixture.balanced.lost_tokens > _MUCH_LOST:
    findings.append(
        f"a balanced router still loses {mixture.balanced.lost_tokens:.0%} of "
        "the tokens, which reach no expert: raise MoE2D.capacity_factor_train "
        "or MoE2D.capacity_factor_second_level.")
  if mixture.balanced.empty_slots > _MUCH_EMPTY:
    findings.append(
        f"a balanced router leaves {mixture.balanced.empty_slots:.0%} of the "
        "experts' slots empty, which are computed all the same: lower the "
        "capacity factors or MoE2D.min_expert_capacity.")
  return findings


def _decoding(configured):
  """Decoding has a batch without outer_batch."""
  batch = math.prod(dim.size for dim in configured.batch_dims)
  axis = _axis(configured, "batch")
  ways = 1 if axis is None else configured.mesh_shape.get_dim_by_name(axis).size
  if batch % ways == 0:
    return []
  return [f"decoding {batch} sequences at a time cannot be split over the "
          f"{ways} cores along {axis!r}: to decode, give run.batch_size a "
          f"multiple of {ways}."]
