"""No token left behind: who finds an expert full goes on to the next."""

import mesh_tensorflow as mtf

from mtf_moe import operations
from mtf_moe.gating import losses
from mtf_moe.gating import router
from mtf_moe.gating import selection
from mtf_moe.gating import switch


@router.register("ntlb")
class NoTokenLeftBehind(switch.SwitchFamily):
  """Of a token's k likeliest experts, the first that has room takes it.

  In rounds: all tokens try their first expert, those without a slot their
  second one, and so on. The weight is the gate as it is.
  """

  tries_again = True

  def prepare_inputs(self, inputs, settings, train):
    if settings.switch_policy(train) == "input_dropout":
      return inputs
    return super().prepare_inputs(inputs, settings, train)

  def choose(self, scores):
    x, s, k = scores.experts_dim, scores.group_dim, scores.settings.ntlb_top_k
    selection.check_number("ntlb_top_k", k, x)
    rounds = mtf.Dimension("k", k)
    # k times [..., s]
    gates, experts = (
        mtf.unstack(values, rounds)
        for values in operations.top_k(scores.gates, x, rounds))
    masks = [mtf.one_hot(expert, x) * scores.used
             for expert in experts]  # k times [..., s, x]

    wanted, left, taken = [], scores.used, 0.0  # [..., s], [..., x]
    for mask in masks:
      wanted.append(left)
      tries = mask * left  # [..., s, x]
      place = mtf.cumsum(tries, s, exclusive=True) + taken
      fits = tries * mtf.to_float(mtf.less(place, scores.capacity_dim.size))
      taken += mtf.reduce_sum(fits, reduced_dim=s)
      left -= mtf.reduce_sum(fits, reduced_dim=x)
    return router.TokenChoice(
        experts, gates, wanted, self._balance_loss(masks, scores))

  def _balance_loss(self, masks, scores):
    """That of all rounds, on average.

    Where every expert is tried by every token, that has no gradient: then it
    is that of the first round.
    """
    x = scores.experts_dim
    if len(masks) == x.size:
      masks = masks[:1]
    gates = scores.gates
    if scores.importance is not None:
      gates *= scores.used
    return mtf.add_n([
        losses.balance_loss(
            mask, gates, scores.group_dim, x, scores.counted(scores.used))
        for mask in masks]) * (1.0 / len(masks))
