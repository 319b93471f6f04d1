"""Every gin file that comes with the package is read, and its model built."""

import glob
import os
import re

import gin
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.decoding import sampling
from mtf_moe.plan import planning
from mtf_moe.run import config_files
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.text import vocabulary
from mtf_moe.train import preflight
from tests import gin_config

# The prompts of one are bound here for all.
assert sampling

# What a file is completed with where it is a part of a configuration.
MODEL = "models/lm_small.gin"
MESH = "meshes/cpu_2x2.gin"
DATA = "data/bytes.gin"


def files_of(kind):
  """Names such as models/lm_tiny.gin, of the files in one folder."""
  found = glob.glob(os.path.join(config_files.directory(), kind, "*.gin"))
  assert found
  return sorted(os.path.join(kind, os.path.basename(path)) for path in found)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """A directory with a text file and a SentencePiece model of it."""
  pytest.importorskip("sentencepiece")
  directory = tmp_path_factory.mktemp("text")
  path = directory / "text.txt"
  path.write_text("It was the best of times, it was the worst of times. " * 400)
  vocabulary.train_sentencepiece(
      str(path), str(directory / "text.model"), vocab_size=290)
  return directory


def check(files, text, *bindings, model_dir="no_model"):
  """Reads the files and makes the checks of a run, which build the model."""
  gin_config.parse(files, [
      f"TextFiles.glob = '{text}/text.txt'",
      "TextFiles.held_out = 0.2",
      f"SentencePieceVocabulary.path = '{text}/text.model'",
      *bindings])
  preflight.check_checkpoint(
      model_dir, preflight.check_configuration(model_dir))


@gin.configurable(module="tests")
def pairs_of_texts(sequence_length, vocabulary, dataset_split):
  """One example with inputs and targets."""
  del vocabulary, dataset_split
  return tf.data.Dataset.from_tensors({
      feature: tf.ones([length], tf.int32)
      for feature, length in sequence_length.items()})


@pytest.mark.parametrize("file", files_of("models"))
def test_models(file, text):
  # Text has targets only, with which an encoder-decoder is refused.
  other_data = (["run.train_dataset_fn = @tests.pairs_of_texts"]
                if "bitransformer" in file else [])
  check([file, MESH, DATA], text, *other_data)
  assert gin.query_parameter("MoE2D.expert_x") >= 2


@pytest.fixture
def plan_of(text):
  """Makes the plan of a model on a mesh."""
  def make(model, mesh, *bindings):
    gin_config.parse([f"models/{model}.gin", f"meshes/{mesh}.gin", DATA], [
        f"TextFiles.glob = '{text}/text.txt'", *bindings])
    return planning.make(ConfiguredModel.from_gin())
  return make


def test_small_models_cost_as_much(plan_of):
  """Two levels, one, and none: for each token as many FLOPs."""
  two, one, none = (plan_of(model, "cpu_1") for model in (
      "lm_small", "lm_small_flat", "lm_small_dense"))
  assert [len(plan.mixtures) for plan in (two, one, none)] == [1, 1, 0]
  assert one.mixtures[0].num_experts == two.mixtures[0].num_experts == 16
  assert one.costs.expert_parameters == two.costs.expert_parameters > 0
  for plan in (one, none):
    assert plan.costs.flops == pytest.approx(two.costs.flops, rel=0.01)
    assert plan.active_parameters == pytest.approx(
        two.active_parameters, rel=0.02)
    assert plan.findings == []


def test_the_flat_model_on_a_mesh_that_is_split(plan_of):
  """Its header says with which layout; the plan, with none, what is wrong."""
  said, = re.findall(r'(run.layout_rules = "\S+")',
                     text_of("models/lm_small_flat.gin"))
  assert plan_of("lm_small_flat", "cpu_2x2", said).findings == []
  findings = " ".join(plan_of("lm_small_flat", "cpu_2x2").findings)
  assert "Add experts:batch" in findings
  assert "all-concats along batch gather" in findings
  assert "has expert_x:batch, and the model has no dimension" in findings


@pytest.mark.parametrize("file", files_of("meshes"))
def test_meshes(file, text):
  sizes = re.search(r"_(\d+)(?:x(\d+))?", file)
  if not sizes:
    return gin_config.parse([file])  # What others share.
  outer, batch = int(sizes[1]), int(sizes[2] or sizes[1])
  check([MODEL, file, DATA], text,
        f"MoE2D.expert_x = {max(batch, 2)}",
        f"MoE2D.expert_y = {max(outer, 2)}", f"batch_size = {outer * batch}")
  assert gin.query_parameter("run.mesh_shape") == (
      f"outer:{outer},batch:{batch}")


@pytest.mark.parametrize("file", files_of("data"))
def test_data(file, text):
  # Some say which text, and leave to others what it is cut into.
  rest = [] if "singleton.constructor" in text_of(file) else [DATA]
  check([MODEL, MESH, file, *rest], text)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
  """A directory with a checkpoint of MODEL."""
  directory = tmp_path_factory.mktemp("trained")
  gin_config.parse([MODEL, MESH, DATA], [f"TextFiles.glob = '{text}/text.txt'"])
  shapes = ConfiguredModel.from_gin().variables
  with tf.Graph().as_default(), tf.Session() as session:
    for name, shape in shapes.items():
      tf.get_variable(name, shape)
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, str(directory / "model.ckpt"), 1)
  return directory


@pytest.mark.parametrize("file", files_of("runs"))
def test_runs(file, text, trained):
  if 'include "models/' in text_of(file):
    check([file], text)
  else:  # Added to those that the model was trained with.
    check([MODEL, MESH, DATA, file], text,
          "continue_prompts.prompts = ['It was']", model_dir=str(trained))


def text_of(file):
  with open(os.path.join(config_files.directory(), file)) as f:
    return f.read()


@pytest.mark.parametrize(
    "file", [f for kind in ("models", "meshes", "data", "runs")
             for f in files_of(kind)])
def test_a_header_says_what_the_file_is_for(file):
  assert text_of(file).startswith("# ")


def test_the_snippet_of_the_readme(text):
  readme = os.path.join(os.path.dirname(config_files.directory()), "README.md")
  with open(readme) as f:
    snippet, = re.findall(r"```\n(import mtf_moe\n.*?)```", f.read(), re.DOTALL)
  assert len(snippet.splitlines()) == 10
  check([MODEL, "meshes/cpu_1.gin", DATA], text, snippet, "batch_size = 16")
