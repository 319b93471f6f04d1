"""Operations of mtf, with what its own lack.

A gradient function sees its operation's tensors as `op.inputs` and `op.outputs`
and holds none itself: `mtf.recompute_grad` copies operations, and the copies
have tensors of their own.
"""

from collections.abc import Callable, Sequence

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf


def slicewise(tf_fn: Callable, xs: Sequence[mtf.Tensor], output_shape,
              output_dtype, splittable_dims, grad_function, name: str
              ) -> tuple[mtf.Tensor, ...]:
  """`mtf.slicewise` with several results, each under a name of its own.

  mtf calls all of them "<operation>:0", and `mesh_tensorflow.auto_mtf` finds
  tensors by their names.

  Args:
    tf_fn: a function from tf.Tensors to a tuple of tf.Tensors.
    xs: a list of Tensors.
    output_shape: a list of Shapes.
    output_dtype: a list of tf.DTypes.
    splittable_dims: a list of the Dimensions that may be split.
    grad_function: a function (op, *gradients) to a list of Tensors or None, or
      0 for no gradient.
    name: a string.

  Returns:
    a Tensor for each shape
  """
  return tuple(_Slicewise(
      tf_fn, xs, output_shape, output_dtype, splittable_dims, grad_function,
      name=name).outputs)


def top_k(x: mtf.Tensor, reduced_dim, k_dim) -> tuple[mtf.Tensor, mtf.Tensor]:
  """`mtf.top_k`, with results that have names of their own, as in `slicewise`.

  Args:
    x: a Tensor [..., <reduced dim>, ...].
    reduced_dim: a Dimension.
    k_dim: a Dimension, how many.

  Returns:
    the largest values, the first of equal ones first, [..., k], and where they
    are, int32 [..., k].
  """
  return tuple(_TopK(x, reduced_dim, k_dim).outputs)


def tied(x: mtf.Tensor, others: Sequence[mtf.Tensor], grad_function: Callable
         ) -> mtf.Tensor:
  """A tensor as it is, from which others get a gradient, too.

  Args:
    x: a Tensor.
    others: a list of Tensors.
    grad_function: a function (op, gradient of the result) to the gradients of
      `x` and of the others.

  Returns:
    the Tensor `x`
  """
  return Tie(x, others, grad_function).outputs[0]


def stop_gradient(x: mtf.Tensor) -> mtf.Tensor:
  """`mtf.stop_gradient`, with a gradient of zero in place of none.

  `mtf.recompute_grad` refuses a function that uses a floating-point tensor
  without a gradient.
  """
  return mtf.cwise(
      tf.identity, [x], name="stop_gradient",
      grad_function=lambda op, grad: [mtf.zeros_like(grad)])


def with_zero_gradients(x: mtf.Tensor, others: Sequence[mtf.Tensor]
                        ) -> mtf.Tensor:
  """A tensor as it is, with which others get gradients of zero.

  For those that only decide where tokens go, and would have none; see
  `stop_gradient`.

  Args:
    x: a Tensor.
    others: a list of Tensors.

  Returns:
    the Tensor `x`
  """
  others = [other for other in others if other.dtype.is_floating]
  if not others:
    return x
  return tied(x, others, lambda op, grad: [
      grad, *(mtf.zeros_like(other) for other in op.inputs[1:])])


def is_finite(rows: mtf.Tensor, depth) -> mtf.Tensor:
  """Ones at rows without NaN and infinite values, and zeros at others.

  A row so large that its sum is infinite counts as such. No gradient flows
  through.

  Args:
    rows: a Tensor [..., m].
    depth: the Dimension m.

  Returns:
    a Tensor [...] of the same type
  """
  return mtf.cwise(
      lambda total: tf.cast(tf.math.is_finite(total), total.dtype),
      [mtf.reduce_sum(rows, reduced_dim=depth)], grad_function=0)


def zero_unless(kept: mtf.Tensor, rows: mtf.Tensor) -> mtf.Tensor:
  """Rows, and zeros in place of those that are not kept.

  A product would not do: zero times NaN is NaN, and products with zeros and
  ones move tokens, so all of a group, and all gradients, would be NaN.

  Args:
    kept: a Tensor [...], zero at rows that are not kept.
    rows: a Tensor [..., m].

  Returns:
    a Tensor [..., m]
  """
  def gradient(op, grad):
    return [zero_unless(op.inputs[1], grad), None]

  return mtf.slicewise(
      lambda x, kept: tf.where_v2(
          kept[..., tf.newaxis] > 0, x, tf.zeros([], x.dtype)),
      [rows, kept], splittable_dims=rows.shape.dims,
      grad_function=gradient, name="zero_unless")


class _NamedResults(mtf.Operation):
  """Gives each result of an operation a name of its own."""

  _outputs: list[mtf.Tensor]

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self._outputs = [mtf.Tensor(self, y.shape, y.dtype, index=number)
                     for number, y in enumerate(self._outputs)]


class _Slicewise(_NamedResults, mtf.SlicewiseOperation):
  pass


class _TopK(_NamedResults, mtf.TopKOperation):
  pass


class Tie(mtf.Operation):
  """See `tied`; it moves no data."""

  def __init__(self, x, others, grad_function):
    super().__init__([x, *others], name="tie")
    self._outputs = [mtf.Tensor(self, x.shape, x.dtype)]
    self._grad_function = grad_function

  def lower(self, lowering):
    lowering.set_tensor_lowering(
        self.outputs[0], lowering.tensors[self.inputs[0]])

  def gradient(self, grad_ys):
    return self._grad_function(self, *grad_ys)
