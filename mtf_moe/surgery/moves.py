"""What every variable of a model is made from, said before it is done."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math

import numpy as np

from mtf_moe.surgery import experts
from mtf_moe.surgery import layers
from mtf_moe.surgery import loads as loads_lib
from mtf_moe.surgery.experts import Fewer
from mtf_moe.surgery.layers import FeedForward
from mtf_moe.train import saved_variables

ANEW, AS_IT_IS = "drawn anew", "as it is"
# A router that copies experts cannot tell the copies apart without.
_ROUTER_NOISE = 0.01


@dataclasses.dataclass(frozen=True)
class Move:
  """How a variable of the new checkpoint comes about.

  Attributes:
    target: its name.
    sources: names of variables of the old one; none if it is drawn anew.
    how: in words.
    make: a function from the arrays of the sources to the new one, of float32
      if they are of floating-point numbers.
  """

  target: str
  sources: tuple[str, ...]
  how: str
  make: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
  """What is left to choose.

  Attributes:
    noise: added to copies of experts, in standard deviations of their weights.
    slots: whether what the optimizer keeps of variables is taken over.
    seed: of noise.
    fewer: how experts become fewer, as `experts.Fewer` has it.
  """

  noise: float = 0.0
  slots: bool = True
  seed: int = 0
  fewer: str = experts.MEAN


def plan(source: Mapping[str, Sequence[int]],
         target: Mapping[str, Sequence[int]], options: Options,
         loads: loads_lib.Loads | None = None) -> list[Move]:
  """Finds what becomes of what.

  Args:
    source: the shapes of all variables of a checkpoint, by name.
    target: those that the configuration trains, likewise.
    options: `Options`.
    loads: of the experts of the checkpoint, where options ask for them.

  Returns:
    a `Move` for each variable of the configuration but the step, by name

  Raises:
    ValueError: if a variable has another shape and is none of experts, numbers
      of experts do not fit together, or loads are asked for and not known.
  """
  theirs, ours = layers.find(source), layers.find(target)
  scopes = tuple(f"{layer.scope}/" for layer in ours.values())
  moves: dict[str, Move] = {}
  for place, layer in ours.items():
    if place in theirs:
      for move in _of_layer(theirs[place], layer, source, target, options,
                            loads):
        moves[move.target] = move
  variables = saved_variables.without_slots(target)
  for name in sorted(target):
    if name == saved_variables.STEP or name in moves:
      continue
    is_slot = name not in variables
    if name not in source or (is_slot and not options.slots):
      moves[name] = _anew(name)
    elif list(source[name]) == list(target[name]):
      moves[name] = Move(name, (name,), AS_IT_IS, lambda array: array)
    elif is_slot or name.startswith(scopes):
      # Of a variable that is made otherwise, or of another kind of router.
      moves[name] = _anew(name)
    else:
      raise _other_sizes(name, source[name], target[name])
  return [moves[name] for name in sorted(moves)]


def _other_sizes(name, there, here):
  return ValueError(
      f"--from has {name!r} in the shape {list(there)}, and the configuration "
      f"in {list(here)}: only feed-forward layers change, in their experts and "
      "hidden units. Set the other sizes as they are there.")


def _anew(name):
  """A variable with the first value that the configuration gives it."""
  return Move(name, (), ANEW, lambda: None)


def unused(source: Mapping[str, Sequence[int]], moves: Sequence[Move]
           ) -> list[str]:
  """The variables of the old checkpoint from which nothing is made."""
  used = {name for move in moves for name in move.sources}
  return sorted(set(source) - used - {saved_variables.STEP})


def _of_layer(theirs: FeedForward, ours: FeedForward, source, target, options,
              loads):
  """Moves of a feed-forward layer: experts, their slots, and routers."""
  if theirs.kernels != ours.kernels:
    raise ValueError(
        f"{ours.scope} has the weights {', '.join(ours.kernels)}, and "
        f"{theirs.scope} of --from {', '.join(theirs.kernels)}: set the same "
        "activation.")
  fewer = Fewer(options.fewer)
  if levels := fewer.levels(theirs.experts, ours.experts):
    assert loads is not None
    fewer = Fewer(options.fewer, loads.of(
        theirs, levels, f"--fewer_experts={options.fewer}"))
  for kernel in ours.kernels:
    yield from _of_kernel(
        theirs, ours, kernel, source, target, options, fewer)
  if ours.routers and theirs.routers:
    yield from _of_routers(theirs, ours, options, fewer)


def _of_kernel(theirs, ours, kernel, source, target, options, fewer):
  """Moves of the weights of all experts, and of what optimizers keep of them.
  """
  name, other = f"{ours.scope}/{kernel}", f"{theirs.scope}/{kernel}"
  shape = list(source[other])[len(theirs.experts):]
  wanted = list(target[name])[len(ours.experts):]
  if shape != wanted:
    yield _parts(theirs, ours, kernel, shape, wanted, options)
    return
  experts.check_numbers(theirs.experts, ours.experts, fewer)
  same = theirs.experts == ours.experts
  how = AS_IT_IS if same else _told(theirs, ours, options)
  behind = [one.removeprefix(name) for one in target
            if one.startswith(f"{name}_") and options.slots]
  for end in ("", *sorted(behind)):
    there, here = source.get(f"{other}{end}"), target[f"{name}{end}"]
    # Slots have experts ahead, too, but for scalars, and for those of factored
    # optimizers where experts are more than all else.
    if there is None or _rest(theirs, there) is None or (
        _rest(theirs, there) != _rest(ours, here)):
      continue
    yield Move(f"{name}{end}", (f"{other}{end}",), how, _Experts(
        theirs.experts, ours.experts, fewer,
        _noise(theirs, ours, options, end), options.seed))


def _rest(layer, shape):
  """A shape without the experts ahead; None if they are not there."""
  ahead, rest = list(shape[:len(layer.experts)]), shape[len(layer.experts):]
  return list(rest) if ahead == list(reversed(layer.experts)) else None


def _noise(theirs, ours, options, end):
  """Copies are told apart by noise; what an optimizer keeps stays as it is."""
  more = math.prod(ours.experts) > math.prod(theirs.experts)
  return options.noise if more and not end else 0.0


_FEWER = {experts.MEAN: "mean", experts.WEIGHTED: "mean by load",
          experts.BUSIEST: "the busiest stay", experts.FIRST: "the first stay"}


def _told(theirs, ours, options):
  before, after = math.prod(theirs.experts), math.prod(ours.experts)
  same_levels = len(theirs.experts) == len(ours.experts)
  fewer = before > after or (same_levels and any(
      a > b for a, b in zip(theirs.experts, ours.experts)))
  words = ["copied"] * (before < after) + [_FEWER[options.fewer]] * fewer
  if not words:
    return f"{theirs} as {ours}"
  return f"{', '.join(words)}: {theirs} to {ours}" + (
      f", noise {options.noise:g}"
      if _noise(theirs, ours, options, "") else "")


@dataclasses.dataclass(frozen=True)
class _Experts:
  """Makes the array of all experts of a checkpoint from another's."""

  before: tuple[int, ...]
  after: tuple[int, ...]
  fewer: Fewer
  noise: float
  seed: int

  def __call__(self, array):
    array = experts.from_checkpoint(array, len(self.before))
    array = experts.resized(array, self.before, self.after, self.fewer)
    if self.noise:
      array = _with_noise(array, self.noise, self.seed)
    return experts.to_checkpoint(array, len(self.after))


