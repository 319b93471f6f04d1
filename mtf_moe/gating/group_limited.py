"""Group-limited choice: the best groups of experts, then the best of theirs.

After DeepSeek-V2 and -V3 (https://arxiv.org/abs/2405.04434, section 2.2.2;
https://arxiv.org/abs/2412.19437, section 2.1.2), where experts that lie on one
node are a group and a token is sent to a few nodes only: node-limited routing.
"""

import mesh_tensorflow as mtf

from mtf_moe import knobs
from mtf_moe import operations
from mtf_moe.gating import losses
from mtf_moe.gating import router
from mtf_moe.gating import selection

# A group counts by its best experts, as in DeepSeek-V3.
_EXPERTS_OF_A_GROUP = 2


@router.register("group_limited")
class GroupLimited(router.Router):
  """Weights are gates that are normalized over the chosen experts, if several.

  Neighbouring experts are a group: of x experts in g groups, the first x / g.
  """

  def choose(self, scores):
    x, settings = scores.experts_dim, scores.settings
    groups = settings.limited_num_groups
    kept, k = settings.limited_top_groups, settings.limited_top_k
    if x.size % groups:
      raise knobs.Mistake(
          "limited_num_groups", groups,
          f"does not divide the {x.size} experts of a level: choose a divisor.")
    if kept > groups:
      raise knobs.Mistake(
          "limited_top_groups", kept,
          f"is more than limited_num_groups = {groups}: lower it.")
    if k > kept * (x.size // groups):
      raise knobs.Mistake(
          "limited_top_k", k,
          f"is more than the {kept * (x.size // groups)} experts of "
          f"limited_top_groups = {kept} groups: lower it.")
    left = scores.gates * self._in_best_groups(
        scores.gates, x, groups, kept)  # [..., s, x]
    experts, gates = [], []
    for _ in range(k):
      gate, expert = selection.likeliest(left, x)  # [..., s]
      left *= 1.0 - mtf.one_hot(expert, x, dtype=left.dtype)
      experts.append(expert)
      gates.append(gate)
    if k > 1:
      total = mtf.add_n(gates) + losses.EPSILON
      gates = [gate / total for gate in gates]
    return router.TokenChoice(experts, gates)

  def _in_best_groups(self, gates, experts_dim, groups, kept):
    """Ones at the experts of each token's best groups, else zeros."""
    group_dim = mtf.Dimension("limited_group", groups)
    member_dim = mtf.Dimension("limited_member", experts_dim.size // groups)
    by_group = mtf.reshape(
        gates, gates.shape.dims[:-1] + [group_dim, member_dim])
    best = mtf.Dimension(
        "best", min(_EXPERTS_OF_A_GROUP, member_dim.size))
    largest, _ = operations.top_k(by_group, member_dim, best)
    left = mtf.reduce_sum(largest, reduced_dim=best)  # [..., s, groups]
    chosen = 0.0
    for _ in range(kept):
      _, group = selection.likeliest(left, group_dim)
      mask = mtf.one_hot(group, group_dim, dtype=left.dtype)
      left *= 1.0 - mask
      chosen += mask
    return mtf.reshape(
        chosen + mtf.zeros(gates.mesh, by_group.shape), gates.shape)
