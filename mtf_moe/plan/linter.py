"""What is wrong or wasteful in a configuration, and what to write instead."""

import mesh_tensorflow as mtf

from mtf_moe import levels
from mtf_moe.hparams import MoeHparams
from mtf_moe.plan.costs import Costs
from mtf_moe.plan.mixtures import LevelSizes
from mtf_moe.plan.mixtures import Mixture

# Shares and ratios from which on something is worth a word.
_MUCH_LOST = 0.1
_MUCH_EMPTY = 0.5
_MUCH_LARGER = 2.0
_MUCH_LARGER_DECODING = 4.0  # A few tokens always leave slots empty.
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
  findings += rules_for_nothing(configured.rules, dimension_names)
  findings += _gathered(costs)
  for mixture in mixtures:
    findings += _sizes("first", mixture.outer, hparams)
    findings += _sizes("second", mixture.inner, hparams)
    findings += _shares(mixture)
  return findings + (_decoding(configured, hparams) if mixtures else [])


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


def rules_for_nothing(rules, dimension_names) -> list[str]:
  """What is to be said of rules for dimensions that the model does not have."""
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
        f"where MoE2D.group_size = {hparams.moe_group_size}: every slice of "
        f"the mesh needs whole groups of the {tokens:,} tokens. Small groups "
        "drop more of them; a larger run.batch_size, or one with other "
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


def _decoding(configured, hparams):
  """Decoding has a batch without outer_batch, and one position at a time."""
  mesh = levels.MeshSplit(configured.layout, configured.mesh_shape)
  batch = mtf.Dimension("batch", configured.num_sequences)
  try:
    outer, _ = levels.two_levels(
        mesh.inserted_outer_batch(), batch, mtf.Dimension("length", 1), hparams,
        False, mesh)
  except ValueError as error:
    return [f"decoding {batch.size} sequences at a time is refused: {error}"]
  tokens, slots = outer.group_size.size, outer.capacity.size
  factor = outer.experts.size * slots / tokens
  if factor <= _MUCH_LARGER_DECODING * hparams.capacity_factor(train=False):
    return []
  return [
      f"decoding {batch.size} sequences at a time makes groups of {tokens} "
      f"tokens, for which {outer.experts.size} experts have {slots} slots each "
      f"(MoE2D.min_expert_capacity), {factor:.3g} times as many: most of what "
      "is computed is empty. Decode more at a time."]
