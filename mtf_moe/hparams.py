"""Every knob of the layer: its default, its meaning and what it may be.

Values are checked when the object is built, so that a mistake in a gin file is
reported by the name it has there, before any graph exists.
"""

import dataclasses
import math
import operator
from typing import Any

from mtf_moe import foreign_hparams

GATINGS = ("top_2", "switch")
DISPATCHES = ("einsum", "index")
SECOND_POLICIES = ("all", "none", "threshold", "random")
WORD_EMBED_MODES = (
    "concat", "concat_stop_grad", "add", "add_stop_grad", "embed_only")


@dataclasses.dataclass(frozen=True)
class MoeHparams:
  """Hyperparameters of the two-level mixture of experts.

  The attributes carry the `moe_` prefix that callers of mesh_tensorflow use,
  so any mapping or object with such names can stand in for this one (see `of`).
  In gin the same names, without the prefix, are parameters of `MoE2D`.

  Attributes:
    moe_gating: the router of both levels, or a pair, one for each level. One
      of `GATINGS`, or a callable with the signature of `gating.top_2.route`.
    moe_num_experts: experts at the first and at the second level (x, y); a
      single integer where only one level is routed (`_top_2_gating`).
    moe_loss_coef: weight of the balancing losses in the training loss.
    moe_hidden_size: units in the hidden layer of one expert.
    moe_group_size: about how many tokens are in one group: the real size
      divides the tokens of a slice of the mesh (grouping._split_into_groups).
      A router fills the experts' buffers group by group.
    moe_min_expert_capacity: the fewest slots of an expert's buffer in a group.
    moe_capacity_factor_train: slots an expert has in a group, relative to an
      even share of the group's tokens, at the first level while training.
    moe_capacity_factor_eval: the same at all other times.
    moe_capacity_factor_second_level: the same at the second level, always.
    moe_dropless_eval: outside of training, give every expert, at both levels,
      as many slots as the group has tokens, whatever the capacity factors: no
      token is dropped. What a model loses by its capacities is the difference.
    moe_dropless_inference: the same where `MoE2D` scores, samples, searches
      with beams or is exported: what comes out for one sequence then does not
      depend on the others in its batch. The experts compute as many slots as
      there are tokens, each of them, at both levels; False has the capacities
      of evaluation there, too.
    moe_use_second_place_loss: also balance the second choices.
    moe_second_policy_train: which tokens use their second choice while
      training, one of `SECOND_POLICIES`: "all" of them, "none", those whose
      normalized gate is above the "threshold", or at "random" with probability
      gate / threshold.
    moe_second_policy_eval: the same at all other times. The default differs
      from mesh_tensorflow's ("random"), so that evaluating a checkpoint twice
      gives the same number twice.
    moe_second_threshold_train: the threshold of the policy while training.
    moe_second_threshold_eval: the threshold at all other times.
    moe_z_loss: weight of the router z-loss in the training loss, or None.
    moe_word_embed_mode: how word embeddings enter the routers, one of
      `WORD_EMBED_MODES`, or None for not at all.
    moe_activation: activation of the experts' hidden layer: a name from the
      mtf namespace, a callable, or a list of them, whose product is taken (a
      gated unit).
    moe_dropout_rate: fraction of the experts' hidden units dropped in training.
    moe_dispatch: how tokens move, one of `DISPATCHES`, with the same result:
      by "einsum", as matrix units like it, at a cost that grows with the group;
      or by "index", which copies rows and suits CPUs and GPUs.
    moe_summaries: record loads, losses and lost tokens while training, for
      TensorBoard (see `monitoring`).

  Raises:
    ValueError: on a value that is not allowed. The message has the gin name.
  """

  moe_gating: Any = "top_2"
  moe_num_experts: int | tuple[int, int] = (8, 8)
  moe_loss_coef: float = 1e-2
  moe_hidden_size: int = 4096
  moe_group_size: int = 1024
  moe_min_expert_capacity: int = 4
  moe_capacity_factor_train: float = 1.25
  moe_capacity_factor_eval: float = 2.0
  moe_capacity_factor_second_level: float = 1.0
  moe_dropless_eval: bool = False
  moe_dropless_inference: bool = True
  moe_use_second_place_loss: bool = False
  moe_second_policy_train: str = "random"
  moe_second_policy_eval: str = "threshold"
  moe_second_threshold_train: float = 0.2
  moe_second_threshold_eval: float = 0.2
  moe_z_loss: float | None = None
  moe_word_embed_mode: str | None = None
  moe_activation: Any = "relu"
  moe_dropout_rate: float = 0.0
  moe_dispatch: str = "einsum"
  moe_summaries: bool = True

  def __post_init__(self):
    for gating in self.gating_per_level:
      if not callable(gating):
        _check_choice("moe_gating", gating, GATINGS)
    _check_choice("dispatch", self.moe_dispatch, DISPATCHES)
    object.__setattr__(
        self, "moe_num_experts", _checked_experts(self.moe_num_experts))
    for name in ("hidden_size", "group_size", "min_expert_capacity"):
      _check_positive_integer(name, getattr(self, "moe_" + name))
    for name in ("capacity_factor_train", "capacity_factor_eval",
                 "capacity_factor_second_level"):
      _check_number(name, getattr(self, "moe_" + name), positive=True,
                    remedy="1.0 gives every expert an even share of the tokens")
    if self.moe_use_second_place_loss in (0, 1):  # As mesh_tensorflow has it.
      object.__setattr__(self, "moe_use_second_place_loss",
                         bool(self.moe_use_second_place_loss))
    for name in ("dropless_eval", "dropless_inference", "use_second_place_loss",
                 "summaries"):
      _check_boolean(name, getattr(self, "moe_" + name))
    for name in ("second_policy_train", "second_policy_eval"):
      _check_choice(name, getattr(self, "moe_" + name), SECOND_POLICIES)
    for name in ("second_threshold_train", "second_threshold_eval"):
      _check_number(name, getattr(self, "moe_" + name),
                    remedy="0.2 uses a second choice of at least a fifth")
    _check_number("loss_coef", self.moe_loss_coef,
                  remedy="0.01 is the usual weight, 0 turns it off")
    if self.moe_z_loss is not None:
      _check_number("z_loss", self.moe_z_loss,
                    remedy="0.001 is the usual weight, None turns it off")
    if self.moe_word_embed_mode is not None:
      _check_choice("word_embed_mode", self.moe_word_embed_mode,
                    WORD_EMBED_MODES)
    _check_number("dropout_rate", self.moe_dropout_rate, below=1.0,
                  remedy="0.1 drops a tenth of the hidden units")

  @classmethod
  def of(cls, hparams) -> "MoeHparams":
    """The checked hyperparameters that a mapping or an object states.

    Args:
      hparams: a `MoeHparams`, a mapping from `moe_*` names, or any object with
        such attributes. One that is missing takes its default; those that only
        other layers of mesh_tensorflow or tensor2tensor have are ignored.

    Returns:
      a `MoeHparams`

    Raises:
      ValueError: on a `moe_*` name that nobody knows, and as above.
    """
    if type(hparams) is MoeHparams:
      return hparams
    if isinstance(hparams, MoeHparams):
      return MoeHparams(**vars(hparams))
    return cls(**foreign_hparams.stated(hparams, cls.names()))

  @classmethod
  def names(cls) -> list[str]:
    """The names of all hyperparameters."""
    return [field.name for field in dataclasses.fields(cls)]

  def for_inference(self) -> "MoeHparams":
    """What holds where a model is used, not trained or evaluated."""
    return dataclasses.replace(
        self, moe_dropless_eval=(
            self.moe_dropless_eval or self.moe_dropless_inference))

  @property
  def experts_per_level(self) -> tuple[int, int]:
    """(x, y), for a layer that needs both levels."""
    if isinstance(self.moe_num_experts, int):
      raise ValueError(
          f"moe_num_experts={self.moe_num_experts!r} has one level, and the "
          "layer has two: give a pair, such as (4, 4), in gin "
          "MoE2D.expert_x and MoE2D.expert_y.")
    return self.moe_num_experts

  @property
  def gating_per_level(self) -> tuple[Any, Any]:
    """The routers of the first and of the second level, as they were given."""
    gating = self.moe_gating
    if not isinstance(gating, (list, tuple)):
      return gating, gating
    if len(gating) != 2:
      raise ValueError(
          f"MoE2D.moe_gating = {gating!r} must be one router, or a pair: that "
          'of the first level and that of the second, such as ("top_2", '
          '"switch").')
    return tuple(gating)

  def capacity_factor(self, train: bool) -> float:
    """The first level's capacity factor."""
    if train:
      return self.moe_capacity_factor_train
    # As many times an even share as there are experts is the whole group.
    return (self.experts_per_level[0] if self.moe_dropless_eval
            else self.moe_capacity_factor_eval)

  def capacity_factor_second_level(self, train: bool) -> float:
    """The second level's capacity factor."""
    return (self.experts_per_level[1] if self.moe_dropless_eval and not train
            else self.moe_capacity_factor_second_level)

  def second_policy(self, train: bool) -> tuple[str, float]:
    """The (policy, threshold) that decide on second choices."""
    if train:
      return self.moe_second_policy_train, self.moe_second_threshold_train
    return self.moe_second_policy_eval, self.moe_second_threshold_eval


