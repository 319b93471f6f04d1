"""All mutants, and the rules that they break.

The rules are those that numerical equality with mesh_tensorflow's layer hangs
on.
"""

from tests.mutations import choosing
from tests.mutations import moving
from tests.mutations import seams

RULES = {
    1: "float32 gating", 2: "ties, gradient", 3: "first choices",
    4: "second mask", 5: "normalization", 6: "balancing loss",
    7: "second-place loss", 8: "microbatches", 9: "policies", 10: "positions",
    11: "dropping", 12: "dispatch and combine", 13: "casts of the loss",
    14: "slot importance", 15: "capacities", 16: "contiguous groups",
    17: "whole groups a slice"}

MUTANTS: dict[str, seams.Mutant] = {**choosing.MUTANTS, **moving.MUTANTS}
