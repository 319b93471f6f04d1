"""The feed-forward layers of a checkpoint, dense or of experts, by their place.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import re

from mtf_moe import levels as levels_lib

_KERNEL = re.compile(r"(?P<scope>.+)/(?P<which>wi|wi_\d+|wo)/kernel")


@dataclasses.dataclass(frozen=True)
class FeedForward:
  """A feed-forward layer.

  Attributes:
    scope: what its variables are named after, such as
      "decoder/block_000/layer_002/MoE2D".
    experts: their numbers at each level, the first one first; none if dense.
    kernels: the names of its weights behind the scope.
    routers: the names of the routers' weights behind the scope, of each level;
      empty where it has others than the linear layer of each level.
  """

  scope: str
  experts: tuple[int, ...]
  kernels: tuple[str, ...]
  routers: tuple[str, ...]

  @property
  def place(self) -> str:
    """Where it is in the model, whatever it is."""
    return self.scope.rpartition("/")[0]

  def __str__(self):
    return told(self.experts)


def told(experts: Sequence[int]) -> str:
  """Numbers of experts for people."""
  if not experts:
    return "dense"
  return f"{' x '.join(map(str, experts))} experts"


def find(shapes: Mapping[str, Sequence[int]]) -> dict[str, FeedForward]:
  """Finds the feed-forward layers.

  Args:
    shapes: of all variables of a model, by name.

  Returns:
    them by their place
  """
  scopes: dict[str, list[str]] = {}
  for name in sorted(shapes):
    if match := _KERNEL.fullmatch(name):
      scopes.setdefault(match["scope"], []).append(match["which"])
  found = {}
  for scope, kernels in scopes.items():
    # [<experts of the last level>, ..., <of the first>, inputs, outputs]
    *experts, _, _ = shapes[f"{scope}/{kernels[0]}/kernel"]
    layer = FeedForward(
        scope, tuple(reversed(experts)),
        tuple(f"{which}/kernel" for which in kernels),
        _routers(scope, len(experts), shapes))
    found[layer.place] = layer
  return found


def _routers(scope: str, num_levels: int, names: Iterable[str]
             ) -> tuple[str, ...]:
  """The linear layers by which tokens choose, one of each level, or none."""
  inside = [name.removeprefix(f"{scope}/") for name in names
            if name.startswith(f"{scope}/") and name.endswith("/kernel")
            and not _KERNEL.fullmatch(name)]
  if num_levels == 1:  # Named after what the router is.
    return tuple(inside) if len(inside) == 1 else ()
  expected = [f"{level.router}/kernel"
              for level in levels_lib.names(num_levels)] if num_levels else []
  return tuple(expected) if set(expected) == {*inside} else ()
