"""Arrays of experts and of routers, from some numbers of experts to others.

Arrays are in NumPy and have experts ahead, the first level's first:
[x, y, ...], none if dense. A checkpoint has those of the last level first:
`from_checkpoint` and `to_checkpoint` turn them around.
"""

from collections.abc import Sequence
import math

import numpy as np


def from_checkpoint(array: np.ndarray, num_levels: int) -> np.ndarray:
  """[..., y, x, <rest>] as [x, y, ..., <rest>]."""
  return np.transpose(array, [
      *reversed(range(num_levels)), *range(num_levels, array.ndim)])


to_checkpoint = from_checkpoint  # To turn around is its own reverse.


def resized(array: np.ndarray, experts: Sequence[int], wanted: Sequence[int]
            ) -> np.ndarray:
  """Copies experts to more, merges them to fewer, or orders them in levels.

  With as many levels as before, each level is resized by itself; else experts
  are counted through, e = (x * Y + y) * ..., and cut into the new levels.
  Copies are neighbours, and so are those that are merged, by their mean.

  Args:
    array: [<experts>, <rest>].
    experts: numbers of experts at each level, none if dense.
    wanted: likewise, of the result.

  Returns:
    [<wanted>, <rest>]

  Raises:
    ValueError: if one number does not divide the other.
  """
  rest = array.shape[len(experts):]
  if len(experts) != len(wanted):
    array = array.reshape(math.prod(experts), *rest)
    return _resized(array, 0, math.prod(wanted)).reshape(*wanted, *rest)
  for axis, number in enumerate(wanted):
    array = _resized(array, axis, number)
  return array


def _resized(array, axis, number):
  """The same with as many along an axis."""
  before = array.shape[axis]
  if number % before == 0:
    return np.repeat(array, number // before, axis)
  if before % number:
    raise ValueError(
        f"{before} experts cannot become {number}: one number has to divide "
        "the other.")
  cut = array.reshape(*array.shape[:axis], number, before // number,
                      *array.shape[axis + 1:])
  return cut.mean(axis + 1, dtype=np.float64).astype(array.dtype)


def parts_of_hidden(array: np.ndarray, kernel: str, size: int) -> np.ndarray:
  """Cuts the weights of a dense layer into experts of some hidden units each.

  Each computes a part of the sum that the dense layer computes. Outputs of
  experts are averaged, not added up: their weights are as many times as large.

  Args:
    array: [inputs, hidden] or, of a "wo/kernel", [hidden, outputs].
    kernel: the name of the kernel.
    size: hidden units of an expert; it divides those of the layer.

  Returns:
    [parts, inputs, size] or [parts, size, outputs]
  """
  if kernel.startswith("wo"):
    parts = array.reshape(-1, size, array.shape[1])
    return parts * np.asarray(len(parts), array.dtype)
  return np.moveaxis(array.reshape(array.shape[0], -1, size), 1, 0)


def flat_router(kernels: Sequence[np.ndarray]) -> np.ndarray:
  """One router among all experts, in place of one of each level.

  Its logits are those of the last level, moved to have the mean that the level
  above gives to their group. The probability of an expert is that of its group
  times its own in there, but for how far from even the logits of a group are.

  Args:
    kernels: float32 [inputs, x], [inputs, x, y] and so on.

  Returns:
    [inputs, x, y, ...]
  """
  flat = kernels[-1]
  for number in reversed(range(len(kernels) - 1)):
    moved = kernels[number] - _mean_of_last(kernels[number + 1])
    flat = flat + moved.reshape(
        *moved.shape, *[1] * (flat.ndim - moved.ndim))
  return flat


def routers_of_levels(flat: np.ndarray) -> list[np.ndarray]:
  """One router of each level, in place of one among all experts.

  A group's logit is the mean of those of its experts; among these, they stay as
  they are. `flat_router` gives back the same, bit for bit.

  Args:
    flat: float32 [inputs, x, y, ...].

  Returns:
    [inputs, x], [inputs, x, y] and so on
  """
  kernels = [flat]
  while kernels[0].ndim > 2:
    kernels.insert(0, _mean_of_last(kernels[0]))
  return kernels


def _mean_of_last(array):
  return array.mean(-1, dtype=np.float64).astype(array.dtype)


def router_from_checkpoint(kernel: np.ndarray) -> np.ndarray:
  """A level's router, [..., y, x, inputs, z] as [inputs, x, y, ..., z]."""
  *above, inputs, experts = range(kernel.ndim)
  return np.transpose(kernel, [inputs, *reversed(above), experts])


def router_to_checkpoint(kernel: np.ndarray) -> np.ndarray:
  """The reverse of `router_from_checkpoint`."""
  inputs, *above, experts = range(kernel.ndim)
  return np.transpose(kernel, [*reversed(above), inputs, experts])
