"""What a router is, and the names of those that there are.

A router gets `Scores` and returns a `TokenChoice`, which says what each token
wants, or an `ExpertChoice`, which says whom each expert takes. What all share
is in `base`.

Shapes: `s` is the group size, `x` the experts and `c` the capacity, after any
number of batch dimensions.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import mesh_tensorflow as mtf

from mtf_moe import hparams as hparams_lib
from mtf_moe import knobs
from mtf_moe import updates


@dataclasses.dataclass(frozen=True)
class Above:
  """What a level above says of the tokens that it has sent.

  Attributes:
    weights: float32 [<batch dims>, s], the product of the weights of the
      choices by which a token is here; 0 in an empty slot.
    load: float32 [<outer expert dims>], see `TokenChoice`, or None where the
      router above has not said it.
  """

  weights: mtf.Tensor
  load: mtf.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a router chooses by.

  Attributes:
    logits: float32 [<batch dims>, s, x].
    importance: a Tensor [<batch dims>, s], 1 where a token counts in full,
      between 0 and 1 where it is a second choice of the level above, 0 at
      padding; or None where all count in full.
    capacity_dim: the Dimension c of one expert's buffer for one group.
    settings: those of the level.
    train: a boolean.
    linear: a function from a name to another linear layer of what the logits
      are made of, float32 [<batch dims>, s, x]; its variable is
      "<router>/<name>/kernel".
    variable: a function from a name and a rule to a variable that the rule
      moves, and no gradient, float32 [<outer expert dims>, x], zeros at the
      beginning, "<router>/<name>" in checkpoints. The rule is a function from
      its value, and from what the choice says of it (`TokenChoice.updates`),
      to its value after the step.
    token_ids: a function that returns int32 [<batch dims>, s], or raises a
      ValueError where the ids are not known.
    above: a function that returns an `Above`, or None at the first level.
    outer_expert_dims: those of the batch dims that have a router each.
  """

  logits: mtf.Tensor
  importance: mtf.Tensor | None
  capacity_dim: mtf.Dimension
  settings: hparams_lib.Level
  train: bool
  linear: Callable[[str], mtf.Tensor]
  variable: Callable[[str, updates.Rule], mtf.Tensor]
  token_ids: Callable[[], mtf.Tensor]
  above: Callable[[], Above | None]
  outer_expert_dims: Sequence[mtf.Dimension] = ()

  @property
  def experts_dim(self) -> mtf.Dimension:
    """x."""
    return self.logits.shape.dims[-1]

  @property
  def group_dim(self) -> mtf.Dimension:
    """s."""
    return self.logits.shape.dims[-2]

  @functools.cached_property
  def gates(self) -> mtf.Tensor:
    """The probability of each expert, float32 [<batch dims>, s, x]."""
    return mtf.softmax(self.logits, self.experts_dim)

  @functools.cached_property
  def full(self) -> mtf.Tensor:
    """One where a token counts in full, else zero: float32 [<batch dims>, s].
    """
    return self._where(mtf.equal, 1.0)

  @functools.cached_property
  def used(self) -> mtf.Tensor:
    """Zero at padding, else one: float32 [<batch dims>, s]."""
    return self._where(mtf.greater, 0.0)

  def counted(self, wanted: mtf.Tensor) -> mtf.Tensor | None:
    """Over which tokens the balancing loss takes its means.

    Args:
      wanted: float32 [<batch dims>, s], one where a token's choice counts.

    Returns:
      the same, or None for all of the group
    """
    if self.settings.balance_over_used and self.importance is not None:
      return wanted
    return None

  def _where(self, compare, value):
    if self.importance is None:
      return mtf.ones(
          self.logits.mesh, mtf.Shape(self.logits.shape.dims[:-1]))
    return mtf.to_float(compare(self.importance, value))


@dataclasses.dataclass(frozen=True)
class TokenChoice:
  """What each token wants. Earlier choices have their slots first.

  Attributes:
    experts: k times int32 [..., s], its choices in order of preference.
    weights: k times float32 [..., s], the share of each in the token's result,
      none of them negative.
    wanted: k times float32 [..., s], one where the choice is to be used, else
      zero; None where all are that are no padding.
    balance_loss: a float32 scalar, or None for `losses.balance_loss` of the
      first choices.
    gates: float32 [..., s, x], what the router thinks of all experts, for the
      balancing loss and for the records; None for `Scores.gates`.
    updates: for each name of a `Scores.variable` that moves in this step,
      float32 [<outer expert dims>, x], what its rule moves it by. Summed over
      the microbatches of a step.
    load: float32 [<outer expert dims>, x], a smooth count of the tokens of each
      expert, for a router of the level below; None where there is none.
  """

  experts: Sequence[mtf.Tensor]
  weights: Sequence[mtf.Tensor]
  wanted: Sequence[mtf.Tensor] | None = None
  balance_loss: mtf.Tensor | None = None
  gates: mtf.Tensor | None = None
  updates: Mapping[str, mtf.Tensor] = dataclasses.field(default_factory=dict)
  load: mtf.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class ExpertChoice:
  """Whom each expert takes.

  Attributes:
    tokens: int32 [..., x, c], numbers of tokens in their group, -1 for none.
    weights: float32 [..., x, c], the share of the expert in their results.
    balance_loss: a float32 scalar.
    gates, updates: as of `TokenChoice`.
    sends_zero_weights: a boolean, whether a token moves whose weight is 0.
    wanted: float32 [..., x], how many tokens wanted each expert, for the
      records; None where tokens want nothing.
  """

  tokens: mtf.Tensor
  weights: mtf.Tensor
  balance_loss: mtf.Tensor
  gates: mtf.Tensor | None = None
  updates: Mapping[str, mtf.Tensor] = dataclasses.field(default_factory=dict)
  sends_zero_weights: bool = False
  wanted: mtf.Tensor | None = None


