"""The figures of a plan, as tables."""

from mtf_moe.report import parts


def tables(plan: dict) -> str:
  """What the plan of a run says.

  Args:
    plan: what `python -m mtf_moe.plan --json` prints.

  Returns:
    HTML
  """
  warnings = "".join(parts.paragraph(text, "warning")
                     for text in plan["findings"])
  return (_costs(plan) + parts.table(
      _mixtures(plan["mixtures"]),
      ["mixtures", "level", "groups", "tokens in one", "experts", "slots each",
       "capacity factor", "in effect"])
          + _balanced(plan["mixtures"]) + warnings)


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
  return (f"{count / 2 ** 20:,.1f} MiB" if count >= 2 ** 20 else
          f"{count / 2 ** 10:,.1f} KiB")


def _mixtures(mixtures):
  rows = []
  for mixture in mixtures:
    for level in ("outer", "inner"):
      sizes = mixture[level]
      rows.append([
          _names(mixture), level, f"{sizes['groups']:,}",
          f"{sizes['group_size']:,}", f"{sizes['experts']:,}",
          f"{sizes['capacity']:,}", f"{sizes['asked_factor']:g}",
          f"{sizes['experts'] * sizes['capacity'] / sizes['group_size']:.3g}"])
  return rows


def _names(mixture):
  first, *others = mixture["layers"]
  return f"{first} and {len(others)} more" if others else first


def _balanced(mixtures):
  return "".join(parts.paragraph(
      f"With perfectly balanced routers in {_names(m)}, "
      f"{m['balanced']['lost_tokens']:.1%} of the tokens would reach no "
      "expert, a token "
      f"{m['balanced']['experts_per_token']:.2f} on average, and "
      f"{m['balanced']['empty_slots']:.1%} of the experts' slots would stay "
      "empty.")
                 for m in mixtures)
