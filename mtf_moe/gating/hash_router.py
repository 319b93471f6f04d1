"""Hash routing: a token's expert depends on what token it is, and nothing else.

After Roller et al. 2021, https://arxiv.org/abs/2106.04426 (the random hash).
"""

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe.gating import router

_MASK = 2 ** 31 - 1  # Products of two such numbers fit into 64 bits.
# As in the finalizer of MurmurHash3 by A. Appleby, which is in the public
# domain, but in 31 bits.
_FACTORS = (0x05ebca6b, 0x42b2ae35)
# Levels have hashes that have nothing to do with one another.
_STEP = 0x1e3779b9


@router.register("hash")
class Hash(router.Router):
  """One expert with the weight 1; there is nothing to learn, and no loss."""

  balanced_by = None
  has_logits = False

  def choose(self, scores):
    seed = (scores.settings.hash_seed
            + _STEP * len(scores.outer_expert_dims)) & _MASK
    ids = scores.token_ids()  # [..., s]
    expert = mtf.cwise(
        lambda ids: tf.cast(
            hashed(tf.cast(ids, tf.int64), seed) % scores.experts_dim.size,
            tf.int32), [ids], grad_function=0, name="hash")
    return router.TokenChoice(
        [expert], [mtf.ones(ids.mesh, ids.shape)],
        balance_loss=mtf.zeros(ids.mesh, []))


def hashed(ids: tf.Tensor, seed: int) -> tf.Tensor:
  """Numbers below 2^31 that look random, always the same for an id.

  Args:
    ids: an int64 tf.Tensor, none of them negative.
    seed: an integer, which numbers.

  Returns:
    an int64 tf.Tensor
  """
  xor, shifted = tf.bitwise.bitwise_xor, tf.bitwise.right_shift

  def constant(value):
    return tf.constant(value, tf.int64)

  ids = (ids + seed) & constant(_MASK)
  for shift, factor in zip((16, 13), _FACTORS):
    ids = xor(ids, shifted(ids, constant(shift)))
    ids = (ids * factor) & constant(_MASK)
  return xor(ids, shifted(ids, constant(16)))
