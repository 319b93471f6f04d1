"""Runs that begin from the checkpoint of another, and what is told of it."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.train import init_checkpoint
from mtf_moe.train import preflight
from tests import gin_config
from tests import reversed_vocabulary
from tests.train import program as program_lib
from tests.train import small_models

STEP = 4  # Of the checkpoint that others begin from.
FILTER = "tpu_estimator_model_fn.init_variable_filter"


def train(model, *bindings, steps):
  return small_models.run(
      model, small_models.ONE_SLICE, f"run.train_steps = {steps}", *bindings)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A Model that was trained for some steps."""
  directory = tmp_path_factory.mktemp("source")
  program_lib.write_text(directory)
  model = small_models.Model(f"{directory}/model", ["runs/tiny.gin"], [
      f"TextFiles.glob = '{directory}/text.txt'", "TextFiles.held_out = 0.2",
      "dropout_rate = 0.1", "run.save_checkpoints_steps = 2"])
  train(model, steps=STEP)
  return model


@pytest.fixture
def other(source, tmp_path):
  """A Model of the same configuration, and without a checkpoint."""
  return small_models.Model(
      f"{tmp_path}/other", source.files, source.bindings)


def begin(source):
  return f"run.init_checkpoint = '{source.directory}/model.ckpt-{STEP}'"


def variables(directory, step):
  reader = tf.train.load_checkpoint(f"{directory}/model.ckpt-{step}")
  return {name: np.asarray(reader.get_tensor(name))
          for name in reader.get_variable_to_shape_map()}


def bits(directory, step):
  return {name: value.tobytes()
          for name, value in variables(directory, step).items()}


def test_all_is_taken_over_and_the_step(source, other):
  said = train(other, begin(source), steps=STEP + 2)
  assert re.search(
      rf"run.init_checkpoint = {source.directory}/model.ckpt-{STEP}: (\d+) of "
      rf"\1 variables taken over \(of step {STEP}\); (\d+) of \2 optimizer "
      rf"slots taken over; the run starts at step {STEP}, at the beginning of "
      "its data", said)
  assert (f"beginning at step {STEP}, from {source.directory}/model.ckpt-{STEP}"
          in said) and "resuming" not in said
  with open(os.path.join(other.directory, "made_with.json")) as f:
    assert json.load(f)["began"] == {
        "init_checkpoint": f"{source.directory}/model.ckpt-{STEP}",
        "step": STEP}
  # It saves at the start.
  assert bits(other.directory, STEP) == bits(source.directory, STEP)


def test_a_run_in_pieces_comes_to_the_same(source, other, tmp_path):
  """And does not need the other checkpoint, but for the first start."""
  steps = STEP + 6
  train(other, begin(source), steps=steps)
  expected = bits(other.directory, steps)
  moved = small_models.Model(f"{tmp_path}/moved", source.files, source.bindings)
  shutil.copytree(source.directory, f"{tmp_path}/source")
  copied = f"run.init_checkpoint = '{tmp_path}/source'"
  train(moved, copied, steps=STEP + 3)
  for name in os.listdir(moved.directory):  # As a run leaves it that is killed.
    if name.startswith((f"model.ckpt-{STEP + 3}", "checkpoint")):
      os.remove(os.path.join(moved.directory, name))
  shutil.rmtree(f"{tmp_path}/source")
  said = train(moved, copied, steps=STEP + 4)
  assert (f"going on from model.ckpt-{STEP + 2}; run.init_checkpoint was taken "
          "over at the first start, and is not needed any more") in said
  assert f"resuming at step {STEP + 2}" in said and "beginning" not in said
  train(moved, steps=steps)  # Nor to be named.
  actual = bits(moved.directory, steps)
  assert actual.keys() == expected.keys()
  assert [name for name in actual if actual[name] != expected[name]] == []


@pytest.mark.parametrize("end", ["", f"/model.ckpt-{STEP}.index",
                                 f"/model.ckpt-{STEP}.data-00000-of-00001"])
def test_ways_to_name_a_checkpoint(end, source):
  assert init_checkpoint.path_of(source.directory + end) == (
      f"{source.directory}/model.ckpt-{STEP}")


def test_directories_that_were_copied(source, tmp_path):
  copy = f"{tmp_path}/copy"
  shutil.copytree(source.directory, copy)
  os.remove(f"{copy}/checkpoint")  # TensorFlow's account.
  assert init_checkpoint.path_of(copy) == f"{copy}/model.ckpt-{STEP}"
  os.rename(copy, f"{copy}[1]")
  with pytest.raises(ValueError, match=(
      r"run\.init_checkpoint=.*copy\[1\].* for a pattern")):
    init_checkpoint.path_of(f"{copy}[1]")


