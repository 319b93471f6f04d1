"""Noisy top-k gating, with losses for importance and load.

After Shazeer et al. 2017, https://arxiv.org/abs/1701.06538: section 2.1,
equations 3 to 5, section 4, and appendices A and B.
"""

import math

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import operations
from mtf_moe.gating import losses
from mtf_moe.gating import router
from mtf_moe.gating import selection


@router.register("noisy_top_k")
class NoisyTopK(router.Router):
  """The k largest of noisy logits; weights are a softmax over these.

  The noise of each expert has a deviation that is learned ("<router>/noise"),
  and there is none outside of training. The loss is the squared coefficient of
  variation of the experts' importance, the sum of their weights, and in
  training that of their load, a smooth count of their tokens: 0 at perfect
  balance, where other routers have 1.

  By noisy_loss, that is of each router among its own experts (on the "level"),
  or "hierarchical", of all experts of the level among each other: equations 13
  and 14, by which importance is the product of the weights of all levels, and
  load is that of the level above, divided up. Or there is "none".
  """

  def choose(self, scores):
    x, k = scores.experts_dim, scores.settings.noisy_top_k
    selection.check_number("noisy_top_k", k, x)
    logits = scores.logits  # [..., s, x]
    kind = scores.settings.noisy_loss
    with_load = scores.train and k < x.size and kind != "none"
    # Also where it is not used: a checkpoint has the same variables everywhere.
    noise = scores.linear("noise")  # [..., s, x]
    if not scores.train:
      logits = operations.with_zero_gradients(logits, [noise])
    else:
      deviation = mtf.softplus(noise)
      logits += deviation * operations.stop_gradient(
          mtf.random_normal(logits.mesh, logits.shape))
    # One more than is used says by how much a choice was one.
    rank = mtf.Dimension("rank", k + 1 if with_load else k)
    largest, experts = (
        mtf.unstack(values, rank)
        for values in operations.top_k(logits, x, rank))  # [..., s]
    # A loss may not be differentiated, and all that is unstacked has to be.
    largest[0] = operations.with_zero_gradients(largest[0], largest[1:])
    highest = operations.stop_gradient(largest[0])
    shares = [mtf.exp(value - highest) for value in largest[:k]]
    total = mtf.add_n(shares)
    weights = [share / total for share in shares]

    chosen = mtf.add_n([
        weight * mtf.one_hot(expert, x)
        for weight, expert in zip(weights, experts)])  # [..., s, x]
    likely = None
    if with_load:
      likely = _likely_chosen(scores.logits, logits, deviation, largest, k)
    loss, load = _LOSSES[kind](scores, chosen, likely)
    return router.TokenChoice(
        experts[:k], weights, balance_loss=loss, load=load)


def _loss_of_routers(scores, chosen, likely):
  """Each router's loss among its own experts, on average.

  Args:
    scores: a `Scores`.
    chosen: float32 [..., s, x], weights.
    likely: float32 [..., s, x], probabilities of being chosen, or None where
      there is no load.

  Returns:
    a float32 scalar, and the load for the level below: None
  """
  per_token = [chosen] if likely is None else [chosen, likely]
  if scores.importance is not None:
    per_token = [one * scores.full for one in per_token]
  return mtf.add_n([
      mtf.reduce_mean(_unevenness(_sums(one, scores), [scores.experts_dim]))
      for one in per_token]), None


def _hierarchical_loss(scores, chosen, likely):
  """The loss of all experts of the level among each other.

  Args and Returns: as above, with a load, [<outer expert dims>, x].
  """
  above = scores.above()
  weights = scores.full if above is None else above.weights  # [..., s]
  loss = _unevenness(_sums(chosen * weights, scores))
  if likely is None:
    return loss, None
  load = _sums(likely * scores.used, scores)  # [<outer expert dims>, x]
  if above is not None and above.load is not None:
    arrivals = mtf.reduce_sum(
        scores.used, output_shape=scores.outer_expert_dims)
    load *= above.load / mtf.maximum(arrivals, 1.0)
  return loss + _unevenness(load), load


def _no_loss(scores, chosen, likely):
  """As above, of zero. The level below has the load of what arrives there."""
  del likely
  return mtf.zeros(chosen.mesh, []), None


_LOSSES = {"level": _loss_of_routers, "hierarchical": _hierarchical_loss,
           "none": _no_loss}


def _sums(per_token, scores):
  """Sums [..., s, x] over the tokens of each router: [<outer experts>, x]."""
  return mtf.reduce_sum(
      per_token, output_shape=[*scores.outer_expert_dims, scores.experts_dim])


def _unevenness(sums, dims=None):
  """The squared coefficient of variation along some dims, or all: [others]."""
  others = mtf.Shape([dim for dim in sums.shape.dims
                      if dims is not None and dim not in dims])
  mean = mtf.reduce_mean(sums, output_shape=others) + losses.EPSILON
  variance = mtf.reduce_mean(mtf.square(sums - mean), output_shape=others)
  return variance / mtf.square(mean)


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
