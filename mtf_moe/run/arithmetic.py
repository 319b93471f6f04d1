"""Whether this TensorFlow multiplies bfloat16 right on this processor.

Some do not (see `_avoid_wrong_products` in mtf_moe/compat.py), and a model
would silently be trained on wrong numbers.
"""

import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.run import sessions

# Of all sizes that were tried, products of as many rows were wrong.
_ROWS = (49, 55, 63)
_EINSUM = "xabcn,absxc->absn"

ADVICE = (
    "TensorFlow multiplies some bfloat16 matrices wrong on this processor, and "
    "this run computes in bfloat16: start it with the environment variable "
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16 or TF_ENABLE_ONEDNN_OPTS=0, or "
    'compute in float32 (get_variable_dtype.activation_dtype = "float32").')


def is_wrong() -> bool:
  """Multiplies matrices whose product is known, and looks at the result.

  Of zeros and ones: no sum is above 32, which bfloat16 holds exactly, so any
  difference is an error, in whatever order and precision terms are added.
  """
  rng = np.random.default_rng(0)
  feeds, products, right = {}, [], []
  with tf.Graph().as_default():
    for rows in _ROWS:
      factors = [rng.integers(0, 2, shape).astype(np.float32)
                 for shape in ((4, 1, 1, 8, 16), (1, 1, rows, 4, 8))]
      # Products of constants are computed beforehand, by other means.
      fed = [tf.placeholder(tf.float32, factor.shape) for factor in factors]
      feeds.update(zip(fed, factors))
      products.append(tf.cast(tf.einsum(
          _EINSUM, *[tf.cast(x, tf.bfloat16) for x in fed]), tf.float32))
      right.append(np.einsum(_EINSUM, *factors))
    with sessions.on_cpu() as session:
      found = session.run(products, feeds)
  return any((a != b).any() for a, b in zip(found, right))


def multiplies_bfloat16(graph: tf.Graph) -> bool:
  """Whether a graph has such a product, on other devices than a TPU."""
  return any(
      op.type in ("Einsum", "MatMul", "BatchMatMulV2")
      and op.outputs[0].dtype.base_dtype == tf.bfloat16
      and "_tpu_replicate" not in op.node_def.attr
      for op in graph.get_operations())
