"""The layers for mesh_tensorflow.transformer, configured by gin."""

from collections.abc import Mapping
import contextlib
import functools
import inspect
import logging
import types

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer
from tensorflow_estimator import estimator as tf_estimator

from mtf_moe import arguments
from mtf_moe import contexts
from mtf_moe import experts as experts_lib
from mtf_moe import gating
from mtf_moe import hparams as hparams_lib
from mtf_moe import knobs
from mtf_moe import layer
from mtf_moe import recomputation
from mtf_moe.changeable_hparams import ChangeableHparams
from mtf_moe.hparams import Level
from mtf_moe.hparams import MoeHparams

_logger = logging.getLogger(__name__)

# LayerStack.recompute_grads needs it, in any program that builds a mixture.
recomputation.install()

# The complete names of the layers in gin.
LAYERS = ("mesh_tensorflow.transformer.moe.MoE1D", "mtf_moe.MoE2D",
          "mtf_moe.MoE")

# In all others a model is used, and the result for one sequence should not
# depend on its neighbours.
_MODES_WITH_CAPACITIES = (
    tf_estimator.ModeKeys.TRAIN, tf_estimator.ModeKeys.EVAL)


def _with_parameters_of_hparams(first: dict, last: dict, without=()):
  """A class decorator that writes down which parameters a layer takes.

  They are those that `MoeHparams` has, which are explained there; callers, gin
  and `help` see them as if they stood in the class.

  Args:
    first: parameters ahead of them, with their defaults.
    last: those behind them.
    without: names of hyperparameters that are no parameters.
  """
  names = [name for name in MoeHparams.names()
           if name not in ("moe_num_experts", "moe_levels", *without)]
  parameters = {
      **first,
      **{_gin_name(name): MoeHparams.default(name) for name in names}, **last}

  def decorate(cls):
    init = cls.__init__

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
      try:
        given = signature.bind(self, *args, **kwargs)
      except TypeError as error:
        raise TypeError(f"{cls.__name__}: {error}.") from None
      given.apply_defaults()
      init(**given.arguments)

    signature = inspect.Signature(
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        + [inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
           for name, default in parameters.items()])
    setattr(checked, "__signature__", signature)  # noqa: B010
    # Where gin looks for parameters, it would find **parameters: any name.
    delattr(checked, "__wrapped__")
    cls.__init__ = checked
    return cls

  return decorate


def _gin_name(name):
  """What a hyperparameter is called in gin."""
  return name if name == "moe_gating" else name.removeprefix(knobs.PREFIX)


