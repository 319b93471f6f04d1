"""Hyperparameters: defaults, where they come from, what they refuse."""

import argparse
import collections
import copy
import dataclasses
import inspect
import re
import types

import gin
from mesh_tensorflow.transformer import moe
import pytest

import mtf_moe
from mtf_moe.changeable_hparams import ChangeableHparams
from mtf_moe.hparams import Level
from mtf_moe.hparams import MoeHparams


def test_any_object_with_the_attributes_will_do():
  given = types.SimpleNamespace(
      moe_num_experts=[4, 2], moe_group_size=32, unrelated="ignored")
  hparams = MoeHparams.of(given)
  assert hparams.moe_num_experts == (4, 2)
  assert hparams.moe_group_size == 32
  assert hparams.moe_hidden_size == 4096  # A default.
  assert MoeHparams.of(hparams) is hparams


class MadeUp:
  """Has one hyperparameter, and None for whatever else it is asked."""

  def __getattr__(self, name):
    return 32 if name == "moe_group_size" else None


class Unset:
  __slots__ = ("moe_group_size", "moe_num_experts", "moe_z_loss")

  def __init__(self):
    self.moe_num_experts, self.moe_group_size = (4, 2), 32


class Config:
  """A mapping by its methods only."""

  def keys(self):
    return GIVEN.keys()

  def __getitem__(self, name):
    return GIVEN[name]


class Values(dict):
  """A dict whose entries are attributes, too."""

  __getattr__ = dict.get


class Computed:
  moe_num_experts = (4, 2)

  def moe_layer(self):
    """Not a hyperparameter."""

  @property
  def moe_group_size(self):
    return 32


GIVEN = {"moe_num_experts": [4, 2], "moe_group_size": 32}
BESIDE = {"n_head": 8, 3: "number", "moe_num_layers": 2, "moe_k": 2,
          "moe_experts_x": 4, "moe_overhead_train": 1.0}


@pytest.mark.parametrize("given", [
    GIVEN, {**GIVEN, **BESIDE}, types.MappingProxyType(GIVEN),
    collections.defaultdict(lambda: None, GIVEN), Values(GIVEN),
    argparse.Namespace(**GIVEN, steps=3), moe.HParams(**GIVEN), Computed(),
    Unset(), Config(),
    collections.namedtuple("Fixed", GIVEN)(**GIVEN),
    {"moe_expert_x": 4, "moe_expert_y": 2, "moe_group_size": 32}],
                         ids=lambda given: type(given).__name__)
def test_mappings_and_objects(given):
  assert MoeHparams.of(given) == MoeHparams(
      moe_num_experts=(4, 2), moe_group_size=32)


def test_an_object_that_makes_up_its_attributes():
  assert MoeHparams.of(MadeUp()) == MoeHparams(moe_group_size=32)


def test_what_mesh_tensorflow_has_is_known():
  theirs = moe.HParams()
  moe.set_default_moe_hparams(theirs)
  assert MoeHparams.of(theirs).moe_num_experts == 16
  gin.parse_config("MoE1D.num_experts = 8")
  assert MoeHparams.of(moe.MoE1D()._hparams).moe_num_experts == 8
  assert MoeHparams.of(moe.MoE2D(4, 2)._hparams).moe_num_experts == (4, 2)


@pytest.mark.parametrize("kind", [
    dict, lambda **given: types.SimpleNamespace(**given), moe.HParams])
@pytest.mark.parametrize("name, said", [
    ("moe_hiden_size", "did you mean moe_hidden_size?"),
    ("moe_Hidden_Size", "did you mean moe_hidden_size?"),
    ("moe_capacity_factor", "did you mean moe_capacity_factor_"),
    ("moe_second_threshold", "did you mean moe_second_threshold_"),
    ("moe_xyz", "choose one of: moe_num_experts, moe_loss_coef, "),
])
def test_unknown_names_are_told(kind, name, said):
  with pytest.raises(ValueError, match="^" + re.escape(
      f"{name} = 64 is no hyperparameter of the layer: {said}")):
    MoeHparams.of(kind(**GIVEN, **{name: 64}))


@pytest.mark.parametrize("given", [None, "top_2", 8, (4, 4), ["moe_gating"]])
def test_what_has_no_names_is_refused(given):
  with pytest.raises(ValueError, match="names no hyperparameters: pass a Moe"):
    MoeHparams.of(given)


