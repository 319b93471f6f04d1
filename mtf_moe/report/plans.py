"""The figures of a plan, as tables."""

from mtf_moe import tags
from mtf_moe.report import parts


def tables(plan: dict) -> str:
  """What the plan of a run says.

  Args:
    plan: what `python -m mtf_moe.plan --json` prints.

  Returns:
    HTML
  """
  warnings = "".join(parts.paragraph(f"Warning: {text}", "warning")
                     for text in plan["findings"])
  return (_costs(plan) + "".join(map(_mixture, plan["mixtures"])) + warnings)


def _costs(plan):
  costs = plan["costs"]
  rows = [
      ["mesh", f"{plan['mesh_shape']}: {costs['cores']} cores"],
      ["parameters", f"{plan['total_parameters'] / 1e6:,.1f} million, of which "
       f"a token meets {plan['active_parameters'] / 1e6:,.1f} million"],
      ["tokens in a step", f"{costs['tokens']:,}"],
      ["products in training",
       f"{plan['flops_per_token'] / 1e9:,.3f} GFLOP a token"],
      ["memory of a core", ", ".join(
          f"{what} {_size(costs[key])}" for what, key in (
              ("variables", "variable_bytes"), ("optimizer", "slot_bytes"),
              ("activations at their peak, estimated", "activation_bytes")))]]
  rows += [
      [f"{traffic['kind']} along {', '.join(traffic['axes'])}",
       f"{traffic['count']} in a step, {_size(traffic['bytes'])} a core"]
      for traffic in costs["traffic"]]
  return parts.table(rows)


def _size(count):
  if count < 2 ** 10:
    return f"{count} bytes"
  if count < 2 ** 20:
    return f"{count / 2 ** 10:,.1f} KiB"
  return f"{count / 2 ** 20:,.1f} MiB"


def _mixture(mixture):
  """The sizes of all levels beside each other, and what balance would do."""
  first, *others = mixture["layers"]
  name = f"{first} and {len(others)} more" if others else first
  levels = mixture["levels"]
  rows = [[title, *(f"{level[key]:,}" for level in levels)] for title, key in (
      ("groups", "groups"), ("tokens in one", "group_size"),
      ("experts", "experts"), ("slots of each", "capacity"))]
  rows += [
      ["capacity factor", *(f"{level['asked_factor']:g}" for level in levels)],
      ["in effect", *(f"{_real_factor(level):.3g}" for level in levels)]]
  balanced = mixture["balanced"]
  # Plans of earlier releases have no such shares.
  fewer = balanced.get("fewer_experts")
  lost = balanced.get("first_choices_lost") or []
  if any(share is not None for share in lost):
    rows.append(["first choices without a slot, if balanced", *(
        "" if share is None else f"{share:.1%}" for share in lost)])
  return (
      parts.paragraph(f"Mixture in `{name}`:")
      + parts.table(rows, ["", *(tags.title_of(level["name"])
                                 for level in levels)])
      + parts.paragraph(
          f"If its routers were balanced, {balanced['lost_tokens']:.1%} of the "
          "tokens would reach no expert, "
          f"{'' if fewer is None else f'{fewer:.1%} fewer than they choose, '}"
          "a token "
          f"{balanced['experts_per_token']:.2f} on average, and "
          f"{balanced['empty_slots']:.1%} of the experts' slots would stay "
          "empty."))


def _real_factor(level):
  """After rounding, as in the plan."""
  return level["experts"] * level["capacity"] / level["group_size"]
