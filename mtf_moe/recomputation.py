"""Losses that leave a function which mtf computes again on the backward pass.

With `LayerStack.recompute_grads = True`, mesh_tensorflow calls every layer in a
function under `mtf.custom_gradient`, so that activations need not be kept. Only
what that function returns may be used outside; a layer of mesh_tensorflow
returns its outputs, and appends its loss to `context.losses`, so a mixture's
loss cannot be used, and training fails. Here such losses become results of the
function, with gradients of their own; nothing else changes.

It is `mtf.custom_gradient` that has to pass the losses on: `install` wraps it,
for good, since who builds a model with this layer (a program, a notebook, T5)
knows nothing of it. Where no layer of this package leaves a loss, the wrapper
does what mtf does.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools

import mesh_tensorflow as mtf
from mesh_tensorflow import ops
from mesh_tensorflow import ops_with_redefined_builtins

from mtf_moe import operations


@dataclasses.dataclass(frozen=True)
class _Left:
  """A loss on its way out of a function.

  Attributes:
    losses: the list outside that it is for.
    loss: a scalar Tensor.
    gradient: empty but for the time in which gradients of the function are
      built; then a list of the loss's, which may be None.
  """

  losses: list[mtf.Tensor]
  loss: mtf.Tensor
  gradient: list[mtf.Tensor | None]


# All names under which mesh_tensorflow calls `custom_gradient`.
_MODULES = (ops, ops_with_redefined_builtins, mtf)

# What leaves each of the functions that are being called, the innermost last.
_functions: list[list[_Left]] = []


def leave(losses: list[mtf.Tensor], loss: mtf.Tensor, outputs: mtf.Tensor
          ) -> mtf.Tensor:
  """Appends a loss to a list, from inside a recomputed function or not.

  Args:
    losses: the list.
    loss: a scalar Tensor.
    outputs: what the layer returns.

  Returns:
    what the layer has to return in its place: from it, the loss gets its
    gradient where the function is computed again.
  """
  if not _functions:
    losses.append(loss)
    return outputs
  gradient: list[mtf.Tensor | None] = []
  _functions[-1].append(_Left(losses, loss, gradient))
  return operations.tied(outputs, [loss], lambda op, grad: [grad, *gradient])


def install():
  """Makes `mtf.custom_gradient` pass on the losses that functions leave."""
  original = ops.custom_gradient
  if not hasattr(original, "passes_losses_on"):
    wrapped = _passing_losses_on(original)
    wrapped.passes_losses_on = True
    _replace(wrapped)


@contextlib.contextmanager
def unused():
  """Calls functions plainly that mtf would be able to compute again.

  Nothing else is needed where nothing is differentiated, and decoding fails
  with anything else: the states that layers keep could not be used outside.
  """
  def plainly(fn, grad_fn, explicit_inputs):
    del grad_fn
    return fn(*explicit_inputs)

  original = ops.custom_gradient
  _replace(plainly)
  try:
    yield
  finally:
    _replace(original)


def _replace(custom_gradient):
  for module in _MODULES:
    module.custom_gradient = custom_gradient


def _passing_losses_on(custom_gradient):
  """Wraps `mtf.custom_gradient`."""

  @functools.wraps(custom_gradient)
  def wrapped(fn: Callable, grad_fn: Callable,
              explicit_inputs: Sequence[mtf.Tensor]):
    left: list[_Left] = []
    returns_tuple = False

    def with_losses(*inputs):
      nonlocal returns_tuple
      _functions.append(left)
      try:
        outputs = fn(*inputs)
      finally:
        _functions.pop()
      if not left:
        return outputs
      returns_tuple = isinstance(outputs, tuple)
      return (*(outputs if returns_tuple else (outputs,)),
              *(one.loss for one in left))

    results = custom_gradient(
        with_losses, _with_losses_gradients(grad_fn, left), explicit_inputs)
    if not left:
      return results
    outputs = results[:-len(left)]
    for one, loss in zip(left, results[-len(left):]):
      # Another recomputed function may be around this one.
      outputs[0] = leave(one.losses, loss, outputs[0])
    return outputs if returns_tuple else outputs[0]

  return wrapped


def _with_losses_gradients(grad_fn, left):
  """Wraps the gradient function of `mtf.custom_gradient`.

  Args:
    grad_fn: the function, which copies operations and knows no losses.
    left: the losses that leave the function, as its last results.

  Returns:
    a gradient function
  """
  def gradients(explicit_inputs, all_inputs, forward_operations, outputs,
                output_grads):
    count = len(outputs) - len(left)
    output_grads, of_losses = output_grads[:count], output_grads[count:]
    if left and output_grads[0] is None:
      # Losses have their gradients from this one's operations.
      output_grads = [mtf.zeros_like(outputs[0]), *output_grads[1:]]
    for one, gradient in zip(left, of_losses):
      one.gradient.append(gradient)
    try:
      return grad_fn(
          explicit_inputs=explicit_inputs, all_inputs=all_inputs,
          forward_operations=forward_operations, outputs=outputs[:count],
          output_grads=output_grads)
    finally:
      for one in left:
        one.gradient.clear()

  return gradients