def test_names_without_their_prefix():
  with pytest.raises(ValueError, match=(
      "all begin with moe_: call them moe_gating, moe_hidden_size")):
    MoeHparams.of({"gating": "switch", "hidden_size": 8})
  # Those of a program that leaves the layer as it is.
  assert MoeHparams.of({"hidden_size": 8, "num_layers": 2}) == MoeHparams()
  assert MoeHparams.of({}) == MoeHparams()


def test_changeable():
  hparams = ChangeableHparams(moe_activation=None)
  hparams.moe_group_size = 32
  hparams.add_hparam("moe_num_experts", [4, 2])
  hparams.moe_heterogeneous_mask_info = None  # For another layer.
  hparams.add_hparam("other", 1)
  assert hparams.other == 1
  expected = MoeHparams(
      moe_activation=None, moe_group_size=32, moe_num_experts=(4, 2))
  assert MoeHparams.of(hparams) == expected
  assert hparams.moe_group_size == 32
  assert MoeHparams.of(copy.deepcopy(hparams)) == expected
  assert type(MoeHparams.of(hparams)) is MoeHparams
  assert MoeHparams.of(dataclasses.replace(
      hparams, moe_group_size=64)).moe_group_size == 64
  for name, value, said in (
      ("moe_group_size", 0, "moe_group_size = 0"),
      ("group_size", 8, "group_size = 8 is no .*did you mean moe_group_size?"),
      ("moe_grup_size", 8, "did you mean moe_group_size?")):
    with pytest.raises(ValueError, match=said):
      setattr(hparams, name, value)
  assert MoeHparams.of(hparams) == expected


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


def test_levels_of_flat_settings():
  """The factor of the second level is that of all levels but the first."""
  hparams = MoeHparams(
      moe_num_experts=(4, 3, 2), moe_gating=["switch", "top_2", "ntlb"],
      moe_group_size=64, moe_capacity_factor_train=1.5,
      moe_capacity_factor_second_level=1.1, moe_second_policy_train="all",
      moe_second_threshold_eval=0.4)
  assert [level.experts for level in hparams.levels] == [4, 3, 2]
  assert [level.router for level in hparams.levels] == [
      "switch", "top_2", "ntlb"]
  assert [(level.capacity_factor(True), level.capacity_factor(False))
          for level in hparams.levels] == [(1.5, 2.0), (1.1, 1.1), (1.1, 1.1)]
  for level in hparams.levels:
    assert level.group_size == 64
    assert level.second_policy(train=True) == ("all", 0.2)
    assert level.second_policy(train=False) == ("threshold", 0.4)
    assert level.switch_policy(train=True) == "input_jitter"


def test_levels_of_their_own():
  levels = [Level(experts=4, group_size=32), Level(experts=2, router="switch")]
  hparams = MoeHparams(moe_levels=levels)
  assert hparams.levels == tuple(levels)
  assert hparams.moe_num_experts == (4, 2)
  assert MoeHparams.of(ChangeableHparams(moe_levels=levels)).levels == tuple(
      levels)
  with pytest.raises(ValueError, match=r"Level\.experts = 0 must be a posi"):
    Level(experts=0)
  with pytest.raises(ValueError, match=r"Level\.second_policy_eval = 'some'"):
    Level(second_policy_eval="some")
  with pytest.raises(ValueError, match=r"moe_levels = \[4, 2\] must be a list"):
    MoeHparams(moe_levels=[4, 2])


@pytest.mark.parametrize("name, value", [
    ("moe_group_size", 7), ("moe_gating", "switch"), ("moe_z_loss", 0.1),
    ("moe_capacity_factor_second_level", 2.0), ("moe_num_experts", (3, 3))])
def test_what_levels_would_leave_without_effect(name, value):
  levels = [Level(experts=4), Level(experts=2)]
  changeable = ChangeableHparams(moe_levels=levels)
  with pytest.raises(ValueError, match=f"{name} = .*(has no effect|is not wh)"):
    MoeHparams(**{"moe_levels": levels, name: value})
  with pytest.raises(ValueError, match=f"{name} = .*(has no effect|is not wh)"):
    setattr(changeable, name, value)
  changeable.moe_levels = [Level(experts=5)]
  assert changeable.moe_num_experts == (5,)


def test_every_knob_of_a_level_is_one_of_the_layer():
  assert {f"moe_{field.name}" for field in dataclasses.fields(Level)} - {
      "moe_experts", "moe_router"} < set(MoeHparams.names())
  for name in ("capacity_factor_train", "second_policy_eval", "ntlb_top_k"):
    assert getattr(Level(), name) == MoeHparams.default(f"moe_{name}")


