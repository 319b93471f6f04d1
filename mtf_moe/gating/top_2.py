"""The top-2 router: each token may use its two likeliest experts.

After Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, with the capacity
and the second-choice policies of Lepikhin et al. 2020,
https://arxiv.org/abs/2006.16668.
"""

import mesh_tensorflow as mtf

from mtf_moe.gating import losses
from mtf_moe.gating import router
from mtf_moe.gating import second_policy
from mtf_moe.gating import selection


@router.register("top_2")
class Top2(router.Router):
  """A token that counts in full has two choices, others their second one."""

  def choose(self, scores):
    x, gates = scores.experts_dim, scores.gates  # [..., s, x]
    gate_1, expert_1 = selection.likeliest(gates, x)  # [..., s]
    mask_1 = mtf.one_hot(expert_1, x, dtype=gates.dtype)  # [..., s, x]
    first_gates = gates
    if scores.importance is not None:
      # A token that the level above sent here as a second choice has no first
      # choice of its own: its likeliest expert is still there to be its second.
      mask_1, gate_1, first_gates = (
          mask_1 * scores.full, gate_1 * scores.full, gates * scores.full)
    gates_left = gates * (1.0 - mask_1)  # [..., s, x]
    gate_2, expert_2 = selection.likeliest(gates_left, x)

    balance_loss = losses.balance_loss(
        mask_1, first_gates, scores.group_dim, x, scores.counted(scores.full))
    if scores.settings.use_second_place_loss:
      mask_2 = mtf.one_hot(expert_2, x, dtype=gates.dtype) * scores.used
      balance_loss += 0.5 * losses.balance_loss(
          mask_2, losses.without_first_choice(gates_left, x),
          scores.group_dim, x, scores.counted(scores.used))

    total = gate_1 + gate_2 + losses.EPSILON
    gate_1, gate_2 = gate_1 / total, gate_2 / total
    wanted_2 = second_policy.used(gate_2, scores.settings, scores.train)
    return router.TokenChoice(
        [expert_1, expert_2], [gate_1, gate_2], [scores.full, wanted_2],
        balance_loss)

  def importance_below(self, settings, num_choices):
    """By the weight, as mesh_tensorflow has it, if nothing else is asked for.
    """
    if settings.importance_below == "weight":
      return None
    return super().importance_below(settings, num_choices)