class ChangeableHparams(MoeHparams):
  """Hyperparameters that can be set one at a time, and are checked each time.

  What a subclass of `MoE2D` has as `self._hparams`, since those of
  mesh_tensorflow's layers can be changed, too.
  """

  def __setattr__(self, name, value):
    names = self.names()
    foreign_hparams.check_known(name, value, names)
    if name in names:  # Others are for other layers.
      checked = MoeHparams(**{**vars(self), name: value})
      object.__setattr__(self, name, getattr(checked, name))

  def add_hparam(self, name, value):
    """Sets one, as it can be with mesh_tensorflow's."""
    setattr(self, name, value)


def _checked_experts(num_experts):
  """An int for one level or a tuple of two; ValueError otherwise."""
  if isinstance(num_experts, (list, tuple)):
    if len(num_experts) != 2:
      raise ValueError(
          f"moe_num_experts={num_experts!r} must be a pair, the experts at the "
          "first and at the second level (gin: MoE2D.expert_x and "
          "MoE2D.expert_y).")
    for name, size in zip(("expert_x", "expert_y"), num_experts):
      _check_positive_integer(name, size)
    return tuple(operator.index(size) for size in num_experts)
  _check_positive_integer("num_experts", num_experts)
  return operator.index(num_experts)


def _check_choice(name, value, allowed):
  if value not in allowed:
    raise ValueError(
        f"MoE2D.{name} = {value!r} is not known. Choose one of: "
        f"{', '.join(map(repr, allowed))}.")


def _check_boolean(name, value):
  if not isinstance(value, bool):
    raise ValueError(
        f"MoE2D.{name} = {value!r} is neither on nor off: set it to True or "
        "False.")


def is_positive_integer(value) -> bool:
  """Whether a value is an integer of any kind, and above 0."""
  try:
    return not isinstance(value, bool) and operator.index(value) > 0
  except TypeError:
    return False


def _check_positive_integer(name, value):
  if not is_positive_integer(value):
    raise ValueError(
        f"MoE2D.{name} = {value!r} must be a positive integer. Set it to 1 or "
        "more.")


def _check_number(name, value, remedy, positive=False, below=math.inf):
  """Raises unless 0 <= value < below (0 < value where `positive`)."""
  try:
    number = float(value)
    fits = 0 <= number < below and not (positive and number == 0)
  except (TypeError, ValueError):
    fits = False
  if not fits:
    lowest = "above 0" if positive else "0 or more"
    highest = "finite" if below == math.inf else f"below {below:g}"
    raise ValueError(
        f"MoE2D.{name} = {value!r} must be a number, {lowest} and {highest}; "
        f"{remedy}.")
