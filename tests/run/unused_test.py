"""What is set to no effect is told, and what the package sets itself is not."""

from absl import flags
from absl.testing import flagsaver
import gin
import pytest

from mtf_moe.decoding import beam_search
from mtf_moe.run import config_files
from mtf_moe.train import training
from tests.train import configs_test

# What gin knows of.
assert beam_search and training

FILES = ["models/lm_tiny.gin", "meshes/cpu_1.gin", "data/bytes.gin"]


@gin.configurable(module="unused_test")
def of_a_user():
  """Something that the package does not know."""


@pytest.fixture
def warnings(caplog):
  """What has been told so far, without gin's own log."""
  return lambda: [record.getMessage() for record in caplog.records
                  if record.name == "mtf_moe.run.unused"]


def read(*lines, files=FILES):
  with flagsaver.flagsaver():
    if not flags.FLAGS.is_parsed():
      flags.FLAGS(["program", "--model_dir=none"]
                  if "model_dir" in flags.FLAGS else ["program"])
    flags.FLAGS.gin_file = list(files)
    flags.FLAGS.gin_param = list(lines)
    config_files.read()


@pytest.mark.parametrize("line, meant", [
    ("train_steps = 3", "write run.train_steps = 3"),
    ("tokens_per_batch = 64", r'run.batch_size = \("tokens_per_batch", 64\)'),
    ("batch_sise = 3", "did you mean batch_size = 3"),
    ("expert_x = 3", "write MoE2D.expert_x = 3"),
    ("wide/batch_size = 3", "did you mean batch_size"),
    ("zzz = @mtf_moe.MoE2D", "remove it, or write the parameter"),
])
def test_a_macro_without_use(line, meant, tmp_path, warnings):
  with pytest.raises(ValueError, match=(
      f"--gin_param, line 1: '{line}' sets a macro that nothing refers to, so "
      f"it has no effect: .*{meant}")):
    read(line)
  # A file may be one of several runs.
  gin.clear_config()
  (tmp_path / "my.gin").write_text(f"\n{line}\n")
  read(files=[*FILES, str(tmp_path / "my.gin")])
  warning, = warnings()
  assert warning.startswith(f"{tmp_path}/my.gin, line 2: '{line}' sets a macro")


@pytest.mark.parametrize("line, why", [
    ("wide/MoE2D.expert_x = 3", "nothing runs in the scope 'wide'"),
    ("wide/encoder/MoE2D.expert_x = 3", "nothing runs in the scope 'wide'"),
    ("encoder/MoE2D.expert_x = 3", "a model with run.model_type = 'lm' has no "
     "encoder. Leave encoder/ out, or choose"),
    ("decoder/make_layer_stack.num_layers = 2", "'lm' has no decoder"),
    ("student/decoder/MoE2D.expert_x = 3", "'lm' has no student"),
    ("AdamWeightDecayOptimizer.beta_1 = 0.5", "nothing in this configuration "
     "refers to @AdamWeightDecayOptimizer"),
    ("LocalSelfAttention.radius = 7", "refers to @LocalSelfAttention"),
    ("SentencePieceVocabulary.path = 'a'", "to @SentencePieceVocabulary"),
])
def test_a_binding_without_effect(line, why, warnings):
  read(line)
  warning, = warnings()
  assert warning.startswith("--gin_param, line 1: ")
  assert "has no effect" in warning and why in warning


@pytest.mark.parametrize("model_type, line, why", [
    ("aligned", "decoder/MoE2D.expert_x = 3", "'aligned' has no decoder"),
    ("delimited_lm", "encoder/MoE2D.expert_x = 3", "has no encoder"),
    ("bitransformer", "teacher/MoE2D.expert_x = 3", "has no teacher"),
    ("bitransformer", "encoder/wide/MoE2D.expert_x = 3", "scope 'wide'"),
])
def test_scopes_of_other_models(model_type, line, why, warnings):
  read(f"run.model_type = {model_type!r}", line)
  warning, = warnings()
  assert "has no effect" in warning and why in warning


def test_what_each_stack_has_set(warnings):
  """The defaults of mesh_tensorflow set the layers, one by one."""
  line = "make_layer_stack.layers = [@mtf_moe.MoE2D]"
  read("run.model_type = 'bitransformer'", line)
  warning, = warnings()
  assert ("has no effect: encoder/make_layer_stack.layers and decoder/make_laye"
          "r_stack.layers are set") in warning
  gin.clear_config()
  read("run.model_type = 'bitransformer'",
       "encoder/MoE2D.expert_x = 2", "MoE2D.expert_x = 4",
       *[f"{stack}/{line}" for stack in ("encoder", "decoder")])
  assert len(warnings()) == 1
  gin.clear_config()
  read("run.model_type = 'bitransformer'", "MoE2D.expert_x = 4",
       "encoder/make_layer_stack.layers = [@mtf_moe.MoE2D, @wide/MoE2D]",
       "encoder/MoE2D.expert_x = 2", "decoder/MoE2D.expert_x = 2",
       "wide/MoE2D.expert_y = 2")
  assert len(warnings()) == 1


@pytest.mark.parametrize("lines", [
    ["batch_size = 4", "sequence_length = 16", "dropout_rate = 0.1"],
    ["wide/MoE2D.expert_x = 4", "make_layer_stack.layers = [@wide/MoE2D]"],
    ["encoder/make_layer_stack.num_layers = 2", "decoder/num_layers = 2",
     "decoder/make_layer_stack.num_layers = %decoder/num_layers",
     "run.model_type = 'bitransformer'"],
    ["encoder/MoE2D.expert_x = 4",
     "make_layer_stack.layers = [@encoder/MoE2D]"],
    # Of a class that one in use extends.
    ["SelfAttention.num_heads = 2",
     "make_layer_stack.layers = [@EncDecAttention]"],
    ["LayerStack.recompute_grads = True", "LayerStack.norm_epsilon = 1e-5"],
    ["DenseReluDense.hidden_size = 8",
     "make_layer_stack.layers = [@BranchedEncDecAttention]"],
    # A user's own code may run anything.
    ["LocalSelfAttention.radius = 7",
     "run.train_model_fn = @unused_test.of_a_user"],
    ["run.train_steps = 3", "MoE2D.z_loss = 0.1", "train_model.seed = 2",
     "TextFiles.glob = 'a'"],
])
def test_what_has_an_effect(lines, warnings):
  read(*lines)
  assert warnings() == []


@pytest.mark.parametrize("file", [
    file for kind in ("models", "meshes", "data", "runs")
    for file in configs_test.files_of(kind)])
def test_the_files_of_the_package_are_silent(file, warnings):
  read(files=[file])
  assert warnings() == []


@pytest.mark.parametrize("lines", [
    ["batch_size = 4", "run.batch_size = ('tokens_per_batch', 64)"],
    ["run.sequence_length = 16", "sequence_length = 32"]])
def test_a_macro_of_the_package_that_has_lost_its_use(lines, warnings):
  read(*lines)
  warning, = warnings()
  assert "has no effect: what takes this macro" in warning
