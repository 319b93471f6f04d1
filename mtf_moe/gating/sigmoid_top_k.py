"""Sigmoid gates, with experts kept equally busy by a bias and without a loss.

After Wang et al. 2024, https://arxiv.org/abs/2408.15664, as DeepSeek-V3 has it
(https://arxiv.org/abs/2412.19437, section 2.1.2).
"""

import mesh_tensorflow as mtf

from mtf_moe import operations
from mtf_moe.gating import losses
from mtf_moe.gating import router
from mtf_moe.gating import selection


@router.register("sigmoid_top_k")
class SigmoidTopK(router.Router):
  """The k experts of the largest gates plus bias; weights are gates without it.

  With several choices, weights are normalized over these. After each step, the
  bias of an expert ("<router>/bias") is moved up if it had fewer tokens than
  the mean, and down if it had more, by sigmoid_bias_rate; it has no gradient.
  There is no balancing loss. A rate of 0 leaves the bias where it is, and has
  the loss of other routers, of gates that are normalized over all experts.
  """

  balanced_by = "sigmoid_bias_rate"

  def choose(self, scores):
    x, settings = scores.experts_dim, scores.settings
    k, rate = settings.sigmoid_top_k, settings.sigmoid_bias_rate
    selection.check_number("sigmoid_top_k", k, x)
    gates = mtf.sigmoid(scores.logits)  # [..., s, x]

    def nearer_to_the_mean(bias, counts):  # [<outer expert dims>, x]
      mean = mtf.reduce_mean(counts, reduced_dim=x)
      return bias + rate * mtf.sign(mean - counts)

    bias = scores.variable("bias", nearer_to_the_mean)
    rank = mtf.Dimension("rank", k)
    _, chosen = operations.top_k(
        operations.stop_gradient(gates + bias), x, rank)  # [..., s, k]
    experts = mtf.unstack(chosen, rank)  # [..., s]
    masks = [mtf.one_hot(expert, x) for expert in experts]  # [..., s, x]
    weights = [mtf.reduce_sum(gates * mask, reduced_dim=x) for mask in masks]
    if k > 1:
      total = mtf.add_n(weights) + losses.EPSILON
      weights = [weight / total for weight in weights]
    counts = mtf.reduce_sum(
        mtf.add_n(masks) * scores.used,
        output_shape=[*scores.outer_expert_dims, x])
    total_gates = mtf.reduce_sum(gates, reduced_dim=x) + losses.EPSILON
    return router.TokenChoice(
        experts, weights, gates=gates / total_gates,
        balance_loss=mtf.zeros(gates.mesh, []) if rate else None,
        updates={"bias": counts} if rate else {})
