"""Hyperparameters: defaults, where they come from, what they refuse."""

import dataclasses
import inspect
import types

from mesh_tensorflow.transformer import moe
import pytest

from mtf_moe.hparams import MoeHparams


def test_any_object_with_the_attributes_will_do():
  given = types.SimpleNamespace(
      moe_num_experts=[4, 2], moe_group_size=32, unrelated="ignored")
  hparams = MoeHparams.of(given)
  assert hparams.moe_num_experts == (4, 2)
  assert hparams.moe_group_size == 32
  assert hparams.moe_hidden_size == 4096  # A default.
  assert MoeHparams.of(hparams) is hparams


def test_defaults_are_those_of_the_reference():
  theirs = moe.HParams()
  moe.set_default_moe_hparams(theirs)
  ours = MoeHparams()
  common = [field.name for field in dataclasses.fields(ours)
            if hasattr(theirs, field.name)]
  assert len(common) == 13
  differing = {
      name: (getattr(ours, name), getattr(theirs, name)) for name in common
      if getattr(ours, name) != getattr(theirs, name)}
  # One level has 16 experts there; evaluation is deterministic here.
  assert differing == {
      "moe_num_experts": ((8, 8), 16),
      "moe_second_policy_eval": ("threshold", "random")}


def test_every_knob_is_explained():
  for field in dataclasses.fields(MoeHparams):
    assert f"\n  {field.name}: " in inspect.getdoc(MoeHparams)


def test_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    MoeHparams().moe_group_size = 7


def test_values_for_training_and_evaluation():
  hparams = MoeHparams(
      moe_second_policy_train="all", moe_second_threshold_eval=0.4)
  assert hparams.second_policy(train=True) == ("all", 0.2)
  assert hparams.second_policy(train=False) == ("threshold", 0.4)
  assert hparams.capacity_factor(train=True) == 1.25
  assert hparams.capacity_factor(train=False) == 2.0


def test_dropless_evaluation():
  hparams = MoeHparams(moe_num_experts=(4, 16), moe_dropless_eval=True)
  assert hparams.capacity_factor(train=True) == 1.25
  assert hparams.capacity_factor(train=False) == 4
  assert hparams.capacity_factor_second_level(train=True) == 1.0
  assert hparams.capacity_factor_second_level(train=False) == 16


def test_the_layer_needs_two_levels():
  assert MoeHparams(moe_num_experts=16).moe_num_experts == 16
  with pytest.raises(ValueError, match=r"MoE2D.expert_x and MoE2D.expert_y"):
    _ = MoeHparams(moe_num_experts=16).experts_per_level


@pytest.mark.parametrize("attribute, value, said", [
    ("moe_num_experts", (4, 0), "MoE2D.expert_y = 0"),
    ("moe_num_experts", (-1, 4), "MoE2D.expert_x = -1"),
    ("moe_num_experts", (4, 4, 4), "must be a pair"),
    ("moe_num_experts", 0, "MoE2D.num_experts = 0"),
    ("moe_hidden_size", 0, "MoE2D.hidden_size = 0"),
    ("moe_group_size", -8, "MoE2D.group_size = -8"),
    ("moe_group_size", 8.0, "MoE2D.group_size = 8.0"),
    ("moe_group_size", True, "MoE2D.group_size = True"),
    ("moe_min_expert_capacity", 0, "MoE2D.min_expert_capacity = 0"),
    ("moe_capacity_factor_train", 0.0, "MoE2D.capacity_factor_train = 0.0"),
    ("moe_capacity_factor_eval", -1.0, "MoE2D.capacity_factor_eval = -1.0"),
    ("moe_capacity_factor_second_level", float("inf"),
     "MoE2D.capacity_factor_second_level = inf"),
    ("moe_capacity_factor_train", float("nan"),
     "MoE2D.capacity_factor_train = nan"),
    ("moe_capacity_factor_train", "much", "MoE2D.capacity_factor_train = 'muc"),
    ("moe_dropless_eval", 1, "MoE2D.dropless_eval = 1 .*True or False"),
    ("moe_use_second_place_loss", "no", "use_second_place_loss = 'no' is nei"),
    ("moe_summaries", "False", "MoE2D.summaries = 'False' is neither on nor"),
    ("moe_dropless_eval", "yes", "MoE2D.dropless_eval = 'yes'"),
    ("moe_gating", "top_3", "MoE2D.moe_gating = 'top_3'.*'top_2'"),
    ("moe_gating", ("switch", "x"), "moe_gating = 'x'.*'top_2', 'switch'"),
    ("moe_gating", ("switch",), r"moe_gating = \('switch',\) must be one"),
    ("moe_gating", None, "MoE2D.moe_gating = None"),
    ("moe_dispatch", "gather", "MoE2D.dispatch = 'gather'.*'einsum', 'index'"),
    ("moe_second_policy_train", "some", "policy_train = 'some'.*'threshold'"),
    ("moe_second_policy_eval", None, "second_policy_eval = None.*'random'"),
    ("moe_second_threshold_train", -0.1, "second_threshold_train = -0.1"),
    ("moe_second_threshold_eval", "x", "second_threshold_eval = 'x'"),
    ("moe_loss_coef", -0.01, "MoE2D.loss_coef = -0.01"),
    ("moe_z_loss", -1, "MoE2D.z_loss = -1"),
    ("moe_word_embed_mode", "sum", "word_embed_mode = 'sum'.*'embed_only'"),
    ("moe_dropout_rate", 1.0, "MoE2D.dropout_rate = 1.0.*below 1"),
])
def test_mistakes_are_named_as_in_gin(attribute, value, said):
  with pytest.raises(ValueError, match=said):
    MoeHparams(**{attribute: value})


def test_the_ends_of_the_allowed_ranges():
  MoeHparams(
      moe_num_experts=(1, 1), moe_hidden_size=1, moe_group_size=1,
      moe_min_expert_capacity=1, moe_capacity_factor_train=1e-3,
      moe_second_threshold_train=0, moe_loss_coef=0, moe_z_loss=0,
      moe_dropout_rate=0.0)
