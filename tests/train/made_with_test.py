"""A checkpoint is used as what it was made as, or something is said."""

import json
import os
import re
import shutil

import gin
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import experts
from mtf_moe.text import vocabulary
from mtf_moe.train import made_with
from mtf_moe.train import preflight
from tests import gin_config
from tests.train import program as program_lib
from tests.train import small_models

PERPLEXITY = "runs/perplexity.gin"
ADAM = "run.optimizer = @optimize.AdamWeightDecayOptimizer"
SGD = "run.optimizer = @optimize.SgdOptimizer"


@gin.configurable(module="made_with_test")
class ShiftedVocabulary(vocabulary.ByteVocabulary):
  """As large as that of bytes, and with other ids."""

  def encode(self, s):
    return [(i - 3 + 1) % 256 + 3 for i in super().encode(s)]

  def decode(self, ids):
    return super().decode([(i - 3 - 1) % 256 + 3 for i in ids])


@gin.configurable(module="made_with_test")
class SameVocabulary(vocabulary.ByteVocabulary):
  """The same under another name."""


@gin.configurable(module="made_with_test")
def other_experts(*args, **kwargs):
  return experts.feed_forward(*args, **kwargs)


@gin.configurable(module="made_with_test")
class OwnLayer(mtf_moe.MoE2D):
  """A layer of a user's, with a parameter of its own."""

  def __init__(self, sharpness=1.0):
    super().__init__(expert_x=2, expert_y=2, hidden_size=16)
    self.sharpness = sharpness


