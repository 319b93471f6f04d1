"""A run keeps with it what its layers are, and who reads the run says so."""

import re

import pytest

from mtf_moe.report import mixtures
from mtf_moe.report import page
from mtf_moe.report import runs
from mtf_moe.run import layer_facts
from tests.train import program

LAYERS = [
    program.FOUR_SLICES,
    "transformer.make_layer_stack.layers = [@transformer_layers.SelfAttention, "
    "@wide/mtf_moe.MoE2D, @MoE1D]",
    "wide/MoE2D.expert_x = 4", "wide/MoE2D.loss_coef = 0.05",
    "MoE1D.num_experts = 4", "MoE1D.hidden_size = 16",
    "MoE1D.moe_gating = 'expert_selection'",
    # Nearly all tokens are dropped at level one of the first.
    "wide/MoE2D.capacity_factor_train = 0.1",
    "wide/MoE2D.min_expert_capacity = 1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  directory = tmp_path_factory.mktemp("model")
  program.write_text(directory)
  program.run(directory, "run.train_steps = 1", *LAYERS)
  return directory / "model"


def test_a_model_with_two_kinds_of_layers(model):
  """4 x 16 tokens on a mesh of 2 x 2: 16 in a group, on each slice.

  An expert of level one has 16 * 0.1 / 4 slots, so one; two groups of them
  arrive at each half of the mesh, a group of two there.
  """
  wide, one_level = layer_facts.read(str(model))
  assert wide.scope == "transformer/block_000/layer_001/MoE2D"
  assert wide.called == "wide/MoE2D"
  outer, inner = wide.levels
  assert (outer.experts, outer.asked_group_size, outer.group_size,
          outer.capacity) == (4, 256, 16, 1)
  assert (inner.experts, inner.group_size, inner.capacity) == (2, 2, 1)
  assert str(wide.parameter("loss_coef")) == "wide/MoE2D.loss_coef (now 0.05)"
  assert one_level.scope == "transformer/block_000/layer_002/MoE1D"
  assert [level.router for level in one_level.levels] == ["expert_selection"]
  assert one_level.parameter("capacity_factor").name == (
      "MoE1D.capacity_factor_train")


def test_its_report(model):
  run, = runs.read([str(model)])
  wide, one_level = mixtures.find(run)
  assert wide.level_names == ["outer", "inner"]
  assert one_level.level_names == ["level_1"]
  assert [layer.facts for layer in (wide, one_level)] == list(run.layers)
  text = page.render([run])
  assert re.search(
      r"tokens find no expert at level one \(outer\) of layer 1 [^<]*: raise "
      r"wide/MoE2D\.(capacity_factor_train \(now 0\.1|loss_coef \(now 0\.05)",
      text)
  assert "experts choose tokens" in text
