"""A Switch router whose experts keep the likeliest tokens, not the first ones.
"""

import mesh_tensorflow as mtf

from mtf_moe.gating import losses
from mtf_moe.gating import router
from mtf_moe.gating import selection
from mtf_moe.gating import switch


@router.register("switch_max")
class SwitchMax(switch.SwitchFamily):
  """A token that finds its expert full is one that another wants more."""

  def choose(self, scores):
    x, gates = scores.experts_dim, scores.gates
    gate, expert = switch.choice(scores)  # [..., s]
    mask = mtf.one_hot(expert, x, dtype=gates.dtype)  # [..., s, x]
    if scores.importance is not None:
      mask, gate, gates = mask * scores.used, gate * scores.used, (
          gates * scores.used)
    tokens, weights = selection.top_k_tokens(
        mask * gate, scores.group_dim, scores.capacity_dim)  # [..., x, c]
    return router.ExpertChoice(
        tokens, weights,
        losses.balance_loss(
            mask, gates, scores.group_dim, x, scores.counted(scores.used)),
        wanted=mtf.reduce_sum(mask, reduced_dim=scores.group_dim))
