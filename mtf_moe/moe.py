"""The names of mesh_tensorflow.transformer.moe, to import in its place.

    from mtf_moe import moe

Signatures are the same, parameters that are new come last.
"""

from mtf_moe.gating import dense
from mtf_moe.gating import losses
from mtf_moe.gating import second_place
from mtf_moe.gating import word_embeddings
from mtf_moe.grouping import _split_into_groups
from mtf_moe.hparams import MoeHparams
from mtf_moe.layer import transformer_moe_layer
from mtf_moe.layer import transformer_moe_layer_v1
from mtf_moe.layer import transformer_moe_layer_v2
from mtf_moe.transformer_layers import MoE
from mtf_moe.transformer_layers import MoE1D
from mtf_moe.transformer_layers import MoE2D

__all__ = [
    "HParams",
    "MoE",
    "MoE1D",
    "MoE2D",
    "_split_into_groups",
    "set_default_moe_hparams",
    "transformer_moe_layer",
    "transformer_moe_layer_v1",
    "transformer_moe_layer_v2",
]

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


def _stochastically_use_non_top_expert(gate_logits, experts_dim, hparams):
  """See `second_place.without_best`; experts are the last dimension here."""
  if experts_dim != gate_logits.shape.dims[-1]:
    raise ValueError(
        f"experts_dim = {experts_dim} is not the last dimension of gate_logits "
        f"of {gate_logits.shape}: transpose them.")
  return second_place.without_best(
      gate_logits, MoeHparams.of(hparams).levels[0])


def _add_token_emb_to_gate_inputs(
    gate_inputs, token_embeddings, moe_word_embed_mode):
  """See `word_embeddings.add_to_gate_inputs`."""
  return word_embeddings.add_to_gate_inputs(
      gate_inputs, token_embeddings, moe_word_embed_mode)


def _router_z_loss(logits, experts_dim, num_microbatches, importance=None):
  """See `losses.router_z_loss`; one part of a step has its share of it."""
  return losses.router_z_loss(logits, experts_dim, importance) / (
      num_microbatches or 1)
