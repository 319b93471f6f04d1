"""Noisy top-k gating, with losses for importance and load.

After Shazeer et al. 2017, https://arxiv.org/abs/1701.06538: section 2.1,
equations 3 to 5, section 4, and appendix A.
"""

import math

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import knobs
from mtf_moe import operations
from mtf_moe.gating import losses
from mtf_moe.gating import router


@router.register("noisy_top_k")
class NoisyTopK(router.Router):
  """The k largest of noisy logits; weights are a softmax over these.

  The noise of each expert has a deviation that is learned ("<router>/noise"),
  and there is none outside of training. The loss is the squared coefficient of
  variation of the experts' importance, the sum of their weights, and in
  training that of their load, a smooth count of their tokens: 0 at perfect
  balance, where other routers have 1.
  """

  def choose(self, scores):
    x, k = scores.experts_dim, scores.settings.noisy_top_k
    if k > x.size:
      raise knobs.Mistake(
          "noisy_top_k", k,
          f"is more than the {x.size} experts of a level: lower it.")
    logits = scores.logits  # [..., s, x]
    with_load = scores.train and k < x.size
    # Also where it is not used: a checkpoint has the same variables everywhere.
    noise = scores.linear("noise")  # [..., s, x]
    if scores.train:
      deviation = mtf.softplus(noise)
      logits += deviation * operations.stop_gradient(
          mtf.random_normal(logits.mesh, logits.shape))
    # One more than is used says by how much a choice was one.
    rank = mtf.Dimension("rank", k + 1 if with_load else k)
    largest, experts = (
        mtf.unstack(values, rank)
        for values in operations.top_k(logits, x, rank))  # [..., s]
    highest = operations.stop_gradient(largest[0])
    shares = [mtf.exp(value - highest) for value in largest[:k]]
    total = mtf.add_n(shares)
    weights = [share / total for share in shares]

    chosen = mtf.add_n([
        weight * mtf.one_hot(expert, x)
        for weight, expert in zip(weights, experts)])  # [..., s, x]
    loss = self._unevenness(chosen, scores)
    if with_load:
      loss += self._unevenness(
          _likely_chosen(scores.logits, logits, deviation, largest, k), scores)
    return router.TokenChoice(experts[:k], weights, balance_loss=loss)

  def _unevenness(self, per_token, scores):
    """The squared coefficient of variation of sums over tokens.

    Args:
      per_token: float32 [..., s, x].
      scores: a `Scores`.

    Returns:
      a float32 scalar, its mean over the routers of the level
    """
    if scores.importance is not None:
      per_token *= scores.full
    x = scores.experts_dim
    sums = mtf.reduce_sum(
        per_token, output_shape=[*scores.outer_expert_dims, x])
    mean = mtf.reduce_mean(sums, reduced_dim=x) + losses.EPSILON
    variance = mtf.reduce_mean(mtf.square(sums - mean), reduced_dim=x)
    return mtf.reduce_mean(variance / mtf.square(mean))


def _likely_chosen(logits, noisy, deviation, largest, k):
  """With which probability each expert is chosen, if its noise is drawn anew.

  Equation 9: an expert is chosen if it is above the k-th largest of the others.

  Args:
    logits: float32 [..., s, x], without noise.
    noisy: float32 [..., s, x], with it.
    deviation: float32 [..., s, x], that of the noise.
    largest: k + 1 times float32 [..., s], the largest of `noisy`.
    k: an integer.

  Returns:
    float32 [..., s, x]
  """
  last, next_one = largest[k - 1], largest[k]
  is_chosen = mtf.to_float(mtf.greater_equal(noisy, last))  # [..., s, x]
  to_exceed = is_chosen * next_one + (1.0 - is_chosen) * last
  return 0.5 + 0.5 * _erf(
      (logits - to_exceed) / deviation * (1.0 / math.sqrt(2.0)))


def _erf(x):
  def gradient(op, grad):
    return [grad * mtf.exp(-mtf.square(op.inputs[0]))
            * (2.0 / math.sqrt(math.pi))]

  return mtf.cwise(tf.math.erf, [x], grad_function=gradient, name="erf")
