"""What a plan says: as tables to read, and as JSON."""

import dataclasses
import itertools

from mtf_moe import tags
from mtf_moe.plan import compiled as compiled_lib
from mtf_moe.plan import costs as costs_lib
from mtf_moe.plan import mixtures as mixtures_lib
from mtf_moe.plan import tables


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is known of a configuration before it runs.

  Attributes:
    mesh_shape: as gin has it, such as "outer:4,batch:4".
    layout_rules: likewise.
    costs: the `Costs` of a training step.
    mixtures: the `Mixture`s of the model.
    findings: what the linter says, a list of sentences, and the compiler.
    compiled: what the compiler says, where it was asked.
  """

  mesh_shape: str
  layout_rules: str
  costs: costs_lib.Costs
  mixtures: list[mixtures_lib.Mixture]
  findings: list[str]
  compiled: compiled_lib.Compiled | compiled_lib.Refused | None = None

  def with_compiled(
      self, compiled: compiled_lib.Compiled | compiled_lib.Refused) -> "Plan":
    """The plan, and what the compiler says."""
    return dataclasses.replace(
        self, findings=self.findings + compiled.findings(), compiled=compiled)

  @property
  def active_parameters(self) -> float:
    """Those that a token meets on average, if routing is balanced."""
    costs = self.costs
    experts = sum(
        len(m.layers) * m.num_experts for m in self.mixtures)
    met = sum(len(m.layers) * m.balanced.experts_per_token
              for m in self.mixtures)
    dense = costs.total_parameters - costs.expert_parameters
    return dense + (costs.expert_parameters * met / experts if experts else 0)

  def as_json(self) -> dict:
    """Nested dicts and lists of numbers and strings; sizes are in bytes."""
    return {
        **dataclasses.asdict(self),
        "total_parameters": self.costs.total_parameters,
        "active_parameters": self.active_parameters,
        "flops_per_token": self.costs.flops_per_token,
        "flops_per_core": self.costs.flops_per_core}

  def text(self) -> str:
    """For a terminal."""
    parts = [
        f"mesh {self.mesh_shape}: {self.costs.cores} cores\n"
        f"layout {self.layout_rules}",
        tables.table(self._step_rows()),
        tables.table(self._memory_rows(), ["on one core", "MiB"]),
        tables.table(self._traffic_rows(), [
            "in a training step, between cores", "along", "times",
            "MiB a core"]),
        tables.table(self._parameter_rows(), ["parameters of", "million"])]
    parts += [_mixture_text(m) for m in self.mixtures]
    if self.compiled:
      parts.append(self.compiled.text())
    if self.findings:
      parts.append("\n".join(f"warning: {f}" for f in self.findings))
    return "\n\n".join(parts)

  def _step_rows(self):
    costs = self.costs
    return [
        ["parameters", f"{costs.total_parameters / 1e6:,.1f} million"],
        ["of which a token meets", f"{self.active_parameters / 1e6:,.1f} "
         "million, on average, if balanced"],
        ["tokens in a step", f"{costs.tokens:,}, in {costs.microbatches} "
         + ("microbatches" if costs.microbatches > 1 else "piece")],
        ["products, training", f"{costs.flops_per_token / 1e9:,.3f} GFLOP a "
         "token"],
        ["", f"{costs.flops_per_core / 1e12:,.3f} TFLOP a core and step"]]

  def _memory_rows(self):
    costs = self.costs
    return [["variables", tables.mib(costs.variable_bytes)],
            ["slots of the optimizer", tables.mib(costs.slot_bytes)],
            ["activations at their peak, estimated",
             tables.mib(costs.activation_bytes)]]

  def _traffic_rows(self):
    return [[t.kind, ", ".join(t.axes), t.count, tables.mib(t.bytes)]
            for t in self.costs.traffic] or [["nothing", "", "", ""]]

  def _parameter_rows(self):
    """Neighbours with as many parameters, such as equal layers, in one row."""
    return [
        [names[0] if len(names) == 1 else
         f"each of {names[0]} to {names[-1]}", f"{count / 1e6:,.3f}"]
        for count, names in (
            (count, [name for name, _ in items]) for count, items in
            itertools.groupby(
                self.costs.parameters.items(), key=lambda item: item[1]))]


def _choices_lost(mixture):
  """A line on what is lost of tokens that may still reach an expert."""
  balanced = mixture.balanced
  by_level = [
      f"{share:.1%} at {tags.title_of(level.name)}" for level, share in zip(
          mixture.levels, balanced.first_choices_lost) if share is not None]
  if not by_level:
    return []
  return [
      f"{balanced.fewer_experts:.1%} of tokens reach fewer experts than they "
      f"choose; of first choices, {', '.join(by_level)} find no slot"]


def _mixture_text(mixture):
  rows = [
      [s.name, s.router, s.groups, s.group_size_text, s.experts, s.capacity,
       f"{s.asked_factor:g}", f"{s.real_factor:.3g}"] for s in mixture.levels]
  first, *others = mixture.layers
  balanced = mixture.balanced
  return "\n".join([
      f"mixture in {first}" + (
          f" and {len(others)} more layers" if others else ""),
      tables.table(rows, [
          "level", "router", "groups", "tokens in one", "experts",
          "slots each", "factor asked for", "in effect"]),
      f"if balanced: a token reaches {balanced.experts_per_token:.2f} experts "
      f"on average, {balanced.lost_tokens:.1%} of them reach none; "
      f"{balanced.empty_slots:.1%} of experts' slots stay empty",
      *_choices_lost(mixture),
      "(tried out on tokens that like all experts equally, each for itself: "
      "where a router has favourites, or neighbours are alike, more is lost)",
      f"experts compute {mixture.slots_per_token:.3g} slots for each token in "
      f"training, and {mixture.slots_per_token_in_use:.3g} in scoring, "
      "decoding and export (dropless_inference)"])