def model_in(directory):
  program_lib.write_text(directory)
  (directory / "other.txt").write_text("Another text. " * 100)
  return small_models.Model(f"{directory}/model", ["runs/tiny.gin"], [
      f"TextFiles.glob = '{directory}/text.txt'", "TextFiles.held_out = 0.2",
      "num_layers = 2"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A Model with a checkpoint of two layers."""
  model = model_in(tmp_path_factory.mktemp("trained"))
  small_models.run(model, small_models.ONE_SLICE, "run.train_steps = 2")
  return model


@pytest.fixture
def unknown(trained, tmp_path):
  """The same without the file, as another program would leave it."""
  shutil.copytree(trained.directory, tmp_path / "unknown")
  os.remove(tmp_path / "unknown" / made_with.FILE)
  return small_models.Model(
      f"{tmp_path}/unknown", trained.files, trained.bindings)


def check(model, *bindings, files=()):
  """The checks that the program makes, with the mesh of `small_models`."""
  gin_config.parse(
      [*model.files, *files], [*small_models.SETTINGS, *model.bindings,
                               "run.train_steps = 4", *bindings])
  return preflight.check_checkpoint(
      model.directory, preflight.check_configuration(model.directory))


def other_text(model):
  return model.bindings[0].replace("text.txt", "other.txt")


# What shapes do not tell, or tell late. All of it is said at once.
OTHER_MODEL = {
    "MoE2D.moe_gating = ('top_2', 'switch')":
        "MoE2D.moe_gating = ['top_2', 'switch'], and was 'top_2'",
    "num_heads = 4":
        "SelfAttention.num_heads = %num_heads = 4, and was 2",
    "d_kv = 4": "SelfAttention.key_value_size = %d_kv = 4, and was 8",
    "MoE2D.activation = 'gelu'": "MoE2D.activation = 'gelu', and was 'relu'",
    "MoE2D.word_embed_mode = 'add'":
        "MoE2D.word_embed_mode = 'add', and was None",
    "MoE2D.experts = @other_experts":
        "MoE2D.experts = @made_with_test.other_experts, and was not set",
    "sublayer_rms_norm.epsilon = 0.1":
        "sublayer_rms_norm.epsilon = 0.1, and was 1e-06",
    "MoE2D.hidden_size = 8": "MoE2D.hidden_size = 8, and was 16",
    "vocabulary/gin.singleton.constructor = @ShiftedVocabulary":
        "run.vocabulary = %vocabulary = class ShiftedVocabulary, content ",
}
OTHER_MODELS = [
    (list(OTHER_MODEL), list(OTHER_MODEL.values())),
    (["MoE2D.moe_gating = 'switch'"], ["MoE2D.moe_gating = 'switch', and was"]),
    (["num_layers = 1"],
     ["make_layer_stack.num_layers = %num_layers = 1, and was 2"]),
    (["make_layer_stack.num_layers = 3"],
     ["make_layer_stack.num_layers = 3, and was 2"]),
    (["transformer.make_layer_stack.layers = [@mtf_moe.MoE2D]"],
     ["make_layer_stack.layers = ['@mtf_moe.MoE2D'], and was ['@mesh_tensor"]),
]


@pytest.mark.parametrize("number", range(len(OTHER_MODELS)))
def test_another_model_is_refused(number, trained, heard):
  """For evaluation, and for training that goes on."""
  bindings, parts = OTHER_MODELS[number]
  with pytest.raises(ValueError, match=re.escape(
      f"--model_dir={trained.directory} holds a checkpoint of another model: "
      )) as refused:
    check(trained, *bindings, files=[PERPLEXITY] * (number % 2))
  message = str(refused.value)
  assert [part for part in parts if part not in message] == []
  assert message.count(", and was ") == len(parts)
  assert "\n" not in message
  assert not heard


@pytest.mark.parametrize("mode", [
    "infer", "score_from_strings", "export_infer", "eval"])
def test_in_every_mode(mode, trained):
  lengths = ["run.sequence_length = None"] if mode == "eval" else []
  with pytest.raises(ValueError, match=r"MoE2D\.moe_gating = 'switch'"):
    check(trained, f"run.mode = '{mode}'", "MoE2D.moe_gating = 'switch'",
          "run.eval_checkpoint_step = 2", "run.perplexity_eval_steps = 1",
          f"run.export_path = '{trained.directory}'",
          "continue_prompts.prompts = ['abc']",
          "score_from_strings.inputs = None",
          "score_from_strings.targets = ['abc']",
          "score_from_strings.score_postprocess_fn = @save_scores", *lengths,
          files=["runs/sample.gin"] if mode == "infer" else [])


# What people change on purpose.
FREE = [
    "MoE2D.capacity_factor_train = 3.0", "MoE2D.capacity_factor_eval = 3.0",
    "MoE2D.capacity_factor_second_level = 3.0", "MoE2D.dropless_eval = True",
    "MoE2D.min_expert_capacity = 2", "MoE2D.group_size = 8",
    "MoE2D.dispatch = 'einsum'", "MoE2D.second_policy_train = 'all'",
    "MoE2D.second_policy_eval = 'none'", "MoE2D.second_threshold_eval = 0.1",
    "MoE2D.loss_coef = 0.1", "MoE2D.z_loss = 0.1", "MoE2D.summaries = False",
    "MoE2D.dropout_rate = 0.1", "dropout_rate = 0.2",
    "MoE2D.use_second_place_loss = True",
    "run.mesh_shape = 'outer:2,batch:2'", "run.learning_rate_schedule = 0.5",
    "Unitransformer.max_length = 99", "Unitransformer.label_smoothing = 0.1",
    # The same under another name.
    "vocabulary/gin.singleton.constructor = @SameVocabulary"]


# What training needs to find its place in the data again.
BATCHES = ["batch_size = 8", "sequence_length = 32"]


@pytest.mark.parametrize("bindings, files", [
    ([], []), ([], [PERPLEXITY]), (FREE, []),
    # And what belongs to training.
    ([*FREE, *BATCHES, SGD, "train_model.seed = 5"], [PERPLEXITY]),
    # The data begins anew in each run.
    ([*FREE, *BATCHES, "run.skip_seen_data = False"], []),
    (["run.batch_size = ('tokens_per_batch', 64)"], [])])
def test_what_may_be_changed_is_passed_over(bindings, files, trained, heard):
  check(trained, *bindings, files=files)
  assert not heard


def test_a_list_of_what_is_held_out_is_as_it_was(trained, tmp_path, heard):
  shutil.copytree(trained.directory, tmp_path / "copy")
  path = tmp_path / "copy" / made_with.FILE
  kept = path.read_text()
  assert '"TextFiles.held_out": 0.2' in kept
  path.write_text(kept.replace(
      '"TextFiles.held_out": 0.2', '"TextFiles.held_out": ["o*"]'))
  model = small_models.Model(f"{tmp_path}/copy", trained.files, [
      trained.bindings[0].replace("text.txt", "*.txt"),
      "TextFiles.held_out = ['o*']", *trained.bindings[2:]])
  check(model)
  line, = heard
  assert "TextFiles.glob" in line
  assert "held_out" not in line


@pytest.mark.parametrize("files, bindings, said", [
    ([PERPLEXITY], ["other text"], r"say: .*TextFiles\.glob = bytes 1400, con"),
    ([], ["other text"], r"warn: .*TextFiles\.glob = bytes 1400, content"),
    ([PERPLEXITY], ["TextFiles.held_out = 0.5"],
     r"warn: .*TextFiles\.held_out = 0\.5, and was 0\.2"),
    ([PERPLEXITY], ["get_variable_dtype.activation_dtype = 'bfloat16'"],
     r"say: .*get_variable_dtype\.activation_dtype = 'bfloat16', and was 'fl"),
    ([], ["get_variable_dtype.activation_dtype = 'bfloat16'"],
     r"warn: .*get_variable_dtype\.activation_dtype = 'bfloat16', and was 'f"),
    ([], ["train_model.seed = 5"], r"warn: .*train_model\.seed = 5, and was 0"),
    ([], ["text_dataset.shuffle_seed = 5"], r"warn: .*shuffle_seed = 5, and w"),
    ([], ["batch_size = 8"], r"warn: .*run.batch_size \(in sequences\) = 8, and"
     " was 4: the data does not go on where it was .run.skip_seen_data.$"),
    ([], ["sequence_length = 32"], "warn: .*run.sequence_length = .*inputs 32, "
     "targets 32, and was inputs 16, targets 16: the data does not go on whe"),
    ([], ["run.ensemble_inputs = 2"], "warn: .* = 8, and was 4: the data"),
])
def test_what_may_be_meant_is_told(files, bindings, said, trained, heard):
  bindings = [other_text(trained) if line == "other text" else line
              for line in bindings]
  check(trained, *bindings, files=files)
  line, = heard
  assert re.match(said, line), line


@pytest.mark.parametrize("bindings, said", [
    ([ADAM], r"run\.optimizer = @AdamWeightDecayOptimizer.*its variable "
     r"\S+/adam_m is not in .*_slot_v"),
    (["AdafactorOptimizer.beta1 = 0.5"], "@AdafactorOptimizer.*_slot_m is not"),
    (["AdafactorOptimizer.min_dim_size_to_factor = 2"], "_slot_vc is not in"),
])
@pytest.mark.parametrize("is_known", [True, False])
def test_another_optimizer_is_refused(
    bindings, said, is_known, trained, unknown):
  was = " (it was made with @mesh_tensorflow.optimize.AdafactorOptimizer)"
  with pytest.raises(ValueError, match=said) as refused:
    check(trained if is_known else unknown, *bindings)
  assert (was in str(refused.value)) == is_known
  assert "run.init_checkpoint and another --model_dir" in str(refused.value)


def test_what_an_optimizer_leaves_aside_is_told(unknown, heard):
  check(unknown, SGD)
  line, = heard
  assert "run.optimizer = @SgdOptimizer does not use what" in line
  assert "_slot_v" in line


@pytest.mark.parametrize("files", [[PERPLEXITY], []])
def test_variables_are_compared_both_ways(files, unknown):
  with pytest.raises(ValueError, match=(
      r"this configuration has no variable transformer/block_001/\S+, .* in "
      r"all\. Look at the number of layers \(make_layer_stack\.num_layers\)")):
    check(unknown, "num_layers = 1", files=files)
  with pytest.raises(ValueError, match=r"block_002/.* does not exist in"):
    check(unknown, "num_layers = 3", files=files)
  with pytest.raises(ValueError, match=(
      r"is bfloat16 in this configuration, and float32 in .*Set "
      r'get_variable_dtype\.master_dtype = "float32"')):
    check(unknown, "get_variable_dtype.master_dtype = 'bfloat16'", files=files)


def test_refusing_can_be_turned_off(trained, unknown, heard):
  off = "compare_made_with.refuse = False"
  check(trained, off, "MoE2D.moe_gating = 'switch'", files=[PERPLEXITY])
  line, = heard
  assert line.startswith("warn: ") and "MoE2D.moe_gating = 'switch'" in line
  heard.clear()
  check(unknown, off, "num_layers = 1", files=[PERPLEXITY])
  line, = heard
  assert line.startswith("warn: ") and "block_001" in line
  with pytest.raises(ValueError, match="refuse = 'no' is neither on nor off"):
    check(trained, "compare_made_with.refuse = 'no'")


def test_a_parameter_of_a_users_own_layer_is_told(tmp_path, heard):
  model = model_in(tmp_path)
  model.bindings.append(
      "transformer.make_layer_stack.layers = [@made_with_test.OwnLayer]")
  small_models.run(model, small_models.ONE_SLICE, "run.train_steps = 1")
  heard.clear()
  check(model, "OwnLayer.sharpness = 2.0", files=[PERPLEXITY])
  line, = heard
  assert line.startswith("warn: ")
  assert "OwnLayer.sharpness = 2.0, and was 1.0" in line


def test_the_seed_of_the_data_in_older_files(trained, tmp_path, heard):
  """They lack it where nobody had set it."""
  shutil.copytree(trained.directory, tmp_path / "older")
  path = tmp_path / "older" / made_with.FILE
  content = json.loads(path.read_text())
  assert content["settings"]["data"].pop(made_with.SHUFFLE_SEED) == 0
  path.write_text(json.dumps(content))
  older = small_models.Model(
      f"{tmp_path}/older", trained.files, trained.bindings)
  check(older)
  assert not heard
  check(older, "text_dataset.shuffle_seed = 5")
  line, = heard
  assert "text_dataset.shuffle_seed = 5, and was 0" in line


def test_a_file_that_cannot_be_read_is_told(trained, unknown, heard):
  for text in ["{", "[]", '{"settings": 3}', '{"settings": {"model": 3}}',
               '{"settings": {}, "began": {"init_checkpoint": "a", '
               '"step": Infinity}}']:
    with open(os.path.join(unknown.directory, made_with.FILE), "w") as f:
      f.write(text)
    heard.clear()
    check(unknown, files=[PERPLEXITY])
    line, = heard
    assert "made_with.json cannot be read" in line


@pytest.mark.parametrize("name", [made_with.FILE, made_with.FILE + ".tmp"])
def test_a_directory_in_its_place(name, tmp_path):
  (tmp_path / name).mkdir()
  with pytest.raises(ValueError, match=f"/{name} is a directory, .* remove it"):
    made_with.keep(str(tmp_path), made_with.Record(made_with.MadeWith()))


def test_what_was_changed_is_remembered(trained, tmp_path):
  shutil.copytree(trained.directory, tmp_path / "model")
  model = small_models.Model(
      f"{tmp_path}/model", trained.files, trained.bindings)
  small_models.run(model, small_models.ONE_SLICE, "run.train_steps = 3",
                   "train_model.seed = 7", "MoE2D.dropout_rate = 0.5")
  with open(os.path.join(model.directory, made_with.FILE)) as f:
    content = json.load(f)
  assert content["settings"]["seed"] == {"train_model.seed": 7}
  assert content["settings"]["model"]["MoE2D.moe_gating"] == "top_2"
  assert content["history"] == [
      {"step": 2, "changed": {"train_model.seed": 0,
                              "MoE2D.dropout_rate": 0.0}}]
  assert tf.train.latest_checkpoint(model.directory).endswith("-3")
  assert not os.path.exists(
      os.path.join(model.directory, made_with.FILE + ".tmp"))
