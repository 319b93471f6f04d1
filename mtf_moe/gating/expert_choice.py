"""Expert choice: each expert takes the tokens that want it most.

After Zhou et al. 2022, https://arxiv.org/abs/2202.09368, section 3.2.
"""

import mesh_tensorflow as mtf

from mtf_moe.gating import router
from mtf_moe.gating import selection


@router.register("expert_choice")
class ExpertChoice(router.Router):
  """The weight is the token's gate for the expert, as it is.

  All slots are used, so that experts are balanced without a loss; a token is
  taken by none to all of them. The capacity factor is how many experts a token
  has on average (the paper's c, 2 there). In a model that predicts the next
  token, experts would choose by tokens that are not there yet.
  """

  balanced_by = None
  needs_whole_sequences = True

  def choose(self, scores):
    gates = scores.gates  # [..., s, x]
    if scores.importance is not None:
      gates *= scores.used  # Padding is taken last, by a weight of 0.
    tokens, weights = selection.top_k_tokens(
        gates, scores.group_dim, scores.capacity_dim)  # [..., x, c]
    return router.ExpertChoice(
        tokens, weights, mtf.zeros(gates.mesh, mtf.Shape([])))
