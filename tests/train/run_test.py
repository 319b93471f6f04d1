"""The command line, as a user runs it: trains, is stopped, resumes, evaluates.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.train import sampling

ROOT = str(pathlib.Path(__file__).parents[2])

# Small enough for seconds, with a mesh of four slices.
SETTINGS = [
    "TextFiles.held_out = 0.2", "batch_size = 4", "sequence_length = 16",
    "d_model = 16", "num_layers = 1", "MoE2D.hidden_size = 16",
    "run.save_checkpoints_steps = 2", "train_model.seconds_per_line = 0.001"]
FILES = ["runs/tiny.gin", "meshes/cpu_2x2.gin"]


def program(directory, *bindings, files=()):
  """The arguments of Popen that run the program on the text in a directory."""
  arguments = [f"--gin_file={file}" for file in [*FILES, *files]]
  arguments += [f"--gin_param={binding}" for binding in [
      f"TextFiles.glob = '{directory}/text.txt'", *SETTINGS, *bindings]]
  return {
      "args": [sys.executable, "-m", "mtf_moe.train",
               f"--model_dir={directory}/model", *arguments],
      "cwd": directory, "env": {**os.environ, "PYTHONPATH": ROOT}}


def run(directory, *bindings, files=(), check=True):
  """Runs the program; returns what it did."""
  return subprocess.run(
      **program(directory, *bindings, files=files), capture_output=True,
      text=True, check=check)


@pytest.fixture
def directory(tmp_path):
  lines = [f"{i} bottles of beer on the wall, {i} bottles of beer.\n"
           for i in range(99, 20, -1)]
  (tmp_path / "text.txt").write_text("".join(lines))
  # A folder named like those of the packaged gin files must not hide them.
  (tmp_path / "models").mkdir()
  return tmp_path


def check_summaries(model):
  """Checks what was recorded of the four sequences of the first step."""
  events, = model.glob("events.*")
  found = {value.tag: value.simple_value
           for event in tf.train.summary_iterator(str(events))
           for value in event.summary.value}
  assert "loss" in found
  layer = "moe/transformer/block_000/layer_001/MoE2D"
  assert found[f"{layer}/outer/tokens"] == 4 * 16
  assert found[f"{layer}/outer/tokens"] == found[
      f"{layer}/outer/choices_1/kept"] + found[
          f"{layer}/outer/choices_1/dropped"]
  assert found[f"{layer}/inner/tokens"] == found[f"{layer}/outer/slots"]
  assert sum(found[f"{layer}/inner/load/expert_{x}_{y}"]
             for x in range(2) for y in range(2)) == pytest.approx(1)


def test_trains_resumes_and_evaluates(directory):
  model = directory / "model"

  # Trains, and says how far, in a line that a person can read.
  first = run(directory, "run.train_steps = 4")
  lines = first.stdout.splitlines()
  assert lines[:2] == ["checking the configuration", "building the graph"]
  assert re.fullmatch(
      r"step 4 of 4, loss \d\.\d{3}, [\d,]+ tokens/s, 00:00 left", lines[-1])
  assert len(lines) <= 6
  assert "step, tf_loss" not in first.stderr
  assert "INFO" not in first.stderr
  assert tf.train.latest_checkpoint(str(model)).endswith("model.ckpt-4")
  assert "--gin_file=runs/tiny.gin" in (model / "command").read_text()
  config = (model / "operative_config.gin").read_text()
  assert "MoE2D.expert_x = 2" in config and "run.train_steps = 4" in config
  check_summaries(model)

  # Goes on from there, and loses nothing that was written.
  second = run(directory, "run.train_steps = 6")
  assert "resuming at step 4" in second.stdout
  assert "step 6 of 6" in second.stdout.splitlines()[-1]
  assert tf.train.latest_checkpoint(str(model)).endswith("model.ckpt-6")
  assert "train_steps = 4" in (model / "command").read_text()
  assert "train_steps = 6" in (model / "command.1").read_text()
  assert (model / "operative_config.gin.1").read_text() == config
  assert "run.train_steps = 6" in (model / "operative_config.gin").read_text()

  # Another model does not touch what is there.
  before = sorted((p.name, p.stat().st_mtime_ns) for p in model.iterdir())
  other = run(directory, "MoE2D.hidden_size = 8", check=False)
  assert other.returncode == 1
  assert other.stderr.strip().splitlines()[-1].startswith(
      f"mtf_moe.train: --model_dir={model} holds a checkpoint of another model")
  assert "Traceback" not in other.stderr
  assert before == sorted((p.name, p.stat().st_mtime_ns)
                          for p in model.iterdir())

  # Continues a prompt.
  sample = run(directory, "continue_prompts.prompts = ['50 bottles']",
               f"continue_prompts.output_filename = '{directory}/sample'",
               files=["runs/sample.gin"])
  assert "\n50 bottles" in sample.stdout
  text = (directory / "sample-6").read_text()
  assert text.startswith("50 bottles") and len(text) > len("50 bottles\n")

  # The held-out text, all of it, and the same each time.
  results = [run(directory, files=["runs/perplexity.gin"]).stdout.splitlines()
             for _ in range(2)]
  text = (directory / "text.txt").read_bytes()
  assert f"held-out text: 1 documents, {round(len(text) * 0.2):,} bytes" in (
      results[0][-2])
  assert re.fullmatch(r"held-out bits per byte: \d\.\d{3}", results[0][-1])
  assert results[0] == results[1]


def test_resumes_after_it_was_killed(directory):
  def newest_step():
    path = tf.train.latest_checkpoint(str(directory / "model"))
    return int(path.rpartition("-")[2]) if path else 0

  process = subprocess.Popen(
      **program(directory, "run.train_steps = 100000"),
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 120
    while newest_step() < 2 and time.monotonic() < deadline:
      time.sleep(0.1)
  finally:
    process.kill()
    process.wait()
  step = newest_step()
  assert step >= 2
  resumed = run(directory, f"run.train_steps = {step + 2}")
  assert f"resuming at step {step:,}" in resumed.stdout


def test_a_time_limit_stops_with_a_checkpoint(directory):
  stopped = run(
      directory, "run.train_steps = 100000", "train_model.max_minutes = 0.02")
  assert "time is up" in stopped.stdout
  assert tf.train.latest_checkpoint(str(directory / "model"))


@pytest.mark.parametrize("bindings, said", [
    (["TextFiles.glob = 'none.txt'"], "TextFiles.glob='none.txt' matches no"),
    (["MoE2D.expert_x = 3"], "MoE2D.expert_x gives dimension 'expert_x' the"),
    (["no_such.parameter = 1"], "No configurable matching 'no_such'"),
    (["run.train_steps 7"], "--gin_param, line 10, is no gin: Couldn't parse "
     "statement, expected ':' or '='. It says 'run.train_steps 7'."),
    (["run.train_steps = [1,"], "a gin file or a --gin_param ends within"),
    (["run.mode = 'evaluate'"], "run.mode = 'evaluate' is not known."),
    (["run.mode = 'infer'"], "--model_dir="),
])
def test_a_mistake_is_one_message_and_leaves_nothing(directory, bindings, said):
  failed = run(directory, *bindings, check=False)
  assert failed.returncode == 1
  assert f"mtf_moe.train: {said}" in failed.stderr
  assert "Traceback" not in failed.stderr
  assert not (directory / "model").exists()


def test_sampling_needs_a_prompt():
  with pytest.raises(ValueError, match=r"continue_prompts.prompts = \[\]"):
    sampling.continue_prompts(None, None, "lm", 1, {}, "model.ckpt-1", [])


def test_help():
  shown = subprocess.run(
      [sys.executable, "-m", "mtf_moe.train", "--help"], capture_output=True,
      text=True, check=False)
  assert "--model_dir" in shown.stdout and "--gin_file" in shown.stdout
  assert "runs/tiny.gin" in shown.stdout
