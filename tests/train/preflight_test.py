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


@gin.configurable(module="tests")
def pairs(**unused_kwargs):
  """Examples with both features."""
  return tf.data.Dataset.from_tensors({"inputs": [1], "targets": [1]})


@gin.configurable(module="tests")
def no_filter(variable):
  raise KeyError(variable.name)


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


def begin(text, model_dir, *bindings):
  gin_config.parse(
      ["models/lm_tiny.gin", "meshes/cpu_1.gin", "data/bytes.gin"],
      [f"TextFiles.glob = '{text}'", "TextFiles.held_out = 0.5",
       "num_layers = 1", "run.train_steps = 10", *bindings])
  preflight.find_beginning(
      str(model_dir), preflight.check_configuration(str(model_dir)))


SCHEDULES = "run.learning_rate_schedule = @learning_rate_schedules"
ADAFACTOR = "run.optimizer = @optimize.AdafactorOptimizer"


@pytest.mark.parametrize("bindings, said", [
    (["run.variable_filter = '('"], r"run\.variable_filter = '\(' is no reg"),
    (["run.variable_filter = 'nothing'"],
     r"variable_filter = 'nothing' finds no variable to train: give a part"),
    (["run.variable_filter = @tests.no_filter"],
     r"variable_filter = .*no_filter.* fails for .*KeyError"),
    (["optimize.AdafactorOptimizer.decay_rate = 'x'"],
     f"{ADAFACTOR} cannot train .*TypeError.*: correct the parameters"),
    (["optimize.AdafactorOptimizer.clipping_threshold = 0"],
     f"{ADAFACTOR} cannot train .*ZeroDivisionError"),
    (["run.optimizer = @mtf_moe.MoE2D"],
     r"run\.optimizer = @mtf_moe.MoE2D is of another kind: give a class with a "
     r"method 'apply_grads'"),
    (["run.optimizer = @optimize.MomentumOptimizer"],
     r"MomentumOptimizer cannot train .* lacks a value .* set its 'momentum'"),
    (["run.optimizer = @optimize.SgdOptimizer",
      "run.learning_rate_schedule = None"],
     "schedule = None, and run.optimizer = @optimize.SgdOptimizer has no "),
    (["run.learning_rate_schedule = @mtf_moe.held_out_steps"],
     "schedule = @mtf_moe.held_out_steps gives no learning rate .TypeError"),
    (["run.learning_rate_schedule = [0.01, @mtf_moe.MoE2D]"],
     r"schedule = \[0.01, @mtf_moe.MoE2D\] gives no learning rate"),
    (["run.learning_rate_schedule = []"], r"schedule = \[\] has no factor"),
    ([f"{SCHEDULES}.constant_learning_rate"], "constant_learning_rate gives no "
     "learning rate .* lacks a value .* set its 'learning_rate'"),
    ([f"{SCHEDULES}.truncated_rsqrt", "truncated_rsqrt.warmup_steps = 0"],
     "truncated_rsqrt is inf at step 0 of 10"),
    ([f"{SCHEDULES}.learning_rate_schedule_noam",
      "learning_rate_schedule_noam.warmup_steps = 0"], "noam is inf at step 0"),
    ([f"{SCHEDULES}.linear_warmup", "linear_warmup.steps_or_fraction = 0"],
     "linear_warmup is nan at step 0"),
    ([f"{SCHEDULES}.linear_decay", "run.total_run_steps = 5"],
     "linear_decay is -8.0 at step 9 of 5"),
])
def test_optimizers_and_schedules_that_cannot_train(
    text, tmp_path, bindings, said):
  with pytest.raises(ValueError, match=said):
    begin(text, tmp_path / "model", *bindings)
  assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("bindings", [
    [f"{SCHEDULES}.linear_warmup"], [f"{SCHEDULES}.linear_decay"],
    [f"{SCHEDULES}.slanted_triangular"],
    ["run.learning_rate_schedule = [0.1, @linear_warmup, @truncated_rsqrt]"],
    ["run.learning_rate_schedule = None"],
    ["run.learning_rate_schedule = 0.5", "run.variable_filter = 'wi'"]])
def test_optimizers_and_schedules_that_train(text, tmp_path, bindings):
  begin(text, tmp_path / "model", *bindings)


def test_a_schedule_counts_from_where_the_run_goes_on(text, tmp_path):
  save_checkpoint(tmp_path, {"variable": []})
  product = "learning_rate_schedules.product_learning_rate"
  late = [f"run.learning_rate_schedule = @{product}",
          f"{product}.factors = [@linear_warmup]", f"{product}.offset = 7"]
  begin(text, tmp_path, *late)
  with pytest.raises(ValueError, match="at step 0 of 10"):
    begin(text, tmp_path / "new", *late)


@pytest.mark.parametrize("kind", ["bitransformer", "aligned", "delimited_lm"])
def test_a_model_that_the_data_does_not_serve(kind, text):
  with pytest.raises(ValueError, match=(
      rf"run\.model_type = '{kind}' reads inputs and targets, .* of run\."
      r"train_dataset_fn have targets: use 'lm'")):
    check(text, f"run.model_type = '{kind}'")


def test_a_model_of_two(text):
  with pytest.raises(ValueError, match=(
      r"run\.model_type = 'bi_student_teacher' is not supported")):
    check(text, "run.model_type = 'bi_student_teacher'", "run.mode = 'train'",
          "run.train_dataset_fn = @tests.pairs")
