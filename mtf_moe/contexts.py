"""What mesh_tensorflow's transformer tells its layers of tokens."""

import math

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import mesh_split


def as_batch_and_length(dims: list[mtf.Dimension]) -> list[mtf.Dimension]:
  """Merges all but the batch into one length: positions, beams, or neither.

  Args:
    dims: a list of Dimensions, the batch first.

  Returns:
    [outer_batch, batch, length], or [batch, length].
  """
  num_batch_dims = 2 if dims[0].name == mesh_split.OUTER_BATCH else 1
  positions = dims[num_batch_dims:]
  if len(positions) == 1:
    return dims
  length = math.prod(dim.size for dim in positions)
  return dims[:num_batch_dims] + [mtf.Dimension("length", length)]


def token_ids(context, batch_dims: list[mtf.Dimension]) -> mtf.Tensor | None:
  """The ids of the tokens, an integer Tensor [<batch dims>]; None if unknown.

  Args:
    context: a transformer.Context.
    batch_dims: a list of Dimensions, those of the layer's inputs without the
      model's.
  """
  ids = context.inputs
  if (ids is None or not ids.dtype.is_integer
      or not set(ids.shape.dims) <= set(batch_dims)):
    return None
  return mtf.broadcast(ids, mtf.Shape(batch_dims))


def nonpadding(context, ids: mtf.Tensor | None):
  """Ones at tokens and zeros at padding, as far as the context tells.

  mesh_tensorflow tells its layers in training and evaluation. In scoring, for
  prompts, and for data without segmentation, only the ids do: padding is what
  is 0 behind all others. A single position is a token, unless the context says
  otherwise.

  Args:
    context: a transformer.Context.
    ids: what `token_ids` returned.

  Returns:
    a Tensor with some of these dimensions; None or 1 where nothing is known.
  """
  if (isinstance(context.sequence_id, mtf.Tensor)
      or context.mode == "incremental" or ids is None):
    return context.nonpadding
  is_token = mtf.not_equal(ids, 0)
  if context.mode != "first_part" and context.model.autoregressive:
    # A position is fed the token before the one that it predicts, and that one
    # counts. The one that the last position predicts is not known.
    length = context.length_dim
    is_last = mtf.equal(
        mtf.range(ids.mesh, length, tf.int32), length.size - 1)
    if length.size > 1:
      is_last = mtf.logical_and(is_last, is_token)
    up_to_here = mtf.cumsum(mtf.to_float(is_token), length)
    is_token = mtf.logical_or(is_last, mtf.greater(
        mtf.reduce_max(up_to_here, reduced_dim=length), up_to_here))
  return mtf.cast(is_token, context.activation_dtype)
