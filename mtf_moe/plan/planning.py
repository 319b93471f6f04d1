"""Makes plans: of the configuration, and of other layouts of it."""

from collections.abc import Iterator

import mesh_tensorflow as mtf
import tqdm

from mtf_moe import layer_records
from mtf_moe import levels
from mtf_moe.plan import costs
from mtf_moe.plan import linter
from mtf_moe.plan import mixtures
from mtf_moe.plan import report
from mtf_moe.plan import step
from mtf_moe.run.configured_model import ConfiguredModel

# On the meshes that are suggested.
CANONICAL_LAYOUT = levels.canonical_layout(2, ["outer", "batch"])


def make(configured: ConfiguredModel, strict: bool = False) -> report.Plan:
  """Counts and checks what is configured.

  Args:
    configured: the `ConfiguredModel`.
    strict: whether a layout rule for a dimension that the model does not have
      is a mistake. Layouts that serve several models have some.

  Returns:
    a `report.Plan`

  Raises:
    ValueError: if a layer refuses its parameters or the mesh, or for the sake
      of `strict`.
  """
  lowered = step.lower(configured)
  names = {name for op in lowered.graph.operations for t in op.outputs
           for name in t.shape.dimension_names}
  if strict and (wrong := linter.rules_for_nothing(configured.rules, names)):
    raise ValueError(wrong[0])
  records = layer_records.of(lowered.graph)
  counted, found = costs.count(lowered), mixtures.find(records)
  return report.Plan(
      mesh_shape=",".join(
          f"{dim.name}:{dim.size}" for dim in configured.mesh_shape.dims),
      layout_rules=",".join(
          f"{dim}:{axis}" for dim, axis in configured.rules.items()),
      costs=counted, mixtures=found,
      findings=linter.check(configured, records, found, counted, names))


def alternatives(cores: int) -> Iterator[str]:
  """Meshes of two dimensions, for the canonical layout.

  Args:
    cores: how many there are.

  Returns:
    an iterator of mesh shapes
  """
  for outer in range(1, cores + 1):
    if cores % outer == 0:
      yield f"outer:{outer},batch:{cores // outer}"


def suggest(cores: int) -> list[report.Plan]:
  """Plans of the configured model on all meshes of so many cores that fit it.

  Args:
    cores: how many there are.

  Returns:
    plans, the ones that exchange least first, and of those the ones that need
    least memory

  Raises:
    ValueError: if none fits.
  """
  plans, refused = [], []
  for mesh_shape in tqdm.tqdm(
      list(alternatives(cores)), desc="meshes", leave=False):
    outer = mtf.convert_to_shape(mesh_shape).get_dim_by_name("outer").size
    try:
      plans.append(make(ConfiguredModel.from_gin(
          mesh_shape, CANONICAL_LAYOUT, outer_batch_size=outer)))
    except ValueError as error:
      refused.append(f"{mesh_shape}: {error}")
  if not plans:
    raise ValueError(
        f"no mesh of {cores} cores fits the configuration:\n"
        + "\n".join(refused))
  return sorted(plans, key=lambda plan: (
      plan.costs.sent_bytes, plan.costs.memory_bytes))
