"""The T5 of the package `t5`, run with this layer.

Its requirements are many and large: scripts/clients.sh makes an environment for
it, and runs this there.
"""

import glob
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

from tests.train import program

pytestmark = pytest.mark.slow
pytest.importorskip("t5", reason="t5 is not installed: scripts/clients.sh does")

_TASK = "mtf_moe_counting"
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


def _run(directory, mode, *flags):
  """Runs t5_mesh_transformer under the launcher; returns what it logged."""
  result = subprocess.run(
      [sys.executable, "-m", "mtf_moe.run", "t5_mesh_transformer",
       f"--mode={mode}", f"--model_dir={directory}/model", "--use_model_api",
       "--module_import=tests.clients.t5_tasks", f"--mixture_or_task={_TASK}",
       "--batch_size=4", "--input_sequence_length=16",
       "--target_sequence_length=16", "--gin_file=models/t5.1.1.tiny.gin",
       f"--gin_file={directory}/moe.gin",
       # Without it, predictions are read with the vocabulary of T5's models.
       f"--gin_param=MIXTURE_NAME = '{_TASK}'",
       "--gin_param=mesh_train_dataset_fn.use_cached = False",
       "--gin_param=learning_rate_schedule_noam.total_train_steps = 3",
       *flags],
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


def test_training_records_the_mixtures(trained):
  assert program.newest_step(trained / "model") == _STEPS
  tags = {(event.step, value.tag)
          for file in glob.glob(f"{trained}/model/events.*")
          for event in tf.train.summary_iterator(file)
          for value in event.summary.value}
  mixtures = {tag.removesuffix("/outer/tokens") for step, tag in tags
              if step == 1 and tag.endswith("/outer/tokens")}
  assert len(mixtures) == 4  # Two layers of an encoder, and of a decoder.
  variables = dict(tf.train.list_variables(str(trained / "model")))
  assert variables[
      "encoder/block_000/layer_001/MoE2D/wi/kernel"] == [2, 2, 32, 64]


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
