"""What all routers share; a router itself is the choice.

Here are logits, word embeddings, the losses, the filling of buffers and the
names of routers. A router gets `Scores` and returns a `TokenChoice`, which says
what each token wants, or an `ExpertChoice`, which says whom each expert takes.

Shapes: `s` is the group size, `x` the experts and `c` the capacity, after any
number of batch dimensions.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import hparams as hparams_lib
from mtf_moe import knobs
from mtf_moe.gating import losses
from mtf_moe.gating import routing
from mtf_moe.gating import word_embeddings


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
    outer_expert_dims: those of the batch dims that have a router each.
  """

  logits: mtf.Tensor
  importance: mtf.Tensor | None
  capacity_dim: mtf.Dimension
  settings: hparams_lib.Level
  train: bool
  linear: Callable[[str], mtf.Tensor]
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
    weights: k times float32 [..., s], the share of each in the token's result.
    wanted: k times float32 [..., s], one where the choice is to be used, else
      zero; None where all are that are no padding.
    balance_loss: a float32 scalar, or None for `losses.balance_loss` of the
      first choices.
    gates: float32 [..., s, x], what the router thinks of all experts, for the
      balancing loss and for the records; None for `Scores.gates`.
  """

  experts: Sequence[mtf.Tensor]
  weights: Sequence[mtf.Tensor]
  wanted: Sequence[mtf.Tensor] | None = None
  balance_loss: mtf.Tensor | None = None
  gates: mtf.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class ExpertChoice:
  """Whom each expert takes.

  Attributes:
    tokens: int32 [..., x, c], numbers of tokens in their group, -1 for none.
    weights: float32 [..., x, c], the share of the expert in their results.
    balance_loss: a float32 scalar.
    gates: as of `TokenChoice`.
    sends_zero_weights: a boolean, whether a token moves whose weight is 0.
    wanted: float32 [..., x], how many tokens wanted each expert, for the
      records; None where tokens want nothing.
  """

  tokens: mtf.Tensor
  weights: mtf.Tensor
  balance_loss: mtf.Tensor
  gates: mtf.Tensor | None = None
  sends_zero_weights: bool = False
  wanted: mtf.Tensor | None = None


class Router:
  """A router. `choose` has to be written, the others where they are needed.

  Attributes:
    needs_whole_sequences: whether it chooses among the tokens of whole
      sequences, so that it cannot decode one position at a time.
  """

  needs_whole_sequences = False

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
    raise NotImplementedError

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


def route(
    router, inputs: mtf.Tensor, outer_expert_dims, experts_dim, capacity_dim,
    settings: hparams_lib.Level, train: bool, variable_dtype, importance=None,
    name: str | None = None, num_microbatches: int | None = None,
    token_embeddings: mtf.Tensor | None = None) -> routing.Routing:
  """Lets a router choose; everything is computed in float32.

  Args:
    router: see `find`.
    inputs: a Tensor [<batch dims>, s, m].
    outer_expert_dims: an optional list of dimensions of `inputs` that have a
      router each: the experts of the levels above.
    experts_dim: the Dimension x of the experts to choose from.
    capacity_dim: the Dimension c of one expert's buffer for one group.
    settings: those of the level.
    train: a boolean.
    variable_dtype: a mtf.VariableDType.
    importance: an optional Tensor [<batch dims>, s], see `Scores`.
    name: the variable scope of the router; by default `scope_name`.
    num_microbatches: an optional integer, into how many parts the training
      step is cut; every part's losses are divided by it.
    token_embeddings: an optional Tensor shaped as `inputs`, the word
      embeddings, needed where settings.word_embed_mode is set.

  Returns:
    a `routing.Routing`

  Raises:
    ValueError: if what the router returns is no choice, or a setting is not
      allowed.
  """
  found = find(router)
  scope = name or scope_name(router)

  def linear(name):
    return mtf.layers.dense(
        gate_inputs, experts_dim, reduced_dims=gate_inputs.shape.dims[-1:],
        expert_dims=outer_expert_dims, use_bias=False,
        variable_dtype=variable_dtype, name=name)

  with tf.variable_scope(scope):  # For variables of the router's own.
    gate_inputs = found.prepare_inputs(mtf.to_float(inputs), settings, train)
  if settings.word_embed_mode is not None:
    gate_inputs = word_embeddings.add_to_gate_inputs(
        gate_inputs, token_embeddings, settings.word_embed_mode)
  logits = linear(scope)
  with tf.variable_scope(scope):
    scores = Scores(
        found.prepare_logits(logits, settings, train), importance,
        capacity_dim, settings, train, linear, tuple(outer_expert_dims or ()))
    choice = _checked(found.choose(scores), scores, router)
  gates = scores.gates if choice.gates is None else choice.gates

  balance_loss, z_loss = choice.balance_loss, None
  wanted: Sequence[mtf.Tensor] = ()
  if isinstance(choice, TokenChoice):
    wanted = _used_only(choice.wanted, scores) or (
        [scores.used] * len(choice.experts))
    if balance_loss is None:
      balance_loss = _balance_loss(choice.experts[0], wanted[0], gates, scores)
  if train and settings.z_loss is not None:
    z_loss = settings.z_loss * losses.router_z_loss(
        scores.logits, experts_dim, importance)
  if num_microbatches and num_microbatches > 1:
    balance_loss, z_loss = (
        loss if loss is None else loss / num_microbatches
        for loss in (balance_loss, z_loss))

  shared = {
      "experts_dim": experts_dim, "group_dim": scores.group_dim,
      "capacity_dim": capacity_dim, "balance_loss": balance_loss,
      "z_loss": z_loss, "gates": gates, "importance": importance}
  if isinstance(choice, ExpertChoice):
    return routing.ExpertRouting(
        tokens=choice.tokens, weights=choice.weights,
        sends_zero_weights=choice.sends_zero_weights, wanted=choice.wanted,
        **shared)
  return routing.TokenRouting(
      choices=routing.fill_buffers(
          choice.experts, choice.weights, wanted, experts_dim, capacity_dim),
      importance_below=found.importance_below(
          settings, len(choice.experts)), **shared)


def _balance_loss(expert, wanted, gates, scores):
  """That of the first choices, as far as they are wanted."""
  mask = mtf.one_hot(expert, scores.experts_dim)  # [..., s, x]
  if scores.importance is not None:  # Else all are.
    mask, gates = mask * wanted, gates * wanted
  return losses.balance_loss(
      mask, gates, scores.group_dim, scores.experts_dim,
      scores.counted(wanted))


def _used_only(wanted, scores):
  """What is wanted, but by padding: that has no slot whatever a router says."""
  if wanted is None or scores.importance is None:
    return wanted
  return [one * scores.used for one in wanted]


def _checked(choice, scores, router):
  """What a router returned, with the dimensions in order.

  Raises:
    ValueError: unless it is what it has to be.
  """
  s, x, c = scores.group_dim, scores.experts_dim, scores.capacity_dim
  *batch, _, _ = scores.logits.shape.dims
  name = name_of(router)
  if isinstance(choice, ExpertChoice):
    dims = {"tokens": [*batch, x, c], "weights": [*batch, x, c],
            "balance_loss": [], "wanted": [*batch, x], "gates": [*batch, s, x]}
  elif isinstance(choice, TokenChoice):
    dims = {"experts": [*batch, s], "weights": [*batch, s],
            "wanted": [*batch, s], "balance_loss": [], "gates": [*batch, s, x]}
    _check_numbers(choice, name)
  else:
    raise knobs.Mistake("gating", name, (
        f"returned {choice!r}: return a gating.TokenChoice or a "
        "gating.ExpertChoice."))

  def in_order(field, value):
    if value is None:
      return None
    if isinstance(value, list | tuple):
      return [in_order(field, one) for one in value]
    wanted = mtf.Shape(dims[field])
    dtype = tf.int32 if field in ("experts", "tokens") else tf.float32
    if not (isinstance(value, mtf.Tensor) and value.dtype == dtype
            and set(value.shape.dims) == set(wanted.dims)):
      found = (f"{value.dtype.name} {value.shape}"
               if isinstance(value, mtf.Tensor) else repr(value))
      raise knobs.Mistake("gating", name, (
          f"returned {field} of {found}, where {dtype.name} {wanted} is "
          "needed."))
    return value if value.shape == wanted else mtf.transpose(value, wanted)

  return dataclasses.replace(choice, **{
      field: in_order(field, getattr(choice, field)) for field in dims})


def _check_numbers(choice, name):
  """Raises ValueError unless all that is said of choices is as many."""
  for field in ("experts", "weights", "wanted"):
    values = getattr(choice, field)
    if values is None and field == "wanted":
      continue
    if not isinstance(values, list | tuple) or not values or (
        len(values) != len(choice.experts)):
      found = (f"{len(values)} {field}" if isinstance(values, list | tuple)
               else f"{field} of {values!r}")
      raise knobs.Mistake("gating", name, (
          f"returned {found}: return a list with a Tensor for each choice of a "
          "token, one at least, and of experts, weights and wanted as many."))
