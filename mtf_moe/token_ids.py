"""Token ids that travel with their tokens.

They move as rows of digits. A digit is exact in every type of floating-point
numbers, bfloat16 too, and on devices that multiply in it.
"""

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

_BASE = 256
_DIGITS = mtf.Dimension("token_id_digits", 4)


def as_rows(ids: mtf.Tensor, dtype: tf.DType) -> mtf.Tensor:
  """Rows of digits.

  Args:
    ids: int32 [...], none of them negative.
    dtype: a tf.DType, that of the tokens.

  Returns:
    a Tensor of that type, [..., token_id_digits]
  """
  digits = []
  for _ in range(_DIGITS.size):
    digits.append(mtf.mod(ids, _BASE))
    ids = mtf.floordiv(ids, _BASE)
  return mtf.cast(mtf.stack(digits, _DIGITS.name, axis=len(ids.shape)), dtype)


def of_rows(rows: mtf.Tensor) -> mtf.Tensor:
  """The ids again; 0 for a row of zeros, as of an empty slot.

  Args:
    rows: a Tensor [..., token_id_digits].

  Returns:
    int32 [...]
  """
  ids = 0
  for digit in reversed(mtf.unstack(mtf.cast(rows, tf.int32), _DIGITS)):
    ids = ids * _BASE + digit
  return ids