def _with_noise(array, noise, seed):
  drawn = np.random.default_rng(seed).normal(
      0.0, noise * float(np.std(array)), array.shape)
  return (array + drawn).astype(array.dtype)


def _parts(theirs, ours, kernel, shape, wanted, options):
  """The move that cuts the hidden units of a dense layer."""
  axis = 0 if kernel.startswith("wo") else 1
  if shape[1 - axis] != wanted[1 - axis]:
    raise _other_sizes(f"{theirs.scope}/{kernel}", shape, wanted)
  if theirs.experts or not ours.experts or shape[axis] % wanted[axis]:
    raise ValueError(
        f"{ours.scope}/{kernel} has {wanted} for each expert, and "
        f"{theirs.scope}/{kernel} of --from {shape}: set hidden_size to "
        f"{shape[axis]}, or, to cut a dense layer into parts, to a number that "
        "divides that.")
  parts = shape[axis] // wanted[axis]
  number = math.prod(ours.experts)
  if number % parts:
    raise ValueError(
        f"{theirs.scope} has {shape[axis]} hidden units, {parts} parts of "
        f"{wanted[axis]}, and the {number} experts of {ours.scope} are no "
        "multiple of that: set another number of experts, or another "
        "hidden_size.")

  def make(array):
    cut = experts.parts_of_hidden(array, kernel, wanted[axis])
    tiled = np.concatenate([cut] * (number // parts))
    tiled = experts.resized(tiled, (number,), ours.experts)
    if options.noise:
      tiled = _with_noise(tiled, options.noise, options.seed)
    return experts.to_checkpoint(tiled, len(ours.experts))

  return Move(f"{ours.scope}/{kernel}", (f"{theirs.scope}/{kernel}",),
              f"{parts} parts of the hidden units, in turns", make)


def _of_routers(theirs, ours, options, fewer):
  """Moves of the routers of all levels."""
  names = [f"{theirs.scope}/{router}" for router in theirs.routers]
  wanted = [f"{ours.scope}/{router}" for router in ours.routers]
  if len(names) != len(wanted):
    yield from _of_other_levels(theirs, ours, names, wanted, options, fewer)
    return
  for number, (name, other) in enumerate(zip(wanted, names), start=1):
    before, after = theirs.experts[:number], ours.experts[:number]
    if before == after:
      if name != other:  # Else with all that has the same name.
        yield Move(name, (other,), AS_IT_IS, lambda array: array)
      continue
    resized = _Router(before, after, fewer, options)
    yield Move(name, (other,), resized.told(), resized.of_level)


def _of_other_levels(theirs, ours, names, wanted, options, fewer):
  """Moves of routers in other levels: by way of one among all experts."""
  resized = _Router(theirs.experts, ours.experts, fewer, options)

  def make(number, *kernels):
    flat = experts.flat_router([
        experts.router_from_checkpoint(kernel) for kernel in kernels])
    made = experts.routers_of_levels(resized(flat))
    return experts.router_to_checkpoint(made[number])

  for number, name in enumerate(wanted):
    yield Move(name, tuple(names), resized.told(), functools.partial(
        make, number))


@dataclasses.dataclass(frozen=True)
class _Router:
  """Makes a router among some experts from one among others."""

  before: tuple[int, ...]
  after: tuple[int, ...]
  fewer: Fewer
  options: Options

  @property
  def noise(self) -> float:
    more = math.prod(self.after) > math.prod(self.before)
    return max(self.options.noise, _ROUTER_NOISE) if more else 0.0

  def told(self) -> str:
    return (f"router of {layers.told(self.before)} as of "
            f"{layers.told(self.after)}" + (
                f", noise {self.noise:g}" if self.noise else ""))

  def of_level(self, kernel):
    """The same in the order of a checkpoint."""
    return experts.router_to_checkpoint(
        self(experts.router_from_checkpoint(kernel)))

  def __call__(self, kernel):
    """From float32 [inputs, <experts before>] to those after."""
    ahead = np.moveaxis(kernel, 0, -1)  # [x, y, ..., inputs]
    ahead = experts.resized(ahead, self.before, self.after, self.fewer)
    if self.noise:
      ahead = _with_noise(ahead, self.noise, self.options.seed)
    return np.moveaxis(ahead, -1, 0)
