"""What all routers share; a router itself is the choice.

Logits, word embeddings, losses, and what is made of a choice.

Shapes: `s` is the group size, `x` the experts and `c` the capacity, after any
number of batch dimensions.
"""

from collections.abc import Callable, Mapping
import dataclasses

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import hparams as hparams_lib
from mtf_moe import knobs
from mtf_moe import operations
from mtf_moe import updates
from mtf_moe.gating import fill_order
from mtf_moe.gating import losses
from mtf_moe.gating import router as router_lib
from mtf_moe.gating import routing
from mtf_moe.gating import word_embeddings


def route(
    router, inputs: mtf.Tensor, outer_expert_dims, experts_dim, capacity_dim,
    settings: hparams_lib.Level, train: bool, variable_dtype, importance=None,
    name: str | None = None, num_microbatches: int | None = None,
    token_embeddings: mtf.Tensor | None = None,
    token_ids: Callable[[], mtf.Tensor | None] = lambda: None,
    above: Callable[[], router_lib.Above] | None = None) -> routing.Routing:
  """Lets a router choose; everything is computed in float32.

  Args:
    router: see `router.find`.
    inputs: a Tensor [<batch dims>, s, m].
    outer_expert_dims: an optional list of dimensions of `inputs` that have a
      router each: the experts of the levels above.
    experts_dim: the Dimension x of the experts to choose from.
    capacity_dim: the Dimension c of one expert's buffer for one group.
    settings: those of the level.
    train: a boolean.
    variable_dtype: a mtf.VariableDType.
    importance: an optional Tensor [<batch dims>, s], see `router.Scores`.
    name: the variable scope of the router; by default `router.scope_name`.
    num_microbatches: an optional integer, into how many parts the training
      step is cut; every part's losses are divided by it.
    token_embeddings: an optional Tensor shaped as `inputs`, the word
      embeddings, needed where settings.word_embed_mode is set.
    token_ids: a function that returns int32 [<batch dims>, s], or None where
      ids are not known.
    above: an optional function that returns a `router.Above`.

  Returns:
    a `routing.Routing`

  Raises:
    ValueError: if what the router returns is no choice, or a setting is not
      allowed.
  """
  found = router_lib.find(router)
  scope = name or router_lib.scope_name(router)
  with tf.variable_scope(scope):  # For variables of the router's own.
    gate_inputs = found.prepare_inputs(mtf.to_float(inputs), settings, train)
  if settings.word_embed_mode is not None:
    gate_inputs = word_embeddings.add_to_gate_inputs(
        gate_inputs, token_embeddings, settings.word_embed_mode)
  asked = _Asked(
      router_lib.name_of(router), gate_inputs, tuple(outer_expert_dims or ()),
      experts_dim, variable_dtype, token_ids)
  logits = asked.linear(scope) if found.has_logits else mtf.zeros(
      inputs.mesh, [*inputs.shape.dims[:-1], experts_dim])
  with tf.variable_scope(scope):
    scores = router_lib.Scores(
        found.prepare_logits(logits, settings, train), importance,
        capacity_dim, settings, train, asked.linear, asked.variable, asked.ids,
        above or (lambda: None), asked.outer_expert_dims)
    choice = _checked(found.choose(scores), scores, asked.router)
  choice = _moving(choice, asked)
  gates = scores.gates if choice.gates is None else choice.gates

  wanted = _wanted(choice, scores)
  balance_loss = _balance_loss(choice, wanted, gates, scores)
  z_loss = _z_loss(found, scores)
  if num_microbatches and num_microbatches > 1:
    balance_loss, z_loss = (
        loss if loss is None else loss / num_microbatches
        for loss in (balance_loss, z_loss))
  shared = {
      "experts_dim": experts_dim, "group_dim": scores.group_dim,
      "capacity_dim": capacity_dim, "balance_loss": balance_loss,
      "z_loss": z_loss, "gates": gates, "importance": importance}
  if isinstance(choice, router_lib.ExpertChoice):
    return routing.ExpertRouting(
        tokens=choice.tokens, weights=choice.weights,
        sends_zero_weights=choice.sends_zero_weights, wanted=choice.wanted,
        **shared)
  return routing.TokenRouting(
      load=choice.load, choices=routing.fill_buffers(
          choice.experts, choice.weights, wanted, experts_dim, capacity_dim,
          fill_order.priority(gates, experts_dim, settings)),
      importance_below=_importance_below(found, choice, settings, asked.router),
      tries_again=found.tries_again,
      **shared)


@dataclasses.dataclass(frozen=True)
class _Asked:
  """What a router may ask for while it chooses; see `router.Scores`.

  Attributes:
    router: its name.
    gate_inputs: float32 [<batch dims>, s, m], what logits are made of.
    outer_expert_dims: the experts of the levels above.
    experts_dim: the Dimension x.
    variable_dtype: a mtf.VariableDType.
    token_ids: see `route`.
    variables: those that it has made, by name.
  """

  router: str
  gate_inputs: mtf.Tensor
  outer_expert_dims: tuple[mtf.Dimension, ...]
  experts_dim: mtf.Dimension
  variable_dtype: mtf.VariableDType
  token_ids: Callable[[], mtf.Tensor | None]
  variables: dict[str, mtf.Tensor] = dataclasses.field(default_factory=dict)

  @property
  def shape(self) -> mtf.Shape:
    """That of a number for each expert: [<outer expert dims>, x]."""
    return mtf.Shape([*self.outer_expert_dims, self.experts_dim])

  def linear(self, name: str) -> mtf.Tensor:
    return mtf.layers.dense(
        self.gate_inputs, self.experts_dim,
        reduced_dims=self.gate_inputs.shape.dims[-1:],
        expert_dims=list(self.outer_expert_dims), use_bias=False,
        variable_dtype=self.variable_dtype, name=name)

  def variable(self, name: str, rule: updates.Rule) -> mtf.Tensor:
    if not callable(rule) or name in self.variables:
      raise knobs.Mistake("gating", self.router, (
          f"makes the variable {name!r} twice, or with {rule!r} for a rule: "
          "make it once, with a function of its value and of what moves it."))
    made = updates.variable(self.gate_inputs.mesh, name, self.shape, rule)
    self.variables[name] = made
    return operations.stop_gradient(made)

  def ids(self) -> mtf.Tensor:
    found = self.token_ids()
    if found is None:
      raise knobs.Mistake("gating", self.router, (
          "chooses by the ids of tokens, and the layer is given none: pass "
          "token_ids, or use another router where inputs are no ids."))
    return found