def test_another_number_of_layers_and_no_step(source, other):
  said = train(other, begin(source), "num_layers = 2",
               f"{FILTER} = '^(?!global_step$)'", steps=2)
  new, = re.findall(r"(\d+) start anew: (\S+block_001\S+),", said)
  assert int(new[0]) > 3
  assert "the run starts at step 0" in said
  assert f"beginning at step 0, from {source.directory}" in said
  before, after = variables(source.directory, STEP), variables(
      other.directory, 0)
  assert after.pop("global_step") == 0
  assert not any("block_001" in name for name in before)
  assert [name for name, value in after.items() if "block_001" not in name
          and value.tobytes() != before[name].tobytes()] == []


def test_what_the_checkpoint_has_and_the_model_does_not(source, other):
  said = train(other, begin(source),
               "SelfAttention.relative_attention_type = None", steps=STEP + 1)
  assert ("1 of the checkpoint not used: transformer/block_000/layer_000/"
          "SelfAttention/relative_attention_bias") in said


@pytest.mark.parametrize("bindings, said", [
    (["run.init_checkpoint = 'no/such/model.ckpt-1'"],
     r"run\.init_checkpoint = 'no/such/model\.ckpt-1' is no checkpoint: give "),
    (["run.init_checkpoint = 7"], r"run\.init_checkpoint = 7 is no checkpoint"),
    (["run.init_checkpoint = '/'"], r"run\.init_checkpoint = '/' is no check"),
    (["{begin}", "MoE2D.hidden_size = 8"],
     r"run\.init_checkpoint = .* does not fit: variable \S+MoE2D/wi/kernel has "
     r"the shape \[2, 2, 16, 8\] in this configuration, and \[2, 2, 16, 16\] "
     r"in the checkpoint.* python -m mtf_moe\.surgery --from=.*model\.ckpt-"
     rf"{STEP}; .*{FILTER} = "),
    (["{begin}", f"run.train_steps = {STEP}"],
     rf"run\.train_steps = {STEP} leaves nothing to train: the run starts at "
     rf"step {STEP}, that of run\.init_checkpoint"),
    (["{begin}", "run.seen_data_init_step = 2"],
     rf"run\.seen_data_init_step = 2, and this run starts at step {STEP}"),
    (["{begin}", f"{FILTER} = '['"], rf"{FILTER} = '\[' is no regular expr"),
    (["{begin}", f"{FILTER} = 'nothing'"], "has no variable of this model"),
    (["tpu_estimator_model_fn.init_checkpoint = 'model.ckpt-1'"],
     r"tpu_estimator_model_fn\.init_checkpoint = 'model\.ckpt-1' has no effect"
     r".*: set run\.init_checkpoint in its place"),
])
def test_mistakes_are_one_line_and_leave_nothing(
    bindings, said, source, other):
  lines = [line.replace("{begin}", begin(source)) for line in bindings]
  with pytest.raises(SystemExit, match=said) as refused:
    train(other, *lines, steps=STEP + 2)
  assert "\n" not in str(refused.value)
  assert not os.path.exists(other.directory)


def save(values, directory):
  """A checkpoint of these values, by name; returns its path."""
  with tf.Graph().as_default(), tf.Session() as session:
    for name, value in values.items():
      tf.get_variable(name, initializer=value)
    session.run(tf.global_variables_initializer())
    return tf.train.Saver().save(session, f"{directory}/model.ckpt", STEP)


def test_other_types_are_read(source, other, tmp_path):
  """Each value is rounded to the type that is configured, or stays as it is."""
  said = train(other, begin(source),
               "get_variable_dtype.master_dtype = 'bfloat16'", steps=STEP + 1)
  floats = {name: value for name, value in variables(
      source.directory, STEP).items() if name != "global_step"}
  narrow = variables(other.directory, STEP)
  bfloat16 = tf.bfloat16.as_numpy_dtype
  rounded = {name for name in floats if narrow[name].dtype == bfloat16}
  assert f"; {len(rounded)} of them in float32, read as bfloat16; " in said
  assert any(name.endswith("MoE2D/wi/kernel") for name in rounded)
  for name, value in floats.items():
    np.testing.assert_array_equal(
        narrow[name], value.astype(bfloat16 if name in rounded else np.float32))
  again = small_models.Model(f"{tmp_path}/again", source.files, source.bindings)
  said = train(again, f"run.init_checkpoint = '{other.directory}/model.ckpt-"
               f"{STEP}'", steps=STEP + 1)
  assert f"; {len(rounded)} of them in bfloat16, read as float32; " in said
  for name, value in variables(again.directory, STEP).items():
    if name in floats:
      assert value.dtype == np.float32
      np.testing.assert_array_equal(value, narrow[name].astype(np.float32))


