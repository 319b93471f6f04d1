"""Auxiliary losses that keep the experts equally busy and the logits small.

Shapes: `s` is the group size and `x` the experts, after any number of batch
dimensions. All losses are float32 scalars.
"""

import mesh_tensorflow as mtf

# Keeps a quotient finite where every gate that is left is zero.
EPSILON = 1e-9


def balance_loss(mask, gates, group_dim, experts_dim, counted=None):
  """How unequally one choice of the tokens spreads over the experts.

  The fraction of a group's tokens that chose an expert cannot be
  differentiated, so it is multiplied by the mean gate of that expert, which
  can. Perfect balance gives 1, everything at one expert gives x. Tokens without
  a choice stay in the denominator of both means.

  From Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, in the form of
  Lepikhin et al. 2020, https://arxiv.org/abs/2006.16668, algorithm 1.

  Args:
    mask: float32 [..., s, x], one at each token's chosen expert.
    gates: float32 [..., s, x], what stands in for the choice.
    group_dim: the dimension s.
    experts_dim: the dimension x.
    counted: an optional float32 [..., s] of zeros and ones. Then means are over
      the tokens that have a one, and perfect balance gives 1 however few they
      are: with a fraction f of them it gives f * f else.

  Returns:
    a float32 scalar
  """
  density = mtf.reduce_mean(mask, reduced_dim=group_dim)  # [..., x]
  density_proxy = mtf.reduce_mean(gates, reduced_dim=group_dim)  # [..., x]
  if counted is not None:
    fraction = mtf.maximum(
        mtf.reduce_mean(counted, reduced_dim=group_dim),
        1.0 / group_dim.size)  # [...]
    density /= fraction
    density_proxy /= fraction
  return mtf.reduce_mean(density * density_proxy) * float(experts_dim.size ** 2)


def without_first_choice(gates_left, experts_dim):
  """The gates among the experts left after the first choice, summing to 1.

  Args:
    gates_left: float32 [..., s, x], zero at the first choice.
    experts_dim: the dimension x.

  Returns:
    float32 [..., s, x]
  """
  total = mtf.reduce_sum(gates_left, reduced_dim=experts_dim)  # [..., s]
  return gates_left / (total + EPSILON)


def router_z_loss(logits, experts_dim, importance=None):
  """Mean square of the log-partition function of the router's softmax.

  Keeps logits small, where float arithmetic is exact. From Zoph et al. 2022,
  https://arxiv.org/abs/2202.08906, equation 5.

  Args:
    logits: float32 [..., s, x].
    experts_dim: the dimension x.
    importance: an optional Tensor [..., s]; only tokens of importance 1 count,
      and where there is none of them the loss is 0.

  Returns:
    a float32 scalar
  """
  z_squared = mtf.square(mtf.reduce_logsumexp(logits, experts_dim))  # [..., s]
  if importance is None:
    return mtf.reduce_mean(z_squared)
  counts = mtf.to_float(mtf.equal(importance, 1.0))  # [..., s]
  total = mtf.reduce_sum(z_squared * counts)
  return total / mtf.maximum(mtf.reduce_sum(counts), 1.0)
