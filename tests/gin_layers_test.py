"""MoE1D, and layers of three levels, inside mesh_tensorflow's transformers."""

import inspect

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe as theirs
from mesh_tensorflow.transformer import transformer
import numpy as np
import pytest

import mtf_moe
from mtf_moe import layer_records
from mtf_moe import moe as ours
from tests import gin_config
from tests import harness
from tests.oracle import comparison
from tests.transformer_layers_test import run_model
from tests.transformer_layers_test import some_ids

gin.external_configurable(theirs.MoE1D, "TheirMoE1D", module="tests")

# As the public models with this layer name it, and its parameters.
PUBLIC = ("[@transformer_layers.SelfAttention, "
          "@mesh_tensorflow.transformer.moe.MoE1D]")
LAYERS = "transformer.make_layer_stack.layers = "
SMALL = {"num_experts": 4, "hidden_size": 16, "group_size": 8,
         "second_policy_eval": "random"}


def bindings(name, **changed):
  return [f"{name}.{parameter} = {value!r}"
          for parameter, value in {**SMALL, **changed}.items()]


def train(layers, lines):
  """[logits, loss, gradients] of the tiny model, and its variables' names."""
  names = []

  def use(model, tensors):
    logits, loss = model.call_simple(
        inputs=transformer.autoregressive_inputs(tensors["targets"]),
        targets=tensors["targets"], compute_loss=True, mode="train",
        variable_dtype=harness.variable_dtype(), num_microbatches=1,
        # Without it, theirs does not train.
        sequence_id=mtf.ones_like(tensors["targets"]))
    variables = loss.graph.trainable_variables
    names.extend(v.name.replace("TheirMoE1D", "MoE1D") for v in variables)
    return [logits, loss, *mtf.gradients(
        [loss], [v.outputs[0] for v in variables])]

  with comparison.same_draws():
    values = run_model(
        "models/lm_tiny.gin", (1, 1), {"targets": some_ids(2, 2)}, use,
        [LAYERS + layers, *lines])
  return values, names


# As primer's switch_transformer.gin sets it, but for sizes.
SWITCH_OF_PRIMER = {
    "moe_gating": "switch", "switch_policy_train": "input_jitter",
    "switch_policy_eval": "input_jitter", "switch_jitter": 1e-2,
    "activation": ["relu"], "dropout_rate": 0.0}


@pytest.mark.parametrize("changed", [
    {}, SWITCH_OF_PRIMER, {"moe_gating": "switch", "switch_jitter": 0.1},
    {"moe_gating": "switch", "switch_policy_train": "sample"},
    {"moe_gating": "ntlb", "ntlb_top_k": 2}, {"moe_gating": "top_n"},
    {"word_embed_mode": "concat"}, {"activation": ["gelu", "linear"]}],
                         ids=str)
def test_the_class_of_mesh_tensorflow_and_ours_train_alike(changed):
  found, names = train(PUBLIC, bindings("MoE1D", **changed))
  expected, their_names = train(
      PUBLIC.replace("mesh_tensorflow.transformer.moe.MoE1D",
                     "tests.TheirMoE1D"), bindings("TheirMoE1D", **changed))
  assert names == their_names
  np.testing.assert_array_equal(found[0], expected[0])
  for a, e in zip(found[1:], expected[1:], strict=True):
    np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * np.abs(e).max())


def test_a_mistake_of_a_level_names_the_level():
  with pytest.raises(ValueError, match=(
      r"MoE\.levels\[1\]\.sigmoid_top_k = 5 is more than the 2 experts")):
    train("[@mtf_moe.MoE]", [
        "MoE.levels = [@coarse/Level(), @fine/Level()]",
        "fine/Level.experts = 2", "fine/Level.router = 'sigmoid_top_k'",
        "fine/Level.sigmoid_top_k = 5"])


@gin.configurable(module="tests")
def holder_of_one(layer=None):
  return layer


@gin.configurable(module="tests")
def holder_of_layers(layers=None):
  return [layer() for layer in layers]


@pytest.mark.parametrize("name", [
    "MoE1D", "moe.MoE1D", "mesh_tensorflow.transformer.moe.MoE1D"])
def test_names_in_gin(name):
  gin.parse_config([f"{name}.num_experts = 3",
                    f"holder_of_one.layer = @{name}()"])
  layer = holder_of_one()
  assert type(layer) is mtf_moe.MoE1D and ours.MoE1D is mtf_moe.MoE1D
  assert layer.hparams.moe_num_experts == 3