class _Mixture(transformer.TransformerLayer):
  """What the layers have in common.

  A subclass of one of them passes other values on, `super().__init__(
  **{"group_size": 512, **kwargs})`, or sets them afterwards,
  `self._hparams.moe_group_size = 512`.
  """

  # What hyperparameters are called here whose name is another.
  _names: Mapping[str, str] = types.MappingProxyType({})

  def _set(self, num_experts, experts, parameters, levels=None):
    """Checks the parameters and keeps them.

    Args:
      num_experts: of the levels.
      experts: the network inside the experts.
      parameters: the other hyperparameters, by their name in gin.
      levels: a list of `Level`s, or None.
    """
    self._called = _called_in_gin(type(self))
    self._experts = experts
    with self._mistakes_named():
      sizes = {"moe_num_experts": num_experts} if levels is None else {
          "moe_levels": levels}
      self._hparams = ChangeableHparams(
          **sizes,
          **{name: parameters[_gin_name(name)] for name in MoeHparams.names()
             if _gin_name(name) in parameters})
      for number, level in enumerate(self._hparams.levels):
        try:
          gating.find(level.router)
        except knobs.Mistake as mistake:
          if levels is not None:
            mistake = mistake.of(f"{self._called}.levels[{number}]",
                                 lambda name: "router")
          raise mistake from None
      if not callable(experts):
        raise knobs.Mistake("experts", experts, (
            "is no function: use one with the arguments of "
            "mtf_moe.experts.feed_forward."))
      if experts is experts_lib.feed_forward:
        experts_lib.check_activation(self._hparams.moe_activation)

  @contextlib.contextmanager
  def _mistakes_named(self):
    """A context in which mistakes are told with the name of this layer."""
    try:
      yield
    except knobs.Mistake as mistake:
      raise mistake.of(self._called, self._parameter) from None

  def _parameter(self, name):
    """What a hyperparameter is called here."""
    return self._names.get(name, name)

  @property
  def hparams(self) -> MoeHparams:
    """The parameters, under the names that `MoeHparams` gives them."""
    return MoeHparams.of(self._hparams)

  def call(self, context, x, losses=None):
    """Applies the layer and adds its loss to the context's.

    Args:
      context: a transformer.Context.
      x: a Tensor [<batch dims>, model], of any mode: whole sequences, a single
        position, or one position of every beam.
      losses: not used.

    Returns:
      a Tensor [<batch dims>, output], or a list of them where the experts have
      several outputs

    Raises:
      NotImplementedError: with an ensemble.
      ValueError: if the layer cannot be built, or not decode.
    """
    if context.model.ensemble_dim:
      raise NotImplementedError(
          f"{self._called} does not work with ensembles: set "
          "Unitransformer.ensemble = None.")
    self._check_routers(context)
    *batch_dims, depth = x.shape.dims
    hparams = self.hparams
    token_dims = contexts.as_batch_and_length(batch_dims)
    if context.mode not in _MODES_WITH_CAPACITIES:
      hparams = hparams.for_inference()
    ids = contexts.token_ids(context, batch_dims)
    nonpadding = contexts.nonpadding(context, ids)
    if nonpadding is not None:
      nonpadding = mtf.reshape(
          arguments.nonpadding(nonpadding, x), token_dims)
    embeddings = None
    if any(level.word_embed_mode is not None for level in hparams.levels):
      embeddings = mtf.reshape(context.input_embeddings, [*token_dims, depth])
    with self._mistakes_named():
      outputs, loss = layer.apply(
          mtf.reshape(x, [*token_dims, depth]),
          hparams.moe_output_dim or context.model.model_dim,
          hparams,
          context.train,
          layout=context.model.layout,
          mesh_shape=context.model.mesh_shape,
          nonpadding=nonpadding,
          num_microbatches=context.num_microbatches,
          token_embeddings=embeddings,
          token_ids=None if ids is None else mtf.reshape(ids, token_dims),
          experts=self._experts,
          # As a subclass of mesh_tensorflow's class may set it.
          activation=getattr(self, "_activation", None),
          variable_dtype=context.variable_dtype,
          called=self._called)
    several = isinstance(outputs, list)
    outputs = [mtf.reshape(y, batch_dims + y.shape.dims[-1:])
               for y in (outputs if several else [outputs])]
    if context.losses is not None:
      outputs[0] = recomputation.leave(context.losses, loss, outputs[0])
    return outputs if several else outputs[0]

  def _check_routers(self, context):
    """Raises ValueError, or warns, where future tokens would have a say."""
    if not context.model.autoregressive:
      return
    self._check_fill_order(context)
    for level in self.hparams.levels:
      if not gating.find(level.router).needs_whole_sequences:
        continue
      says = (
          f"{self._called}.moe_gating = {gating.name_of(level.router)!r} lets "
          "experts choose among the tokens of whole sequences")
      if context.mode == "incremental":
        raise ValueError(
            f"{says}, and cannot decode one position at a time: use another "
            'router in a decoder, such as "top_2" or "switch".')
      if context.train:
        _logger.warning(
            "%s: a model that predicts the next token sees later ones by it, "
            "and cannot decode. Use it in encoders.", says)

  def _check_fill_order(self, context):
    """Warns where later tokens could take the slots of earlier ones."""
    if context.train and any(
        level.fill_order == "gate"
        and not gating.find(level.router).needs_whole_sequences
        for level in self.hparams.levels):
      _logger.warning(
          '%s.fill_order = "gate" lets later tokens decide which earlier ones '
          "are dropped: a model that predicts the next token sees something of "
          "later ones by it. Use it in encoders, or see what held-out text "
          "says, with dropless_eval = True.", self._called)


def _in_place_of_mesh_tensorflows(cls):
  """Registers a class under the name that mesh_tensorflow's own has in gin.

  Then gin files that were written for that one use this one; under another
  name, theirs would be ambiguous.
  """
  with gin.config.interactive_mode():  # In which gin lets names be replaced.
    return gin.configurable(module="mesh_tensorflow.transformer.moe")(cls)


