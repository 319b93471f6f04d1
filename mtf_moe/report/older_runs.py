"""What the mixtures of a run are taken to be that has not kept it.

Runs of earlier releases had one kind of mixture, MoE2D.
"""

from collections.abc import Sequence

from mtf_moe.report import runs
from mtf_moe.run import layer_facts
from mtf_moe.run.layer_facts import LayerFacts
from mtf_moe.run.layer_facts import LevelFacts
from mtf_moe.run.layer_facts import Parameter

# Where the number of experts of each level is.
_EXPERTS = {"MoE1D": ("num_experts",), "MoE2D": ("expert_x", "expert_y")}
_KINDS = (*_EXPERTS, "MoE")


def assumed(run: runs.Run, scope: str, levels: Sequence[str]) -> LayerFacts:
  """A mixture, from its scope and the configuration.

  Args:
    run: the `Run`.
    scope: that of the layer, which ends in the name of its class.
    levels: the names of its levels.

  Returns:
    `LayerFacts`
  """
  kind = scope.rpartition("/")[2]
  if kind not in _KINDS:
    kind = "MoE2D"
  experts = _EXPERTS.get(kind, ())
  if len(experts) != len(levels):
    experts = (None,) * len(levels)

  def parameters(in_gin):
    return {name: Parameter(f"{kind}.{one}", run.parameter(f"{kind}.{one}"))
            for name, one in in_gin.items()}

  def level(number):
    return LevelFacts(
        levels[number],
        parameters({
            **dict(zip(layer_facts.OF_LEVELS, layer_facts.OF_LEVELS)),
            "capacity_factor": ("capacity_factor_second_level" if number else
                                "capacity_factor_train")}),
        experts=experts[number] and _number(
            run.parameter(f"{kind}.{experts[number]}")))

  return LayerFacts(
      scope, kind, tuple(map(level, range(len(levels)))),
      parameters(dict(zip(layer_facts.OF_LAYERS, layer_facts.OF_LAYERS))))


def _number(text):
  return int(text) if text and text.isdecimal() and int(text) else None
