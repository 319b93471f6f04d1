"""Arrays of experts and of routers, from some numbers of experts to others.

Arrays are in NumPy and have experts ahead, the first level's first:
[x, y, ...], none if dense. A checkpoint has those of the last level first:
`from_checkpoint` and `to_checkpoint` turn them around.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

# How experts become fewer.
MEAN, WEIGHTED, BUSIEST, FIRST = "mean", "weighted", "busiest", "first"


def from_checkpoint(array: np.ndarray, num_levels: int) -> np.ndarray:
  """[..., y, x, <rest>] as [x, y, ..., <rest>]."""
  return np.transpose(array, [
      *reversed(range(num_levels)), *range(num_levels, array.ndim)])


to_checkpoint = from_checkpoint  # To turn around is its own reverse.


@dataclasses.dataclass(frozen=True)
class Fewer:
  """How experts become fewer.

  Attributes:
    how: `MEAN`: neighbours become one, their mean; `WEIGHTED`: likewise, each
      with the weight of its load; `BUSIEST`: those with the highest loads stay,
      in their order, of each group its own; `FIRST`: the first ones stay.
    loads: what share of the tokens of a level its experts had, of each level
      [x], [x, y] and so on; None where that is not known. `MEAN` and `FIRST`
      need none, the others those of the levels that become smaller.
  """

  how: str = MEAN
  loads: Sequence[np.ndarray | None] = ()

  @property
  def by_load(self) -> bool:
    """Whether loads count."""
    return self.how in (BUSIEST, WEIGHTED)

  @property
  def keeps_some(self) -> bool:
    """Whether experts stay as they are, so that no number has to divide."""
    return self.how in (BUSIEST, FIRST)

  def levels(self, experts: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The numbers of the levels whose loads count, 1 for the first."""
    if not self.by_load:
      return []
    if len(experts) != len(wanted):
      is_less = math.prod(wanted) < math.prod(experts)
      return [len(experts)] if is_less else []
    return [number for number, (before, after) in enumerate(
        zip(experts, wanted), start=1) if after < before]


def check_numbers(experts: Sequence[int], wanted: Sequence[int], fewer: Fewer):
  """Raises ValueError if `resized` cannot come from one to the other."""
  pairs = list(zip(experts, wanted))
  if len(experts) != len(wanted):
    pairs = [(math.prod(experts), math.prod(wanted))]
  for before, after in pairs:
    if after % before and (before % after if not fewer.keeps_some
                           else after > before):
      remedy = (", or keep some of them: --fewer_experts=busiest or first"
                if after < before else "")
      raise ValueError(
          f"{before} experts cannot become {after}: one number has to divide "
          f"the other. Set another number of experts{remedy}.")


def resized(array: np.ndarray, experts: Sequence[int], wanted: Sequence[int],
            fewer: Fewer = Fewer()) -> np.ndarray:
  """Copies experts to more, makes them fewer, or orders them in levels.

  With as many levels as before, each level is resized by itself; else experts
  are counted through, e = (x * Y + y) * ..., and cut into the new levels.
  Copies are neighbours, and so are those that are merged.

  Args:
    array: [<experts>, <rest>].
    experts: numbers of experts at each level, none if dense.
    wanted: likewise, of the result.
    fewer: how they become fewer.

  Returns:
    [<wanted>, <rest>]

  Raises:
    ValueError: if one number does not divide the other.
  """
  check_numbers(experts, wanted, fewer)
  rest = array.shape[len(experts):]
  needed = fewer.levels(experts, wanted)
  loads = [fewer.loads[axis] if axis + 1 in needed else None
           for axis in range(len(experts))]
  if len(experts) != len(wanted):
    array = array.reshape(math.prod(experts), *rest)
    flat = loads[-1].reshape(-1) if loads and loads[-1] is not None else None
    array, = _resized([array], 0, math.prod(wanted), fewer, flat)
    return array.reshape(*wanted, *rest)
  for axis, number in enumerate(wanted):
    # The loads of this level and those below are of the experts that stay.
    deeper = [load for load in loads[axis + 1:] if load is not None]
    array, *deeper = _resized(
        [array, *deeper], axis, number, fewer, loads[axis])
    deeper = iter(deeper)
    loads[axis + 1:] = [None if load is None else next(deeper)
                        for load in loads[axis + 1:]]
  return array


def _resized(arrays, axis, number, fewer, load):
  """Arrays with as many along an axis.

  Args:
    arrays: the one that is meant, and loads of levels below, [<above>, x, ...].
    axis: that of x.
    number: of the result.
    fewer: as for `resized`.
    load: [<above>, x]; None where it is not needed.
  """
  before = arrays[0].shape[axis]
  if number >= before:
    return [np.repeat(array, number // before, axis) for array in arrays]
  if fewer.keeps_some:
    if not fewer.by_load:  # The first ones.
      load = np.zeros(arrays[0].shape[:axis + 1])
    kept = np.sort(np.argsort(-load, axis, kind="stable")[..., :number], axis)
    return [np.take_along_axis(array, _behind(kept, array), axis)
            for array in arrays]
  if not fewer.by_load:
    return [_cut(arrays[0], axis, number).mean(
        axis + 1, dtype=np.float64).astype(arrays[0].dtype)]
  parts = _cut(np.asarray(load, np.float64), axis, number)
  # Where no token came, all count the same.
  parts = np.where(parts.sum(-1, keepdims=True) > 0.0, parts, 1.0)
  shares = parts / parts.sum(-1, keepdims=True)  # [<above>, number, merged]
  first, *deeper = [_cut(array, axis, number) for array in arrays]
  return [(first * _behind(shares, first)).sum(axis + 1).astype(first.dtype),
          *(one.sum(axis + 1) for one in deeper)]


def _cut(array, axis, number):
  """Neighbours along an axis in an axis of their own, behind it."""
  return array.reshape(*array.shape[:axis], number, -1, *array.shape[axis + 1:])


def _behind(array, other):
  """As many dimensions as another, the new ones last and of size 1."""
  return array.reshape(*array.shape, *[1] * (other.ndim - array.ndim))


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
