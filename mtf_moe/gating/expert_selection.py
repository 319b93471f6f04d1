"""The router in which experts choose tokens, of mesh_tensorflow."""

import mesh_tensorflow as mtf

from mtf_moe.gating import router
from mtf_moe.gating import selection
from mtf_moe.gating import switch

_NEVER = -1e9  # The logit of padding.


@router.register("expert_selection")
class ExpertSelection(switch.SwitchFamily):
  """Each expert takes the tokens that are likeliest among those of the group.

  A weight is an expert's probability of the token, over the number of experts
  that take it. In a model that predicts the next token, experts would choose by
  tokens that are not there yet.
  """

  needs_whole_sequences = True

  def prepare_logits(self, logits, settings, train):
    return logits

  def choose(self, scores):
    s = scores.group_dim
    logits = scores.logits
    if scores.importance is not None:
      logits += (1.0 - scores.used) * _NEVER
    gates = mtf.softmax(logits, s)  # [..., s, x], of each expert's tokens.
    if scores.importance is not None:
      gates *= scores.used  # In a group of nothing but padding.
    tokens, weights = selection.top_k_tokens(
        gates, s, scores.capacity_dim)  # [..., x, c]
    taken = mtf.one_hot(tokens, s, dtype=gates.dtype)  # [..., x, c, s]
    token_dims = scores.logits.shape.dims[:-1]
    experts = mtf.maximum(
        mtf.reduce_sum(taken, output_shape=token_dims), 1.0)  # [..., s]
    is_empty = mtf.to_float(mtf.less(tokens, 0))  # [..., x, c]
    weights /= mtf.reduce_sum(taken * experts, reduced_dim=s) + is_empty
    return router.ExpertChoice(
        tokens, weights, self._balance_loss(gates, scores),
        sends_zero_weights=True)

  def _balance_loss(self, gates, scores):
    """1 where all tokens are as likely, times the share of those that count."""
    s = scores.group_dim
    mean = mtf.reduce_mean(gates, reduced_dim=scores.experts_dim)  # [..., s]
    if scores.importance is None:
      number = float(s.size)
    else:
      mean *= scores.full
      number = mtf.reduce_sum(
          mtf.to_float(scores.importance), reduced_dim=s)  # [...]
    return mtf.reduce_mean(mean * mean * number) * float(s.size)
