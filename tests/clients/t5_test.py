"""The T5 of the package `t5`, run with this layer, and its gin files with us.

Its requirements are many and large: scripts/clients.sh makes an environment for
it, and runs this there.
"""

import glob
import os
import pathlib
import shutil
import subprocess
import sys

from absl import flags
from absl.testing import flagsaver
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.run import config_files
from mtf_moe.run.configured_model import ConfiguredModel
from tests.train import program
from tests.train import small_models

pytestmark = pytest.mark.slow
t5 = pytest.importorskip(
    "t5", reason="t5 is not installed: scripts/clients.sh does")

_TASK = "mtf_moe_counting"
_TARGETS = [str(number) for number in range(1, 33)]
_STEPS = 3
_GIN = """
encoder/transformer.make_layer_stack.layers = [
    @mesh_tensorflow.transformer.transformer_layers.SelfAttention,
    @mtf_moe.MoE2D]
decoder/transformer.make_layer_stack.layers = [
    @mesh_tensorflow.transformer.transformer_layers.SelfAttention,
    @mesh_tensorflow.transformer.transformer_layers.EncDecAttention,
    @mtf_moe.MoE2D]
MoE2D.expert_x = 2
MoE2D.expert_y = 2
MoE2D.hidden_size = 64
MoE2D.group_size = 64
serialize_num_microbatches.tokens_per_microbatch_per_replica = None
"""


_GIN_FILES = pathlib.Path(t5.__file__).parent / "models" / "gin"


