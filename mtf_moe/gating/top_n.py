"""The top-n router: each token may use its n likeliest experts."""

import mesh_tensorflow as mtf

from mtf_moe.gating import losses
from mtf_moe.gating import router
from mtf_moe.gating import second_policy
from mtf_moe.gating import selection


@router.register("top_n")
class TopN(router.Router):
  """Weights are gates that are normalized over the n choices.

  All tokens that are no padding have n choices, at a second level those, too,
  that the first sent there as a later choice. The policy of second choices
  holds for all but the first.
  """

  def choose(self, scores):
    x, settings = scores.experts_dim, scores.settings
    n = settings.top_n_num_experts_per_token
    selection.check_number("top_n_num_experts_per_token", n, x)
    left = scores.gates  # [..., s, x], the gates of what is not chosen yet.
    rounds = []
    for _ in range(n):
      gate, expert = selection.likeliest(left, x)  # [..., s]
      mask = mtf.one_hot(expert, x, dtype=gate.dtype)  # [..., s, x]
      if scores.importance is not None:
        mask, gate = mask * scores.used, gate * scores.used
      left *= 1.0 - mask
      rounds.append((expert, gate, mask, left))
    experts, gates, masks, lefts = map(list, zip(*rounds))
    if n > 1:
      total = mtf.add_n(gates) + losses.EPSILON
      gates = [gate / total for gate in gates]

    first_gates = scores.gates
    if scores.importance is not None:
      first_gates *= scores.full
    balance_loss = losses.balance_loss(
        masks[0], first_gates, scores.group_dim, x,
        scores.counted(scores.used))
    if settings.use_second_place_loss and n > 1:
      balance_loss += 0.5 * losses.balance_loss(
          masks[1], losses.without_first_choice(lefts[0], x),
          scores.group_dim, x, scores.counted(scores.used))
    wanted = [scores.used] + [
        second_policy.used(gate, settings, scores.train) for gate in gates[1:]]
    return router.TokenChoice(experts, gates, wanted, balance_loss)