class Router:
  """A router. `choose` has to be written, the others where they are needed.

  Attributes:
    needs_whole_sequences: whether it chooses among the tokens of whole
      sequences, so that it cannot decode one position at a time.
    balanced_by: the setting of which a larger value balances experts more, or
      None where none does.
    has_logits: whether it chooses by a linear layer of the tokens. Without,
      there is no such layer, and its logits are zeros.
    tries_again: whether a choice is there for when the one before finds no
      slot, and not beside it.
  """

  needs_whole_sequences = False
  balanced_by: str | None = "loss_coef"
  has_logits = True
  tries_again = False

  def prepare_inputs(self, inputs: mtf.Tensor, settings, train: bool
                     ) -> mtf.Tensor:
    """Changes what the router sees, float32 [..., s, m]; words come after."""
    del settings, train
    return inputs

  def prepare_logits(self, logits: mtf.Tensor, settings, train: bool
                     ) -> mtf.Tensor:
    """Changes the logits, float32 [..., s, x]."""
    del settings, train
    return logits

  def choose(self, scores: Scores) -> TokenChoice | ExpertChoice:
    """Chooses.

    Args:
      scores: a `Scores`.

    Returns:
      a `TokenChoice` or an `ExpertChoice`
    """
    raise NotImplementedError(
        f"The router {type(self).__name__} has no method `choose`: write one.")

  def importance_below(self, settings, num_choices: int
                       ) -> tuple[float, ...] | None:
    """What each choice counts at the next level.

    Args:
      settings: those of the level.
      num_choices: an integer, k.

    Returns:
      k numbers, 1 for a choice that counts in full there; or None for 1 where
      the weight is above 0.5, else 0.5.
    """
    if settings.importance_below == "full":
      return (1.0,) * num_choices
    return (1.0,) + (0.5,) * (num_choices - 1)


class _Function(Router):
  """A router that is only a function."""

  def __init__(self, function):
    self._function = function

  @property
  def function(self):
    return self._function

  def choose(self, scores):
    return self._function(scores)


_routers: dict[str, Router] = {}


def register(name: str) -> Callable[[Any], Any]:
  """A decorator that makes a router known under a name.

  Args:
    name: an identifier, for gin (`MoE2D.moe_gating = "noisy_switch"`) and, at a
      single level, for the router's variable ("noisy_switch_gating/kernel").

  Returns:
    a function from a subclass or an instance of `Router`, or a function from
    `Scores` to a choice, to the same.

  Raises:
    ValueError: if there is a router of this name, or if it is none.
  """
  if not (isinstance(name, str) and name.isidentifier()):
    raise ValueError(
        f"{name!r} is no name for a router: use a string of letters, digits "
        'and underscores, as in @gating.register("noisy_switch").')

  def add(router):
    if name in _routers:
      raise ValueError(
          f"There is a router {name!r} already: register yours under another "
          "name.")
    if isinstance(router, type) and issubclass(router, Router):
      _routers[name] = router()
    elif isinstance(router, Router):
      _routers[name] = router
    elif callable(router) and not isinstance(router, type):
      _routers[name] = _Function(router)
    else:
      raise ValueError(
          f"{router!r} is no router: register a subclass of gating.Router, or "
          "a function of gating.Scores.")
    return router

  return add


def names() -> tuple[str, ...]:
  """The names of all routers, in the order in which they were registered."""
  return tuple(_routers)


def find(given) -> Router:
  """The router that is meant.

  Args:
    given: its name, a `Router` or a function from `Scores` to a choice.

  Raises:
    ValueError: if there is none of this name.
  """
  if isinstance(given, Router):
    return given
  if isinstance(given, str) and given in _routers:
    return _routers[given]
  if callable(given) and not isinstance(given, type):
    return _Function(given)
  raise knobs.Mistake(
      "gating", given,
      f"is not known. Choose one of: {', '.join(map(repr, names()))}; or "
      "--module_import the file that registers it.")


def name_of(given) -> str:
  """What a router is called: its name, or that of its function or class."""
  if isinstance(given, str):
    return given
  for name, known in _routers.items():
    if known is given or getattr(known, "function", None) is given:
      return name
  name = getattr(given, "__name__", type(given).__name__)
  return name if name.isidentifier() else "router"  # A lambda has none.


def scope_name(given) -> str:
  """What a router's variables are called where there is one level."""
  return f"{name_of(given)}_gating"