def _run(directory, mode, *arguments, model="model"):
  """Runs t5_mesh_transformer under the launcher; returns what it logged."""
  result = subprocess.run(
      [sys.executable, "-m", "mtf_moe.run", "t5_mesh_transformer",
       f"--mode={mode}", f"--model_dir={directory}/{model}", "--use_model_api",
       "--module_import=tests.clients.t5_tasks", f"--mixture_or_task={_TASK}",
       "--batch_size=4", "--input_sequence_length=16",
       "--target_sequence_length=16", "--gin_file=models/t5.1.1.tiny.gin",
       f"--gin_file={directory}/moe.gin",
       # Without it, predictions are read with the vocabulary of T5's models.
       f"--gin_param=MIXTURE_NAME = '{_TASK}'",
       "--gin_param=mesh_train_dataset_fn.use_cached = False",
       "--gin_param=learning_rate_schedule_noam.total_train_steps = 3",
       *arguments],
      env={**os.environ, "PYTHONPATH": program.ROOT}, cwd=directory,
      capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr[-5000:]
  assert "Issue encountered when serializing" not in result.stderr
  return result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A directory with a model that was trained for some steps."""
  directory = tmp_path_factory.mktemp("t5")
  (directory / "moe.gin").write_text(_GIN)
  _run(directory, "train", f"--train_steps={_STEPS}")
  return directory


def test_there_is_the_command():
  command = pathlib.Path(sys.executable).parent / "t5_mesh_transformer"
  assert command.exists() or shutil.which("t5_mesh_transformer")


def _check_mixtures(model):
  """Sees that a model has them, and that training recorded them."""
  assert program.newest_step(model) == _STEPS
  tags = {(event.step, value.tag)
          for file in glob.glob(f"{model}/events.*")
          for event in tf.train.summary_iterator(file)
          for value in event.summary.value}
  mixtures = {tag.removesuffix("/outer/tokens") for step, tag in tags
              if step == 1 and tag.endswith("/outer/tokens")}
  assert len(mixtures) == 4  # Two layers of an encoder, and of a decoder.
  variables = dict(tf.train.list_variables(str(model)))
  assert variables[
      "encoder/block_000/layer_001/MoE2D/wi/kernel"] == [2, 2, 32, 64]


def test_training_records_the_mixtures(trained):
  _check_mixtures(trained / "model")


def test_evaluation(trained):
  summaries = trained / "summaries"
  summaries.mkdir()  # T5 makes none on this machine.
  log = _run(trained, "eval", f"--eval_summary_dir={summaries}")
  assert f"eval/{_TASK}/share at step {_STEPS}" in log


def test_prediction(trained):
  (trained / "prompts").write_text("after 3\nafter 4\nafter 5\nafter 6\n")
  _run(trained, "predict", f"--input_file={trained}/prompts",
       f"--output_file={trained}/predicted")
  written, = glob.glob(f"{trained}/predicted*")
  with open(written, encoding="utf-8") as f:
    assert len(f.read().splitlines()) == 4


def test_export(trained):
  _run(trained, "export_predict", f"--export_dir={trained}/exported")
  exported, = glob.glob(f"{trained}/exported/*")
  with tf.Session(graph=tf.Graph()) as session:
    model = tf.saved_model.loader.load(session, ["serve"], exported)
  assert set(model.signature_def["serving_default"].inputs) == {"inputs"}


# Its gin files, run by mtf_moe.train.


def _run_ours(directory, *bindings, files=(), mesh="meshes/cpu_1.gin"):
  """Runs mtf_moe.train on the task."""
  files = ["models/t5.1.1.tiny.gin", f"{directory}/moe.gin", "dataset.gin",
           "learning_rate_schedules/constant_0_001.gin", *files, mesh]
  bindings = [
      f"MIXTURE_NAME = '{_TASK}'", f"run.train_steps = {_STEPS}",
      "run.batch_size = 4",
      "run.sequence_length = {'inputs': 16, 'targets': 16}", *bindings]
  result = subprocess.run(
      [sys.executable, "-m", "mtf_moe.train", f"--model_dir={directory}/ours",
       "--module_import=tests.clients.t5_tasks",
       f"--gin_location_prefix={_GIN_FILES}",
       *[f"--gin_file={file}" for file in files],
       *[f"--gin_param={binding}" for binding in bindings]],
      env={**os.environ, "PYTHONPATH": program.ROOT}, cwd=directory,
      capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr[-5000:]
  assert "warning:" not in result.stderr


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
  """A directory with a model that mtf_moe.train has trained for some steps."""
  directory = tmp_path_factory.mktemp("ours")
  (directory / "moe.gin").write_text(_GIN)
  _run_ours(directory, mesh="meshes/cpu_2x2.gin")
  return directory


def test_our_training_records_the_mixtures(ours):
  _check_mixtures(ours / "ours")


@pytest.mark.parametrize("file", ["eval.gin", "score_eval.gin"])
def test_our_evaluations(file, ours):
  summaries = ours / file
  _run_ours(ours, "run.dataset_split = 'validation'", "run.batch_size = 4",
            f"run.eval_summary_dir = '{summaries}'", files=[file])
  assert small_models.metrics(summaries).keys() == {f"eval/{_TASK}/share"}
  predictions, = summaries.glob("*_predictions")
  number = predictions.read_bytes().count(b"\n")
  # What a model of bytes says after three steps may have ends of lines in it.
  assert number == 32 if file == "score_eval.gin" else number >= 32
  targets, = summaries.glob("*_targets")
  assert targets.read_text().splitlines() == _TARGETS


def test_our_scores(ours):
  _run_ours(ours, "run.dataset_split = 'validation'",
            "run.eval_checkpoint_step = -1",
            f"scores_filename = '{ours}/found'", files=["score_from_task.gin"])
  scores = (ours / "found.scores").read_text().splitlines()
  assert len(scores) == 32 and all(float(score) < 0 for score in scores)
  assert (ours / "found.targets").read_text().splitlines() == _TARGETS


def test_predictions_of_ours_are_those_of_t5(ours):
  (ours / "prompts").write_text("after 3\nafter 4\nafter 5\nafter 6\n")
  _run_ours(ours, f"input_filename = '{ours}/prompts'",
            f"output_filename = '{ours}/by_ours'", files=["infer.gin"])
  _run(ours, "predict", f"--input_file={ours}/prompts",
       f"--output_file={ours}/by_t5", model="ours")
  by_ours, = ours.glob("by_ours*")
  by_t5, = ours.glob("by_t5*")
  assert by_ours.read_text() == by_t5.read_text()
  assert len(by_t5.read_text().splitlines()) == 4


@pytest.mark.parametrize("file", sorted(
    str(path.relative_to(_GIN_FILES)) for path in _GIN_FILES.rglob("*.gin")))
def test_its_gin_files_are_understood(file, caplog):
  is_model = file.startswith("models/")
  files = [file if is_model else "models/t5.1.1.tiny.gin", "dataset.gin",
           *([] if is_model else [file]), "meshes/cpu_1.gin"]
  with flagsaver.flagsaver():
    if not flags.FLAGS.is_parsed():
      flags.FLAGS(["program", "--model_dir=none"]
                  if "model_dir" in flags.FLAGS else ["program"])
    flags.FLAGS.module_import = ["tests.clients.t5_tasks"]
    flags.FLAGS.gin_location_prefix = [str(_GIN_FILES)]
    flags.FLAGS.gin_file = files
    flags.FLAGS.gin_param = [f"MIXTURE_NAME = '{_TASK}'"]
    if file == "infer_multi_file.gin":  # For what no release has.
      with pytest.raises(ValueError, match="reference '@decode_from_files'"):
        config_files.read()
      return
    config_files.read()
  assert not [record for record in caplog.records
              if record.name.startswith("mtf_moe")]
  if is_model:
    assert ConfiguredModel.from_gin().variables
