"""Every knob of the layer: its default, its meaning and what it may be.

Each stands here once, in `MoeHparams`. Those that a level can have for itself
are the fields of `Level`, and all of them are parameters of the gin classes in
`transformer_layers`. Values are checked when an object is built, so that a
mistake in a gin file is reported by the name it has there, before any graph
exists.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from mtf_moe import foreign_hparams
from mtf_moe import knobs
from mtf_moe.knobs import knob

DISPATCHES = ("einsum", "index")
SECOND_POLICIES = ("all", "none", "threshold", "random")
SWITCH_POLICIES = ("argmax", "input_dropout", "input_jitter", "sample")
NOISY_LOSSES = ("level", "hierarchical", "none")
FILL_ORDERS = ("position", "gate")
IMPORTANCES_BELOW = ("weight", "choice", "full")
WORD_EMBED_MODES = (
    "concat", "concat_stop_grad", "add", "add_stop_grad", "embed_only")

# As mesh_tensorflow has it, for layers of one level and of two.
DEFAULT_NUM_EXPERTS: dict[int, Any] = {1: 16, 2: (8, 8)}

_COEFFICIENT = knobs.number(remedy="0.01 is the usual weight, 0 turns it off")
_FACTOR = knobs.number(
    positive=True,
    remedy="1.0 gives every expert an even share of the tokens")
_THRESHOLD = knobs.number(
    remedy="0.2 uses a second choice of at least a fifth")
_TEMPERATURE = knobs.number(
    remedy="1.0 samples from the gates, 0 takes the likeliest expert")


@dataclasses.dataclass(frozen=True)
class MoeHparams:
  """Hyperparameters of a mixture of experts of any number of levels.

  The attributes carry the `moe_` prefix that callers of mesh_tensorflow use,
  so any mapping or object with such names can stand in for this one (see `of`).
  In gin the same names, without the prefix, are parameters of `MoE1D`, `MoE2D`
  and `MoE`; those that are marked with "(level)" may differ from level to
  level, and are those of `Level`, too.

  Attributes:
    moe_num_experts: experts at the first, the second, ... level; an integer
      where there is one level.
    moe_loss_coef: (level: None for the layer's) weight of the balancing losses
      in the training loss; each is 1 at perfect balance.
    moe_hidden_size: units in the hidden layer of one expert.
    moe_group_size: (level) about how many tokens are in one group: there are as
      many groups as whole ones of this size would be, or more, until they
      divide the tokens of a slice of the mesh. A router fills the experts'
      buffers group by group.
    moe_capacity_factor_train: (level) slots an expert has in a group, relative
      to an even share of the group's tokens, while training: at the first level
      or, of a Level, at that one.
    moe_capacity_factor_eval: (level) the same at all other times.
    moe_capacity_factor_second_level: the same at all levels but the first that
      are no Level, always.
    moe_use_second_place_loss: (level) also balance the second choices, at half
      the weight.
    moe_second_policy_train: (level) which tokens use their second choice while
      training: "all" of them, "none", those whose normalized gate is above the
      "threshold", or at "random" with probability gate / threshold. The router
      "top_n" treats all choices but the first so.
    moe_second_policy_eval: (level) the same at all other times. The default
      differs from mesh_tensorflow's ("random"), so that evaluating a checkpoint
      twice gives the same number twice.
    moe_second_threshold_train: (level) the threshold while training; a second
      choice's normalized gate is 0.5 at most.
    moe_second_threshold_eval: (level) the threshold at all other times.
    moe_dropout_rate: fraction of the experts' hidden units dropped in training.
    moe_activation: activation of the experts' hidden layer: a name from the
      mtf namespace, a callable, or a list of them, whose product is taken (a
      gated unit).
    moe_gating: the router of all levels, or a list, one for each level: the
      name of a router (`gating.names`), a `gating.Router`, or a function that
      chooses.
    moe_min_expert_capacity: (level) the fewest slots of an expert's buffer in a
      group.
    moe_switch_policy_train: (level) how the routers of the Switch family choose
      while training: the likeliest expert ("argmax"), or an expert drawn by its
      gate ("sample"), or the likeliest one for inputs with "input_dropout" or
      "input_jitter".
    moe_switch_policy_eval: (level) the same at all other times, when inputs
      stay as they are.
    moe_switch_dropout: (level) fraction of the router's inputs that the policy
      "input_dropout" drops.
    moe_switch_temperature: (level) of the policy "sample".
    moe_switch_jitter: (level) how far from 1 the numbers are, at most, by which
      the policy "input_jitter" multiplies inputs.
    moe_ntlb_top_k: (level) how many experts a token of the router "ntlb" tries.
    moe_output_dim: the mtf.Dimension of the outputs, or None for the model's.
    moe_use_experts_attention: two outputs in place of one, the queries and the
      keys of mesh_tensorflow's ExpertsSelfAttention.
    moe_z_loss: (level) weight of the router z-loss in the training loss, which
      keeps logits small, or None; 0.001 is usual.
    moe_word_embed_mode: (level) how word embeddings enter the routers:
      "concat", "add" (each also with "_stop_grad" behind it), "embed_only", or
      None for not at all.
    moe_use_second_place_expert_prob: (level) with which probability a token of
      the Switch family may not use its likeliest expert while training, or None
      for never.
    moe_use_second_place_expert_prob_temp: (level) the temperature at which such
      a token draws another, or None for the next likeliest.
    moe_top_n_num_experts_per_token: (level) how many experts a token of the
      router "top_n" uses.
    moe_noisy_top_k: (level) how many experts a token of the router
      "noisy_top_k" uses. Capacities are for one, so that factors are as many
      times larger. With 1, weights are 1, and it learns by losses only.
    moe_noisy_loss: (level) among which experts the losses of "noisy_top_k" are:
      each router's ("level"); all of the level, by what comes from the levels
      above ("hierarchical": Shazeer et al. 2017, equations 13 and 14, who have
      that at the last level and "none" above); or "none" of them.
    moe_sigmoid_top_k: (level) how many experts a token of the router
      "sigmoid_top_k" uses. Capacities are for one.
    moe_sigmoid_bias_rate: (level) by how much "sigmoid_top_k" moves the bias of
      an expert in a step, which may change in a run; 0 has a balancing loss.
    moe_hash_seed: (level) which hash the router "hash" uses.
    moe_limited_num_groups: (level) into how many groups the router
      "group_limited" puts the experts of a level.
    moe_limited_top_groups: (level) how many of these a token may use.
    moe_limited_top_k: (level) how many experts a token of "group_limited" uses.
    moe_importance_below: (level) what a choice counts at the next level: by its
      "weight" as mesh_tensorflow's top-2 router has it, in full above 0.5, else
      half (with other routers than "top_2" that is "choice"); by the "choice",
      in full if it is the token's first, else half; or always in "full", when
      two levels of "top_2" give a token up to four experts, as in Shazeer et
      al. 2017. Where experts choose, what they take counts in full.
    moe_balance_over_used: (level) take the means of the balancing loss over the
      tokens that count, and not over all slots of a group, as mesh_tensorflow
      does: then padding and empty slots make the loss no smaller.
    moe_fill_order: (level) whose choices get the slots of a group first, all
      first choices before any second one: those of tokens by their "position",
      or by their largest "gate" (V-MoE's batch prioritized routing), when later
      tokens can take the slots of earlier ones.
    moe_shared_hidden_size: units in the hidden layer of a shared expert, which
      every token uses beside those that it chooses, as in DeepSeekMoE; its
      result is added to theirs. None for no such expert. A layout may split its
      dimension, `shared_hidden`.
    moe_dispatch: how tokens move, with the same result: by "einsum", products
      with zeros and ones, as matrix units like it, at a cost that grows with
      the group; or by "index", which copies rows and suits CPUs and GPUs, and
      which the gin files of their meshes choose.
    moe_summaries: record loads, losses and lost tokens while training, for
      TensorBoard.
    moe_dropless_eval: outside of training, give every expert, at all levels, as
      many slots as the group has tokens, whatever the capacity factors: no
      token is dropped. What a model loses by its capacities is the difference.
      Routers in which experts choose keep their capacities.
    moe_dropless_inference: drop none where the model scores, samples, searches
      with beams or is exported: what comes out for one sequence then does not
      depend on the others in its batch. The experts compute as many slots as
      there are tokens, each of them, at all levels; False has the capacities
      of evaluation there, too.
    moe_levels: a list of `Level`s, in place of all that is marked "(level)", of
      moe_num_experts and of moe_gating, or None.

  Raises:
    ValueError: on a value that is not allowed. The message has its name.
  """

  # The order is that of mesh_tensorflow's layers, whose parameters may be given
  # by position.
  moe_num_experts: int | tuple[int, ...] = knob(
      (8, 8), knobs.positive_integers)
  moe_loss_coef: float = knob(1e-2, _COEFFICIENT)
  moe_hidden_size: int = knob(4096, knobs.positive_integer)
  moe_group_size: int = knob(1024, knobs.positive_integer, by_level=True)
  moe_capacity_factor_train: float = knob(1.25, _FACTOR, by_level=True)
  moe_capacity_factor_eval: float = knob(2.0, _FACTOR, by_level=True)
  moe_capacity_factor_second_level: float = knob(1.0, _FACTOR)
  moe_use_second_place_loss: bool = knob(False, knobs.boolean, by_level=True)
  moe_second_policy_train: str = knob(
      "random", knobs.one_of(*SECOND_POLICIES), by_level=True)
  moe_second_policy_eval: str = knob(
      "threshold", knobs.one_of(*SECOND_POLICIES), by_level=True)
  moe_second_threshold_train: float = knob(0.2, _THRESHOLD, by_level=True)
  moe_second_threshold_eval: float = knob(0.2, _THRESHOLD, by_level=True)
  moe_dropout_rate: float = knob(0.0, knobs.number(
      below=1.0, remedy="0.1 drops a tenth of the hidden units"))
  moe_activation: Any = "relu"  # Checked by the experts.
  moe_gating: Any = "top_2"  # Checked where routers are known.
  moe_min_expert_capacity: int = knob(4, knobs.positive_integer, by_level=True)
  moe_switch_policy_train: str = knob(
      "input_jitter", knobs.one_of(*SWITCH_POLICIES), by_level=True)
  moe_switch_policy_eval: str = knob(
      "input_jitter", knobs.one_of(*SWITCH_POLICIES), by_level=True)
  moe_switch_dropout: float = knob(0.1, knobs.number(
      below=1.0, remedy="0.1 drops a tenth of a router's inputs"),
                                   by_level=True)
  moe_switch_temperature: float = knob(1.0, _TEMPERATURE, by_level=True)
  moe_switch_jitter: float = knob(1e-2, knobs.number(
      below=1.0, remedy="0.01 is the usual jitter, 0 is none"), by_level=True)
  moe_ntlb_top_k: int = knob(4, knobs.positive_integer, by_level=True)
  moe_output_dim: Any = knob(None, knobs.optional(knobs.dimension))
  moe_use_experts_attention: bool = knob(False, knobs.boolean)
  moe_z_loss: float | None = knob(None, knobs.optional(knobs.number(
      remedy="0.001 is the usual weight, None turns it off")), by_level=True)
  moe_word_embed_mode: str | None = knob(
      None, knobs.optional(knobs.one_of(*WORD_EMBED_MODES)), by_level=True)
  moe_use_second_place_expert_prob: float | None = knob(
      None, knobs.optional(knobs.number(
          below=1.0, remedy="0.1 sends every tenth token elsewhere")),
      by_level=True)
  moe_use_second_place_expert_prob_temp: float | None = knob(
      None, knobs.optional(_TEMPERATURE), by_level=True)
  moe_top_n_num_experts_per_token: int = knob(
      3, knobs.positive_integer, by_level=True)
  moe_noisy_top_k: int = knob(2, knobs.positive_integer, by_level=True)
  moe_noisy_loss: str = knob(
      "level", knobs.one_of(*NOISY_LOSSES), by_level=True)
  moe_sigmoid_top_k: int = knob(2, knobs.positive_integer, by_level=True)
  moe_sigmoid_bias_rate: float = knob(1e-3, knobs.number(
      remedy="0.001 is the usual rate, 0 turns it off"), by_level=True)
  moe_hash_seed: int = knob(1, knobs.positive_integer, by_level=True)
  moe_limited_num_groups: int = knob(4, knobs.positive_integer, by_level=True)
  moe_limited_top_groups: int = knob(2, knobs.positive_integer, by_level=True)
  moe_limited_top_k: int = knob(2, knobs.positive_integer, by_level=True)
  moe_importance_below: str = knob(
      "weight", knobs.one_of(*IMPORTANCES_BELOW), by_level=True)
  moe_balance_over_used: bool = knob(False, knobs.boolean, by_level=True)
  moe_fill_order: str = knob(
      "position", knobs.one_of(*FILL_ORDERS), by_level=True)
  moe_shared_hidden_size: int | None = knob(
      None, knobs.optional(knobs.positive_integer))
  moe_dispatch: str = knob("einsum", knobs.one_of(*DISPATCHES))
  moe_summaries: bool = knob(True, knobs.boolean)
  moe_dropless_eval: bool = knob(False, knobs.boolean)
  moe_dropless_inference: bool = knob(True, knobs.boolean)
  moe_levels: Any = None

  def __post_init__(self):
    knobs.check(self)
    if self.moe_levels is not None:
      levels = tuple(self.moe_levels)
      if not levels or not all(isinstance(level, Level) for level in levels):
        raise knobs.Mistake("levels", self.moe_levels, (
            "must be a list of one Level or more, such as [@outer/Level(), "
            "@inner/Level()]."))
      self._check_that_levels_say_all(levels)
      object.__setattr__(self, "moe_levels", levels)
      object.__setattr__(
          self, "moe_num_experts", tuple(level.experts for level in levels))

  def _check_that_levels_say_all(self, levels):
    """Raises ValueError for what `moe_levels` would leave without effect."""
    for name in ("moe_gating", "moe_capacity_factor_second_level",
                 *(f"{knobs.PREFIX}{name}" for name in _BY_LEVEL)):
      value = getattr(self, name)
      if value != self.default(name):
        raise knobs.Mistake(name.removeprefix(knobs.PREFIX), value, (
            "has no effect on levels that have settings of their own: set it "
            "for each Level."))
    experts = tuple(level.experts for level in levels)
    if self.moe_num_experts not in (self.default("moe_num_experts"), experts):
      raise knobs.Mistake("num_experts", self.moe_num_experts, (
          f"is not what the levels have, {experts}: set Level.experts."))

  @classmethod
  def of(cls, hparams, num_levels: int | None = None) -> "MoeHparams":
    """The checked hyperparameters that a mapping or an object states.

    Args:
      hparams: a `MoeHparams`, a mapping from `moe_*` names, or any object with
        such attributes. One that is missing takes its default; those that only
        other layers of mesh_tensorflow or tensor2tensor have are ignored.
      num_levels: how many levels the layer has, for the default of experts.

    Returns:
      a `MoeHparams`

    Raises:
      ValueError: on a `moe_*` name that nobody knows, and as above.
    """
    if type(hparams) is MoeHparams:
      return hparams
    if isinstance(hparams, MoeHparams):
      return MoeHparams(**{name: getattr(hparams, name)
                           for name in cls.names()})
    stated = foreign_hparams.stated(hparams, cls.names())
    if "moe_num_experts" not in stated and num_levels in DEFAULT_NUM_EXPERTS:
      stated["moe_num_experts"] = DEFAULT_NUM_EXPERTS[num_levels]
    return cls(**stated)

  @classmethod
  def names(cls) -> list[str]:
    """The names of all hyperparameters."""
    return [field.name for field in dataclasses.fields(cls)]

  @classmethod
  def default(cls, name: str) -> Any:
    """The default of a hyperparameter."""
    return cls.__dataclass_fields__[name].default

  def for_inference(self) -> "MoeHparams":
    """What holds where a model is used, not trained or evaluated."""
    return dataclasses.replace(
        self, moe_dropless_eval=(
            self.moe_dropless_eval or self.moe_dropless_inference))

  @property
  def levels(self) -> tuple["Level", ...]:
    """The settings of each level, the first one first."""
    if self.moe_levels is not None:
      return self.moe_levels
    experts = self.moe_num_experts
    experts = experts if isinstance(experts, tuple) else (experts,)
    shared = {name: getattr(self, knobs.PREFIX + name) for name in _BY_LEVEL}
    later = dict.fromkeys(
        ("capacity_factor_train", "capacity_factor_eval"),
        self.moe_capacity_factor_second_level)
    return tuple(
        Level(**{**shared, **(later if number else {}), "experts": one,
                 "router": router})
        for number, (one, router) in enumerate(
            zip(experts, self._routers(len(experts)))))

  def _routers(self, num_levels):
    gating = self.moe_gating
    if not isinstance(gating, (list, tuple)):
      return [gating] * num_levels
    if len(gating) != num_levels:
      raise knobs.Mistake("gating", gating, (
          f"must be one router, or one for each of the {num_levels} levels, "
          f'such as {["top_2", "switch", "top_2"][:num_levels]}.'))
    return gating


# Of the fields of MoeHparams, those that a level can have for itself.
_BY_LEVEL = {
    field.name.removeprefix(knobs.PREFIX): field
    for field in dataclasses.fields(MoeHparams)
    if field.metadata.get("by_level")}


def _with_knobs_of_levels(cls):
  """Gives a class those fields of MoeHparams that a level has for itself."""
  for name, field in _BY_LEVEL.items():
    cls.__annotations__[name] = field.type
    setattr(cls, name, dataclasses.field(
        default=field.default, metadata=field.metadata))
  return cls


@dataclasses.dataclass(frozen=True)
@_with_knobs_of_levels
class Level:
  """Settings of one level.

  Beside the three below, all that `MoeHparams` explains as of a "(level)".

  Attributes:
    experts: among how many a token chooses.
    router: the router; see `MoeHparams.moe_gating`.
    loss_coef: weight of its balancing loss; None for the layer's.

  Raises:
    ValueError: on a value that is not allowed.
  """

  experts: int = knob(8, knobs.positive_integer)
  router: Any = "top_2"
  loss_coef: float | None = knob(None, knobs.optional(_COEFFICIENT))

  if TYPE_CHECKING:  # What the decorator adds.
    def __getattr__(self, name: str) -> Any: ...

  def __post_init__(self):
    knobs.check(self, "Level")

  def capacity_factor(self, train: bool) -> float:
    return self.capacity_factor_train if train else self.capacity_factor_eval

  def second_policy(self, train: bool) -> tuple[str, float]:
    """The (policy, threshold) that decide on second choices."""
    if train:
      return self.second_policy_train, self.second_threshold_train
    return self.second_policy_eval, self.second_threshold_eval

  def switch_policy(self, train: bool) -> str:
    return self.switch_policy_train if train else self.switch_policy_eval
