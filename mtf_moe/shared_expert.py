"""The shared expert: a network that every token uses beside its routed ones.

After DeepSeekMoE, Dai et al. 2024, https://arxiv.org/abs/2401.06066, section
3.2: what all tokens need is learned once, and routed experts have room for what
only some of them do.
"""

from collections.abc import Callable, Sequence
import dataclasses

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import operations
from mtf_moe.hparams import MoeHparams


def added(
    routed: Sequence[mtf.Tensor], tokens: mtf.Tensor, importance: mtf.Tensor,
    output_dim: mtf.Dimension, hparams: MoeHparams, train: bool, variable_dtype,
    experts: Callable[..., mtf.Tensor]) -> list[mtf.Tensor]:
  """Adds what the shared expert makes of the tokens, if there is one.

  It is the network of the experts, without a dimension of experts, on the
  tokens where they are: nothing travels but the gradients of its variables,
  which are "shared_expert/wi/kernel" [m, shared_hidden] and so on. Padding and
  tokens that are not finite get nothing from it, as from the others.

  Args:
    routed: Tensors [a0, g1, s, n], one for each output of the experts.
    tokens: a Tensor [a0, g1, s, m], finite.
    importance: a Tensor [a0, g1, s], 0 at tokens that use no expert.
    output_dim: the Dimension n.
    hparams: those of the layer; moe_shared_hidden_size says how large it is.
    train: a boolean.
    variable_dtype: a mtf.VariableDType.
    experts: the network inside the experts.

  Returns:
    as many Tensors [a0, g1, s, n]
  """
  if hparams.moe_shared_hidden_size is None:
    return list(routed)
  hparams = dataclasses.replace(
      hparams, moe_hidden_size=hparams.moe_shared_hidden_size)
  with tf.variable_scope("shared_expert"):
    outputs = experts(tokens, output_dim, [], hparams, train, variable_dtype)
  outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
  # Not every network makes zeros of zeros.
  return [one + operations.zero_unless(importance, other)
          for one, other in zip(routed, outputs, strict=True)]