def test_whole_numbers_are_no_weights(source, other, tmp_path):
  values = variables(source.directory, STEP)
  name, = (name for name in values if name.endswith("MoE2D/wi/kernel"))
  path = save(values | {name: values[name].astype(np.int32)}, tmp_path)
  with pytest.raises(SystemExit, match=(
      rf"variable {name} is float32 in this configuration, and int32 in the "
      r"checkpoint\. Set get_variable_dtype\.master_dtype = \"int32\"")):
    train(other, f"run.init_checkpoint = '{path}'", steps=STEP + 1)


def look(source, other, *bindings):
  """What a run says before it begins, without a step of it."""
  gin_config.parse(other.files, [
      *small_models.SETTINGS, *other.bindings, begin(source),
      f"run.train_steps = {STEP + 1}", *bindings])
  configured = preflight.check_configuration(other.directory)
  preflight.begin(other.directory, configured, preflight.find_beginning(
      other.directory, configured))


def test_the_same_is_told_in_one_line(source, other, heard):
  look(source, other)
  line, = heard
  assert line.startswith("say: run.init_checkpoint = ")


def test_slots_of_another_optimizer(source, other, heard):
  look(source, other,
       "run.optimizer = @optimize.AdamWeightDecayOptimizer")
  line, = heard
  there = variables(source.directory, STEP)
  count = sum("_slot_" in name for name in there)
  assert re.search(
      r"; 0 of \d+ optimizer slots taken over, the others start at zero; "
      rf"{count} optimizer slots of the checkpoint not used, which run\."
      r"optimizer = @AdamWeightDecayOptimizer does not have: \S+_slot_", line)


def test_a_dense_layer_where_experts_are_wanted(source, other, heard):
  look(source, other, "transformer.make_layer_stack.layers = "
       "[@mesh_tensorflow.transformer.transformer_layers.SelfAttention, "
       "@mesh_tensorflow.transformer.transformer_layers.DenseReluDense]",
       "DenseReluDense.hidden_size = 16")
  assert ("; python -m mtf_moe.surgery makes experts from other feed-forward "
          "layers; ") in heard[0]
  assert "optimizer slots of the checkpoint" not in heard[0]


@pytest.mark.parametrize("binding, said", [
    ("num_layers = 2", "warn: .*make_layer_stack.num_layers = %num_layers = 2, "
     "and was 1$"),
    ("MoE2D.moe_gating = 'switch'",
     "warn: .*MoE2D.moe_gating = 'switch', and was 'top_2'$"),
    (reversed_vocabulary.BINDING,
     "warn: .*run.vocabulary = .*ReversedVocabulary.*, and was class "
     "ByteVocabulary.*: embeddings are of other pieces of text$"),
    ("TextFiles.glob = '{directory}/other.txt'",
     r"say: .*TextFiles\.glob = bytes 1400, .*, and was bytes \d+"),
    ("TextFiles.held_out = 0.5",
     r"say: .*TextFiles\.held_out = 0\.5, and was 0\.2$"),
])
def test_what_the_checkpoint_was_made_with_is_compared(
    binding, said, source, other, heard):
  directory = os.path.dirname(source.directory)
  with open(f"{directory}/other.txt", "w") as f:
    f.write("Another text. " * 100)
  look(source, other, binding.replace("{directory}", directory))
  taken, line = heard
  assert taken.startswith("say: run.init_checkpoint = ")
  assert re.match(said, line), line
  assert f"not as when the checkpoint in {source.directory} was made" in line


def test_a_checkpoint_with_nan_is_refused(source, other, tmp_path):
  path = save({
      name: np.full_like(value, np.nan) if value.dtype == np.float32 else value
      for name, value in variables(source.directory, STEP).items()}, tmp_path)
  with pytest.raises(SystemExit, match="has values that are not finite"):
    train(other, f"run.init_checkpoint = '{path}'", steps=STEP + 1)


def test_a_run_that_began_otherwise_does_not_begin_again(
    source, other, capsys):
  train(other, steps=2)
  before = bits(other.directory, 2)
  train(other, begin(source), steps=3)
  assert re.search(
      rf"run.init_checkpoint = .* is not taken over: --model_dir="
      rf"{other.directory} holds model.ckpt-2, and the run goes on from that",
      capsys.readouterr().err)
  assert variables(other.directory, 3)["global_step"] == 3
  assert bits(other.directory, 2) == before
