"""What a run keeps of its layers: real records, written and read."""

import dataclasses
import json

import pytest

from mtf_moe.hparams import Level
from mtf_moe.run import layer_facts
from mtf_moe.run.layer_facts import Parameter
from tests import described_layers

TWO = described_layers.layer(
    "transformer/block_000/layer_001/MoE2D", "wide/MoE2D", (4, 2),
    group_size=32, gating=["switch", "top_2"], loss_coef=0.05)
EACH = described_layers.layer(
    "MoE", "MoE", levels=[
        Level(experts=2, z_loss=0.5), Level(experts=2, min_expert_capacity=1),
        Level(experts=4, capacity_factor_train=3.0)])
OF_A_PROGRAM = described_layers.layer("mine", None, 4)


def test_what_a_layer_is():
  """4 x 16 tokens in two groups of 32, of which each expert takes 10.

  Four times two groups of 10 slots arrive: 80, in one group of 40 each.
  """
  outer, inner = TWO.levels
  assert (outer.name, outer.router, outer.experts) == ("outer", "switch", 4)
  assert (inner.name, inner.router, inner.experts) == ("inner", "top_2", 2)
  assert (outer.asked_group_size, outer.group_size, outer.capacity) == (
      32, 32, 10)
  assert inner.group_size * inner.experts == inner.capacity * 4 == 80
  assert outer.capacity_factors == (1.25, 2.0)
  assert inner.capacity_factors == (1.0, 1.0)


@pytest.mark.parametrize("layer, name, number, expected", [
    (TWO, "loss_coef", 0, ("wide/MoE2D.loss_coef", "0.05")),
    (TWO, "capacity_factor", 0, ("wide/MoE2D.capacity_factor_train", "1.25")),
    (TWO, "capacity_factor", 1,
     ("wide/MoE2D.capacity_factor_second_level", "1.0")),
    (TWO, "second_policy_train", 1,
     ("wide/MoE2D.second_policy_train", "'random'")),
    (TWO, "z_loss", 1, ("wide/MoE2D.z_loss", "None")),
    (EACH, "loss_coef", 2, ("MoE.loss_coef", "0.01")),
    (EACH, "z_loss", 0, ("MoE.levels[0].z_loss", "0.5")),
    (EACH, "min_expert_capacity", 1,
     ("MoE.levels[1].min_expert_capacity", "1")),
    (EACH, "capacity_factor", 2,
     ("MoE.levels[2].capacity_factor_train", "3.0")),
    (OF_A_PROGRAM, "capacity_factor", 0, ("moe_capacity_factor_train", "1.25")),
    (OF_A_PROGRAM, "loss_coef", 0, ("moe_loss_coef", "0.01"))])
def test_parameters_as_gin_has_them(layer, name, number, expected):
  assert layer.parameter(name, number) == Parameter(*expected)


def test_parameters_of_several_layers():
  assert [parameter.name for parameter in layer_facts.parameters(
      [TWO, EACH, TWO], "z_loss")] == [
          "wide/MoE2D.z_loss", "MoE.levels[0].z_loss", "MoE.levels[1].z_loss",
          "MoE.levels[2].z_loss"]
  assert [parameter.name for parameter in layer_facts.parameters(
      [TWO, EACH], "capacity_factor", 2)] == [
          "MoE.levels[2].capacity_factor_train"]
  assert layer_facts.settings([OF_A_PROGRAM, TWO], "summaries", False) == (
      "moe_summaries = False and wide/MoE2D.summaries = False")
  # Where no layer is known.
  assert layer_facts.settings(None, "z_loss", 0.001) == "z_loss = 0.001"


def test_a_file_is_read_as_it_was_written(tmp_path):
  layers = (TWO, EACH, OF_A_PROGRAM)
  assert layer_facts.read(str(tmp_path)) is None
  layer_facts.keep(str(tmp_path), [TWO])
  layer_facts.keep(str(tmp_path), layers)
  assert layer_facts.read(str(tmp_path)) == layers
  assert [path.name for path in tmp_path.iterdir()] == ["layers.json"]
  layer_facts.keep(str(tmp_path), [])
  assert layer_facts.read(str(tmp_path)) == ()


def changed(**level):
  content = {"layers": [dataclasses.asdict(TWO)]}
  content["layers"][0]["levels"][0].update(level)
  return json.dumps(content)


@pytest.mark.parametrize("text", [
    "no JSON", "[]", "{}", "[" * 100000, json.dumps({"layers": 3}),
    json.dumps({"layers": [3]}), json.dumps({"layers": [{"scope": "a"}]}),
    changed(experts=0), changed(experts="many"), changed(capacity=None),
    changed(capacity_factors=[1.0]), changed(parameters={}),
    changed(parameters=3)])
def test_a_file_that_is_something_else(tmp_path, text):
  (tmp_path / "layers.json").write_text(text)
  with pytest.raises(ValueError, match=r"layers\.json is not what a run writes"
                     ".*: remove it"):
    layer_facts.read(str(tmp_path))


def test_a_directory_in_its_place(tmp_path):
  (tmp_path / "layers.json").mkdir()
  with pytest.raises(ValueError, match=r"layers\.json is a directory, and a"):
    layer_facts.keep(str(tmp_path), [TWO])
