"""Mistakes in a configuration are named before TensorFlow runs anything."""

import gin
import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe.run import arithmetic
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.train import preflight
from tests import gin_config
from tests import harness

LAYER = "transformer/block_000/layer_001/MoE2D"


@pytest.fixture
def text(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("It was the best of times, it was the worst of times. " * 100)
  return path


def check(text, *bindings, mesh="cpu_2x2", model_dir="no_model"):
  gin_config.parse(
      ["models/lm_tiny.gin", f"meshes/{mesh}.gin", "data/bytes.gin"],
      [f"TextFiles.glob = '{text}'", "TextFiles.held_out = 0.5", *bindings])
  preflight.check_checkpoint(
      str(model_dir), preflight.check_configuration(str(model_dir)))


def test_a_good_configuration_passes(text, tmp_path):
  check(text, model_dir=tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt"]


@pytest.mark.parametrize("bindings, said", [
    (["MoE2D.expert_x = 3"], "MoE2D.expert_x .*size 3.*'batch' of size 2.*"
     r"multiple of 2.*run\.mesh_shape"),
    (["MoE2D.expert_y = 5"], "MoE2D.expert_y .*size 5.*'outer' of size 2"),
    (["batch_size = 6"], r"run\.batch_size .*size 3.*multiple of 2"),
    (["batch_size = 7"], r"run\.batch_size = 7.*outer_batch_size = 2"),
    (["batch_size = 0"], r"run\.batch_size = 0, the macro batch_size, must be"),
    (["run.batch_size = 0"], r"run\.batch_size = 0.*positive"),
    (["run.batch_size = -4"], r"run\.batch_size = -4.*positive"),
    (["tpu_estimator_model_fn.outer_batch_size = 1"],
     r"tpu_estimator_model_fn\.outer_batch_size .*size 1.*multiple of 2"),
    (["MoE2D.moe_gating = 'top_9'"], r"MoE2D\.moe_gating = 'top_9'.*'top_2'"),
    (["MoE2D.second_policy_train = 'often'"],
     r"MoE2D\.second_policy_train = 'often'.*'random'"),
    (["MoE2D.group_size = 0"], r"MoE2D\.group_size = 0"),
    (["MoE2D.hidden_size = -1"], r"MoE2D\.hidden_size = -1"),
    (["MoE2D.capacity_factor_train = 0"], "MoE2D.capacity_factor_train = 0"),
    (["MoE2D.activation = []"], r"MoE2D\.activation = \[\] has no activation"),
    *(([f"MoE2D.activation = ['relu', '{name}']"],
       rf"MoE2D\.activation = '{name}' is not an activation of mtf")
      for name in ("Tensor", "einsum", "reduce_sum", "softmax", "ops")),
    (["MoE2D.activation = 'rleu'"], r"MoE2D\.activation = 'rleu'.*\"relu\""),
    (["TextFiles.glob = 'no/such/*.txt'"],
     r"TextFiles\.glob='no/such/\*\.txt' matches no file"),
    (["sequence_length = 6000"], r"has .* tokens, run\.sequence_length=6000"),
    (["sequence_length = 0"], r"run\.sequence_length = 0.*positive integer"),
    (["run.layout_rules = 'outer_batch:outer,batch:batch,expert_x:outer,"
      "expert_y:batch'"], "splits both 'outer_batch' and 'expert_x' over "
     r".*'outer'.*different axes"),
])
def test_mistakes(text, bindings, said):
  with pytest.raises(ValueError, match=said):
    check(text, *bindings)


def test_a_batch_the_mesh_does_not_divide_is_named_in_other_modes(
    text, tmp_path):
  save_checkpoint(tmp_path, {"variable": []})
  with pytest.raises(ValueError, match=r"run\.batch_size .*size 3"):
    check(text, "batch_size = 3", "run.mode = 'infer'", model_dir=tmp_path)


def save_checkpoint(directory, shapes):
  """Saves floats, and the step."""
  with tf.Graph().as_default(), tf.Session() as session:
    tf.train.get_or_create_global_step()
    for name, shape in shapes.items():
      tf.get_variable(name, shape)
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, str(directory / "model.ckpt"), 7)


def test_a_checkpoint_of_another_model(text, tmp_path):
  gin_config.parse(
      ["models/lm_tiny.gin", "meshes/cpu_2x2.gin", "data/bytes.gin"],
      [f"TextFiles.glob = '{text}'", "TextFiles.held_out = 0.5"])
  shapes = ConfiguredModel.from_gin().variables
  assert shapes[f"{LAYER}/wi/kernel"] == [2, 2, 32, 64]
  # No dimension is large enough for Adafactor to factor what it keeps.
  save_checkpoint(tmp_path, {
      **shapes, **{f"{name}_slot_v": shape for name, shape in shapes.items()}})
  check(text, model_dir=tmp_path)  # The right one.
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  with pytest.raises(ValueError, match=(
      rf"--model_dir={tmp_path} .*{LAYER}/wi/kernel has the shape "
      r"\[2, 2, 32, 128\] in this configuration, and has the shape "
      r"\[2, 2, 32, 64\] in .*model.ckpt-7.*new --model_dir")):
    check(text, "MoE2D.hidden_size = 128", model_dir=tmp_path)
  with pytest.raises(ValueError, match=r"does not exist in .*model.ckpt-7"):
    check(text, "num_layers = 3", model_dir=tmp_path)
  assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


@pytest.mark.parametrize("rank", [1, 5])
def test_an_input_of_another_rank(rank):
  dims = [mtf.Dimension(f"d{i}", 2) for i in range(rank)]
  with pytest.raises(ValueError, match=r"takes \[batch, length, depth\], "):
    harness.evaluate(
        lambda tensors: mtf_moe.transformer_moe_layer_v2(
            tensors["inputs"], dims[-1], mtf_moe.MoeHparams(), True,
            harness.variable_dtype()),
        {"inputs": (np.zeros([2] * rank), dims)}, None)


@pytest.mark.parametrize("dtype, tpu, is_warned", [
    ("bfloat16", None, True), ("float32", None, False),
    ("bfloat16", "a_tpu", False)])
def test_wrong_products_of_bfloat16_are_told(
    dtype, tpu, is_warned, monkeypatch, caplog):
  monkeypatch.setattr(arithmetic, "is_wrong", lambda: True)
  gin.parse_config(f"get_variable_dtype.activation_dtype = '{dtype}'")
  preflight.warn_of_wrong_products(tpu)
  assert (arithmetic.ADVICE in caplog.text) == is_warned


def test_right_products_of_bfloat16_are_not(caplog):
  gin.parse_config("get_variable_dtype.activation_dtype = 'bfloat16'")
  preflight.warn_of_wrong_products(None)
  assert not caplog.text
