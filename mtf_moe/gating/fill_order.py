"""Whose choices get the slots of a group first.

By position, the first tokens of a group do. By gate, it is the tokens of least
use to their experts that are dropped, and not the last ones: Riquelme et al.
2021, https://arxiv.org/abs/2106.05974, section 4.

Shapes: `s` is the group size and `x` the experts, after any number of batch
dimensions.
"""

from collections.abc import Callable

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import hparams as hparams_lib


def priority(gates: mtf.Tensor, experts_dim: mtf.Dimension,
             settings: hparams_lib.Level) -> mtf.Tensor | None:
  """What decides which tokens come first.

  Args:
    gates: float32 [..., s, x].
    experts_dim: the Dimension x.
    settings: those of the level.

  Returns:
    float32 [..., s], or None where positions do
  """
  if settings.fill_order == "position":
    return None
  return mtf.reduce_max(gates, reduced_dim=experts_dim)


def orders(of_tokens: tf.Tensor | None = None) -> tuple[Callable, Callable]:
  """Puts tokens into the order of their priority, and back.

  Args:
    of_tokens: the priority, float32 [..., s]; the largest comes first, and of
      equal ones the first. None leaves tokens as they are.

  Returns:
    two functions from a tf.Tensor [..., s] to another
  """
  if of_tokens is None:
    return (lambda x: x), (lambda x: x)

  def descending(x):
    return tf.math.top_k(x, k=x.shape[-1]).indices

  def by(order):
    return lambda x: tf.gather(x, order, batch_dims=order.shape.ndims - 1)

  # A router that diverged has gates of NaN: between them, nothing is sorted.
  order = descending(tf.where_v2(
      tf.math.is_nan(of_tokens), of_tokens.dtype.min, of_tokens))
  return by(order), by(descending(-order))