def test_one_level():
  level, = MoeHparams(moe_num_experts=16).levels
  assert level.experts == 16
  assert MoeHparams.of({}, 1).moe_num_experts == 16
  assert MoeHparams.of({}, 2).moe_num_experts == (8, 8)
  assert MoeHparams.of({"moe_num_experts": 3}, 1).moe_num_experts == 3


@pytest.mark.parametrize("attribute, value, said", [
    ("expert_y", 0, "MoE2D.expert_y = 0"),
    ("expert_x", -1, "MoE2D.expert_x = -1"),
    ("moe_hidden_size", 0, "MoE2D.hidden_size = 0"),
    ("moe_shared_hidden_size", 0, "MoE2D.shared_hidden_size = 0 must be a pos"),
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
    ("moe_capacity_factor_train", "1.25", "capacity_factor_train = '1.25'"),
    ("moe_z_loss", True, "MoE2D.z_loss = True must be a number"),
    ("moe_capacity_factor_train", "much", "MoE2D.capacity_factor_train = 'muc"),
    ("moe_dropless_eval", 1, "MoE2D.dropless_eval = 1 .*True or False"),
    ("moe_use_second_place_loss", "no", "use_second_place_loss = 'no' is nei"),
    ("moe_summaries", "False", "MoE2D.summaries = 'False' is neither on nor"),
    ("moe_dropless_eval", "yes", "MoE2D.dropless_eval = 'yes'"),
    ("moe_gating", "top_3", "MoE2D.moe_gating = 'top_3'.*'top_2'"),
    ("moe_gating", ("switch", "x"), "moe_gating = 'x'.*'switch', .*'top_2'"),
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
  parameter = attribute if attribute == "moe_gating" else (
      attribute.removeprefix("moe_"))
  with pytest.raises(ValueError, match=said):
    mtf_moe.MoE2D(**{parameter: value})


def test_mistakes_are_named_as_what_they_were_given_to():
  for build, said in (
      (lambda: mtf_moe.MoE1D(num_experts=0), "MoE1D.num_experts = 0 must"),
      (lambda: mtf_moe.MoE(levels=[4, 0]), r"MoE.levels\[1\] = 0 is neither"),
      (lambda: mtf_moe.MoE(levels=[Level]), r"MoE.levels\[0\] = .*@coarse/L"),
      (lambda: mtf_moe.MoE(levels=4), "MoE.levels = 4 must be a list"),
      (lambda: mtf_moe.MoE(levels=[]), r"MoE.levels = \[\] must be a list"),
      (lambda: mtf_moe.MoE(levels=[Level(), Level(router="swtch")]),
       r"MoE.levels\[1\].router = 'swtch' is not known"),
      (lambda: mtf_moe.MoE(levels=[Level()], z_loss=0.1),
       "MoE.z_loss = 0.1 has no effect on levels"),
      (lambda: mtf_moe.MoE1D(output_dim=8), "MoE1D.output_dim = 8 is no mtf.D"),
      (lambda: mtf_moe.MoE2D(experts=None), "MoE2D.experts = None is no func"),
      (lambda: MoeHparams(moe_gating=["top_2"]).levels,
       r"moe_gating = \['top_2'\] must be one router, or"),
      (lambda: MoeHparams(moe_group_size=0), "moe_group_size = 0 must"),
      (lambda: MoeHparams(moe_num_experts=(4, 0)),
       r"moe_num_experts\[1\] = 0 must")):
    with pytest.raises(ValueError, match="^" + said):
      build()
  gin.parse_config("wide/MoE2D.hidden_size = 0")
  with gin.config_scope("wide"), pytest.raises(
      ValueError, match=r"wide/MoE2D\.hidden_size = 0"):
    mtf_moe.MoE2D()


def test_the_ends_of_the_allowed_ranges():
  MoeHparams(
      moe_num_experts=(1, 1), moe_hidden_size=1, moe_group_size=1,
      moe_min_expert_capacity=1, moe_capacity_factor_train=1e-3,
      moe_second_threshold_train=0, moe_loss_coef=0, moe_z_loss=0,
      moe_dropout_rate=0.0)


def test_a_parameter_that_there_is_not():
  with pytest.raises(TypeError, match=r"MoE2D: got an unexpected .*'expertx'"):
    mtf_moe.MoE2D(expertx=2)