@pytest.mark.parametrize("name", ["MoE1D", "MoE2D"])
def test_signatures(name):
  mine, reference = (
      inspect.signature(getattr(module, name).__init__).parameters
      for module in (ours, theirs))
  if name == "MoE1D":
    assert list(mine)[:len(reference)] == list(reference)
  assert {parameter: mine[parameter].default for parameter in reference
          if mine[parameter].default != reference[parameter].default} == {
              "second_policy_eval": "threshold"}


THREE = ["MoE.levels = [2, 2, 2]", "MoE.hidden_size = 16", "MoE.group_size = 8",
         "MoE.capacity_factor_train = 2.0", "MoE.capacity_factor_eval = 2.0",
         "MoE.capacity_factor_second_level = 2.0",
         "MoE.second_policy_train = 'threshold'"]


def test_three_levels():
  """They train, decode, and say what they are."""
  layers = "[@transformer_layers.SelfAttention, @mtf_moe.MoE]"
  found, names = train(layers, THREE)
  assert np.isfinite(found[1])
  assert [name.rpartition("MoE/")[2] for name in names if "MoE" in name] == [
      "gating_1/kernel", "gating_2/kernel", "gating_3/kernel", "wi/kernel",
      "wo/kernel"]
  records = []

  def decode(model, tensors):
    ids = model.sample_autoregressive(
        tensors["targets"], variable_dtype=harness.variable_dtype())
    records.extend(layer_records.of(ids.graph))
    return ids

  ids = run_model("models/lm_tiny.gin", (2, 2), {"targets": some_ids(4)},
                  decode, [LAYERS + layers, *THREE])
  assert ids.shape == (4, 8)
  record, = records
  assert record.called == "MoE" and record.scope.endswith("MoE")
  assert [level.experts.size for level in record.levels] == [2, 2, 2]


def test_levels_of_their_own_in_gin():
  gin_config.parse([], [
      "MoE.levels = [@coarse/Level(), @fine/Level()]",
      "coarse/Level.experts = 4", "coarse/Level.router = 'switch'",
      "fine/Level.experts = 2", "Level.group_size = 32"])
  coarse, fine = mtf_moe.MoE().hparams.levels
  assert (coarse.experts, coarse.router, coarse.group_size) == (4, "switch", 32)
  assert (fine.experts, fine.router, fine.group_size) == (2, "top_2", 32)


def test_scoped_layers_say_how_they_are_called():
  gin_config.parse([], [
      "wide/MoE2D.expert_x = 16", "MoE2D.expert_x = 2",
      "holder_of_layers.layers = [@wide/mtf_moe.MoE2D, @mtf_moe.MoE2D]"])
  wide, usual = holder_of_layers()
  assert (wide._called, usual._called) == ("wide/MoE2D", "MoE2D")
  assert wide.hparams.moe_num_experts == (16, 8)


def test_experts_that_choose_tokens_cannot_decode(caplog):
  lines = bindings("MoE1D", moe_gating="expert_selection")
  found, _ = train(PUBLIC, lines)
  assert np.isfinite(found[1])
  assert "sees later ones by it, and cannot decode" in caplog.text

  def decode(model, tensors):
    return model.sample_autoregressive(
        tensors["targets"], variable_dtype=harness.variable_dtype())

  with pytest.raises(ValueError, match=(
      r"MoE1D\.moe_gating = 'expert_selection' lets experts choose among .*"
      r"cannot decode one position at a time: use another router")):
    run_model("models/lm_tiny.gin", (1, 1), {"targets": some_ids(4)}, decode,
              [LAYERS + PUBLIC, *lines])


def test_attention_of_experts(monkeypatch):
  """mesh_tensorflow's layer makes queries and keys with MoE1D."""
  layers = ("[@mesh_tensorflow.transformer.transformer_layers."
            "ExpertsSelfAttention]")
  lines = [f"ExpertsSelfAttention.{line}" for line in (
      "num_experts = 4", "hidden_size = 16", "group_size = 8",
      "moe_gating = 'top_2'", "shared_kv = True")]
  expected, names = train(layers, lines)
  assert any(name.endswith("q_wo/kernel") for name in names)
  used = []

  class Counted(ours.MoE1D):

    def call(self, *args, **kwargs):
      used.append(self)
      return super().call(*args, **kwargs)

  monkeypatch.setattr(theirs, "MoE1D", Counted)
  found, our_names = train(layers, lines)
  assert used and names == our_names
  np.testing.assert_array_equal(found[0], expected[0])