def _moving(choice, asked):
  """A choice whose weights carry what moves the router's variables.

  Args:
    choice: a `TokenChoice` or an `ExpertChoice`.
    asked: what its router has asked for.

  Returns:
    the choice

  Raises:
    ValueError: if an update is none.
  """
  if not isinstance(choice.updates, Mapping):
    raise knobs.Mistake("gating", asked.router, (
        f"returned updates of {choice.updates!r}: return a dict from the names "
        "of its variables to what moves them."))
  for name, moved_by in choice.updates.items():
    if name not in asked.variables:
      raise knobs.Mistake("gating", asked.router, (
          f"returned an update of {name!r}, and its variables are "
          f"{list(asked.variables)}: make it by scores.variable."))
    moved_by = _in_order(moved_by, f"the update of {name!r}", asked.shape,
                         tf.float32, asked.router)

    def carrying(weights, variable=asked.variables[name], moved_by=moved_by):
      return updates.carried(weights, variable, moved_by)

    weights = choice.weights
    choice = dataclasses.replace(
        choice, weights=[carrying(weights[0]), *weights[1:]]
        if isinstance(weights, list) else carrying(weights))
  return choice


def _importance_below(found, choice, settings, router):
  """What each choice counts at the next level; see `Router`."""
  below = found.importance_below(settings, len(choice.experts))
  if below is not None and len(below) != len(choice.experts):
    raise knobs.Mistake("gating", router, (
        f"returned {below!r} for what choices count at the next level: return "
        f"a number for each of {len(choice.experts)}, or None."))
  return below


def _wanted(choice, scores):
  """For each choice of tokens, ones where it is wanted, but by padding.

  Padding has no slot whatever a router says.
  """
  if isinstance(choice, router_lib.ExpertChoice):
    return []
  if choice.wanted is None:
    return [scores.used] * len(choice.experts)
  if scores.importance is None:
    return choice.wanted
  return [one * scores.used for one in choice.wanted]


def _z_loss(found, scores):
  """The router z-loss times its weight, or None."""
  weight = scores.settings.z_loss
  if not scores.train or weight is None or not found.has_logits:
    return None
  return weight * losses.router_z_loss(
      scores.logits, scores.experts_dim, scores.importance)


def _balance_loss(choice, wanted, gates, scores):
  """The router's own, or that of the first choices that are wanted."""
  if choice.balance_loss is not None:
    return choice.balance_loss
  mask = mtf.one_hot(choice.experts[0], scores.experts_dim)  # [..., s, x]
  if scores.importance is not None:  # Else all are.
    mask, gates = mask * wanted[0], gates * wanted[0]
  return losses.balance_loss(
      mask, gates, scores.group_dim, scores.experts_dim,
      scores.counted(wanted[0]))


def _checked(choice, scores, router):
  """What a router returned, with the dimensions in order.

  Raises:
    ValueError: unless it is what it has to be.
  """
  s, x, c = scores.group_dim, scores.experts_dim, scores.capacity_dim
  *batch, _, _ = scores.logits.shape.dims
  if isinstance(choice, router_lib.ExpertChoice):
    dims = {"tokens": [*batch, x, c], "weights": [*batch, x, c],
            "balance_loss": [], "wanted": [*batch, x], "gates": [*batch, s, x]}
  elif isinstance(choice, router_lib.TokenChoice):
    dims = {"experts": [*batch, s], "weights": [*batch, s],
            "wanted": [*batch, s], "balance_loss": [], "gates": [*batch, s, x],
            "load": [*scores.outer_expert_dims, x]}
    _check_numbers(choice, router)
  else:
    raise knobs.Mistake("gating", router, (
        f"returned {choice!r}: return a gating.TokenChoice or a "
        "gating.ExpertChoice."))

  def in_order(field, value):
    if value is None:
      return None
    if isinstance(value, list | tuple):
      return [in_order(field, one) for one in value]
    dtype = tf.int32 if field in ("experts", "tokens") else tf.float32
    return _in_order(value, field, mtf.Shape(dims[field]), dtype, router)

  return dataclasses.replace(choice, **{
      field: in_order(field, getattr(choice, field)) for field in dims})


def _in_order(value, what, shape, dtype, router):
  """A Tensor that a router returned, with the dimensions in order.

  Raises:
    ValueError: unless it has these dimensions and this type.
  """
  if not (isinstance(value, mtf.Tensor) and value.dtype == dtype
          and set(value.shape.dims) == set(shape.dims)):
    found = (f"{value.dtype.name} {value.shape}"
             if isinstance(value, mtf.Tensor) else repr(value))
    raise knobs.Mistake("gating", router, (
        f"returned {what} of {found}, where {dtype.name} {shape} is needed."))
  return value if value.shape == shape else mtf.transpose(value, shape)


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
