"""What a training step costs, counted on the lowered step."""

import collections
import dataclasses
import re

from mtf_moe import layer_records
from mtf_moe.plan import activations
from mtf_moe.plan import step as step_lib

# "decoder/block_003/layer_001/MoE2D/..." is part of "decoder/block_003".
_LAYER = re.compile(r"(.*?block_\d+)/")


@dataclasses.dataclass(frozen=True)
class Traffic:
  """All collectives of a kind along the same mesh dimensions, in one step.

  Attributes:
    kind: "all-to-all", "all-reduce" or "all-concat".
    axes: the names of the mesh dimensions.
    count: how many operations.
    bytes: on one core, of all inputs (of an all-concat, its result).
  """

  kind: str
  axes: tuple[str, ...]
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Costs:
  """What a training step costs.

  Attributes:
    cores: how many there are.
    tokens: in a step, of the longest feature.
    microbatches: into how many parts a step is cut.
    parameters: of the model, by layer; what is in none has a name of its own.
    expert_parameters: how many of them are experts'.
    flops: floating-point operations of products in a step, on all cores, two
      for a multiplication and an addition.
    variable_bytes: of the model's variables, on one core.
    slot_bytes: of the optimizer's, on one core.
    activation_bytes: an estimate of the most that is held at one time on one
      core beside them, see `activations`.
    traffic: what cores exchange.
  """

  cores: int
  tokens: int
  microbatches: int
  parameters: dict[str, int]
  expert_parameters: int
  flops: int
  variable_bytes: int
  slot_bytes: int
  activation_bytes: int
  traffic: list[Traffic]

  @property
  def total_parameters(self) -> int:
    return sum(self.parameters.values())

  @property
  def memory_bytes(self) -> int:
    """On one core: variables, slots and the estimated peak of activations."""
    return self.variable_bytes + self.slot_bytes + self.activation_bytes

  @property
  def sent_bytes(self) -> int:
    """What one core sends in a step: an all-reduce sends about all twice."""
    return sum(t.bytes * (2 if t.kind == "all-reduce" else 1)
               for t in self.traffic)

  @property
  def flops_per_token(self) -> float:
    return self.flops / self.tokens

  @property
  def flops_per_core(self) -> float:
    return self.flops / self.cores


def count(step: step_lib.LoweredStep) -> Costs:
  """Counts a lowered step.

  Args:
    step: a `LoweredStep`.

  Returns:
    the `Costs` of a whole training step, all microbatches
  """
  configured, impl = step.configured, step.mesh_impl
  repeats = {step_lib.MODEL: configured.num_microbatches,
             step_lib.OPTIMIZER: 1}
  products = sum(
      repeats[part] * value for part, counters in step.counters.items()
      for name, value in counters if name == "einsum")
  parameters = collections.Counter()
  for variable in step.model_variables:
    parameters[_layer(variable.name)] += variable.shape.size
  return Costs(
      cores=configured.mesh_shape.size,
      tokens=configured.num_sequences * max(configured.lengths.values()),
      microbatches=configured.num_microbatches,
      parameters=dict(parameters),
      expert_parameters=sum(v.shape.size for v in _of_experts(step)),
      flops=2 * products,
      variable_bytes=_bytes_on_a_core(step.model_variables, impl),
      slot_bytes=_bytes_on_a_core(step.slot_variables, impl),
      activation_bytes=activations.peak(step),
      traffic=_traffic(impl.collectives, repeats))


def _of_experts(step):
  """The variables of which every expert has a part of its own."""
  mixtures = {
      f"{record.scope}/": {dim.name for dim in record.levels[-1].expert_dims}
      for record in layer_records.of(step.graph)}
  return [variable for variable in step.model_variables
          if any(variable.name.startswith(scope)
                 and experts <= set(variable.shape.dimension_names)
                 for scope, experts in mixtures.items())]


def _layer(name):
  found = _LAYER.match(name)
  return found[1] if found else name


def _bytes_on_a_core(variables, impl):
  return sum(impl.slice_size(v.shape) * v.slice_dtype.size for v in variables)


def _traffic(collectives, repeats):
  counts, sizes = collections.Counter(), collections.Counter()
  for one in collectives:
    key = one.kind, one.axes
    counts[key] += repeats[one.mark]
    sizes[key] += repeats[one.mark] * one.bytes
  return [Traffic(*key, counts[key], sizes[key]) for key in sorted(counts)]