@_in_place_of_mesh_tensorflows
@_with_parameters_of_hparams(
    first={"num_experts": hparams_lib.DEFAULT_NUM_EXPERTS[1]},
    last={"experts": experts_lib.feed_forward},
    without=["moe_capacity_factor_second_level"])
class MoE1D(_Mixture):
  """One level of experts, in place of DenseReluDense.

  In gin it is `mesh_tensorflow.transformer.moe.MoE1D`, or `MoE1D`. Parameters
  are those of mesh_tensorflow's class of this name, with its defaults, except
  `second_policy_eval`: "threshold" evaluates a checkpoint to the same number
  every time, where "random" draws anew. What each one means, and what it may
  be, is said in `MoeHparams`, with the prefix moe_.

  Args:
    num_experts: the experts.
    experts: the network inside the experts, a callable with the signature of
      `mtf_moe.experts.feed_forward`.

  Raises:
    ValueError: if a value is not allowed.
  """

  _names = types.MappingProxyType(
      {"gating": "moe_gating", "num_experts[0]": "num_experts"})

  def __init__(self, num_experts, experts, **parameters):
    self._set(num_experts, experts, parameters)


@gin.configurable(module="mtf_moe")
@_with_parameters_of_hparams(
    first=dict(zip(("expert_x", "expert_y"),
                   hparams_lib.DEFAULT_NUM_EXPERTS[2])),
    last={"experts": experts_lib.feed_forward})
class MoE2D(_Mixture):
  """Two levels of experts, in place of DenseReluDense.

  Parameters are those of mesh_tensorflow's class of this name, and more, as of
  `MoE1D`.

  Args:
    expert_x: groups of experts, the first level; a multiple of the mesh axis
      that they are split over.
    expert_y: experts in each group, the second level; likewise.
    experts: the network inside the experts, a callable with the signature of
      `mtf_moe.experts.feed_forward`.

  Raises:
    ValueError: if a value is not allowed.
  """

  _names = types.MappingProxyType({
      "gating": "moe_gating", "num_experts[0]": "expert_x",
      "num_experts[1]": "expert_y"})

  def __init__(self, expert_x, expert_y, experts, **parameters):
    self._set((expert_x, expert_y), experts, parameters)


@gin.configurable(module="mtf_moe")
@_with_parameters_of_hparams(
    first={"levels": (4, 4, 4)}, last={"experts": experts_lib.feed_forward})
class MoE(_Mixture):
  """Any number of levels of experts, in place of DenseReluDense.

  Parameters are those of `MoE2D`, but for:

  Args:
    levels: the numbers of experts of all levels, the first one first, such as
      [4, 4, 4]; or a list of `Level`s, each with settings of its own, such as
      [@coarse/Level(), @fine/Level()].

  Raises:
    ValueError: if a value is not allowed.
  """

  def __init__(self, levels, experts, **parameters):
    self._called = _called_in_gin(type(self))
    with self._mistakes_named():
      levels = _checked_levels(levels)
    if isinstance(levels[0], Level):
      self._set(None, experts, parameters, levels)
    else:
      self._set(tuple(levels), experts, parameters)

  def _parameter(self, name):
    return "moe_gating" if name == "gating" else (
        name.replace("num_experts", "levels"))


gin.external_configurable(Level, "Level", module="mtf_moe")


def _called_in_gin(cls):
  """The name of a class with the scopes of gin that it is made in."""
  return "/".join([*gin.current_scope(), cls.__name__])


def _checked_levels(levels):
  """Numbers of experts, or `Level`s; ValueError for anything else."""
  if not isinstance(levels, list | tuple) or not levels:
    raise knobs.Mistake("levels", levels, (
        "must be a list with the number of experts of each level, such as "
        "[4, 4, 4], or with a Level for each."))
  for number, level in enumerate(levels):
    if not (isinstance(level, Level) or knobs.is_positive_integer(level)):
      raise knobs.Mistake(f"levels[{number}]", level, (
          "is neither a number of experts, 1 or more, nor a Level, which in "
          "gin is written with its parentheses, as in @coarse/Level()."))
  return levels
