"""What all routers compute alike: their logits, and their losses' weights.

Shapes: `s` is the group size and `x` the experts, after any number of batch
dimensions.
"""

import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import operations
from mtf_moe.gating import losses
from mtf_moe.gating import word_embeddings


def logits(inputs, outer_expert_dims, experts_dim, hparams, variable_dtype,
           name, token_embeddings):
  """A router's linear layer, without bias.

  Args:
    inputs: a Tensor [<batch dims>, s, m].
    outer_expert_dims: an optional list of dimensions of `inputs` that have a
      router each.
    experts_dim: the Dimension x.
    hparams: a `MoeHparams`.
    variable_dtype: a mtf.VariableDType.
    name: a string, the variable scope of the router.
    token_embeddings: an optional Tensor shaped as `inputs`.

  Returns:
    float32 [<batch dims>, s, x]
  """
  gate_inputs = mtf.to_float(inputs)  # [..., s, m]
  if hparams.moe_word_embed_mode is not None:
    gate_inputs = word_embeddings.add_to_gate_inputs(
        gate_inputs, token_embeddings, hparams.moe_word_embed_mode)
  return mtf.layers.dense(
      gate_inputs, experts_dim, reduced_dims=gate_inputs.shape.dims[-1:],
      expert_dims=outer_expert_dims, use_bias=False,
      variable_dtype=variable_dtype, name=name)


def top_1(gates, experts_dim):
  """mtf.top_1: a token's largest gate and its expert, the first of equal ones.

  Args:
    gates: float32 [..., s, x], none of them negative.
    experts_dim: the Dimension x.

  Returns:
    float32 [..., s], and int32 [..., s]
  """
  token_dims = gates.shape.dims[:-1]
  # Falls from one expert to the next, so that the first has the most.
  rank = np.arange(experts_dim.size, 0, -1, dtype=np.int32)[:, np.newaxis]

  def largest(gates):
    # Tokens come last, so that maxima are taken of whole rows at a time; and as
    # the bits of positive numbers are ordered as they are, they are integers,
    # which a CPU transposes and compares at less cost.
    *others, s, x = range(gates.shape.ndims)
    bits = tf.transpose(tf.bitcast(gates, tf.int32), [*others, x, s])
    most = tf.reduce_max(bits, -2, keepdims=True)
    ranks = tf.reduce_max(tf.cast(tf.equal(bits, most), tf.int32) * rank, -2)
    return (tf.bitcast(tf.squeeze(most, -2), tf.float32),
            experts_dim.size - ranks)

  def gradient(op, grad, _):
    return [grad * mtf.one_hot(op.outputs[1], experts_dim, dtype=grad.dtype)]

  return operations.slicewise(
      largest, [gates], output_shape=[mtf.Shape(token_dims)] * 2,
      output_dtype=[gates.dtype, tf.int32], splittable_dims=token_dims,
      grad_function=gradient, name="top_1")


def auxiliary_losses(
    balance_loss, router_logits, importance, hparams, train, num_microbatches):
  """The losses of a router as its `Routing` has them.

  Args:
    balance_loss: a float32 scalar.
    router_logits: float32 [..., s, x].
    importance: an optional Tensor [..., s].
    hparams: a `MoeHparams`.
    train: a boolean; the z-loss is for training only.
    num_microbatches: an optional integer, by which both losses are divided.

  Returns:
    a float32 scalar, and another or None: balancing loss and weighted z-loss.
  """
  z_loss = None
  if train and hparams.moe_z_loss is not None:
    z_loss = hparams.moe_z_loss * losses.router_z_loss(
        router_logits, router_logits.shape.dims[-1], importance)
  if num_microbatches and num_microbatches > 1:
    balance_loss /= num_microbatches
    if z_loss is not None:
      z_loss /= num_microbatches
  return balance_loss, z_loss
