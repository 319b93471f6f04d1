"""The names of mesh_tensorflow.transformer.moe, to import in its place.

    from mtf_moe import moe

Signatures are the same, parameters that are new come last.
"""

from mtf_moe.gating import dense
from mtf_moe.hparams import MoeHparams

_ntlb_gating = dense.gating("ntlb")
_switch_gating = dense.gating("switch")
_switch_max_gating = dense.gating("switch_max")
_top_2_gating = dense.gating("top_2")
_top_n_gating = dense.gating("top_n")


class HParams:
  """Any attributes. Which ones the layers use, `MoeHparams` says."""

  def __init__(self, **attributes):
    vars(self).update(attributes)

  def add_hparam(self, name, value):
    setattr(self, name, value)


def set_default_moe_hparams(hparams):
  """Sets the hyperparameters of a layer of one level to their defaults.

  Args:
    hparams: an object with the method `add_hparam`, such as `HParams`.
  """
  defaults = MoeHparams(moe_num_experts=16)
  for name in ("moe_num_experts", "moe_loss_coef"):
    setattr(hparams, name, getattr(defaults, name))
  for name in (
      "moe_gating", "moe_capacity_factor_train", "moe_capacity_factor_eval",
      "moe_capacity_factor_second_level", "moe_hidden_size", "moe_group_size",
      "moe_use_second_place_loss", "moe_second_policy_train",
      "moe_second_policy_eval", "moe_second_threshold_train",
      "moe_second_threshold_eval"):
    hparams.add_hparam(name, getattr(defaults, name))


def _expert_selection_gating(
    inputs, outer_expert_dims, experts_dim, group_size_dim, expert_capacity_dim,
    hparams, train, variable_dtype, importance=None,
    name="expert_selection_gating", num_microbatches=None,
    normalize_by_num_experts_routed=True, token_embeddings=None):
  """The other gatings' arguments, and two that only this one has.

  Args:
    inputs, ..., token_embeddings: see `_top_2_gating`.
    group_size_dim: the dimension ahead of the depth of `inputs`.
    normalize_by_num_experts_routed: True, since there is no other way here.

  Raises:
    ValueError: if one of these two is anything else.
  """
  if group_size_dim != inputs.shape.dims[-2]:
    raise ValueError(
        f"group_size_dim = {group_size_dim} is not the dimension of groups in "
        f"inputs of {inputs.shape}, which is the last but one: pass that.")
  if not normalize_by_num_experts_routed:
    raise ValueError(
        "normalize_by_num_experts_routed = False is not supported: write a "
        "router of your own (see mtf_moe.gating), or leave it True.")
  return dense.gating("expert_selection")(
      inputs, outer_expert_dims, experts_dim, expert_capacity_dim, hparams,
      train, variable_dtype, importance=importance, name=name,
      num_microbatches=num_microbatches, token_embeddings=token_embeddings)
