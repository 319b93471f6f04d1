"""The command line, as a user runs it: trains, is stopped, resumes, evaluates.
"""

import re

import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.decoding import sampling
from mtf_moe.report import mixtures
from mtf_moe.report import runs
from tests import forked
from tests.train import program
from tests.train.program import run


@pytest.fixture
def directory(tmp_path):
  program.write_text(tmp_path)
  # A folder named like those of the packaged gin files must not hide them.
  (tmp_path / "models").mkdir()
  return tmp_path


def written(model):
  """The files of a model, and when they were written, but for the lock."""
  return sorted((path.name, path.stat().st_mtime_ns)
                for path in model.iterdir() if path.name != "running")


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


def check_report(model):
  """Checks what is read of the run, which began twice and was evaluated."""
  run, = runs.read([str(model)])
  assert run.scalars["loss"].steps.tolist() == [1, 5]
  layer, = mixtures.find(run)
  assert layer.level("inner").steps.tolist() == [1, 5]
  (name, evaluation), = run.evaluations.items()
  assert name.startswith("eval_") and "neg_log_perplexity" in evaluation
  assert all(tag.steps.tolist() == [6] for tag in evaluation.values())


def test_trains_resumes_and_evaluates(directory):
  model = directory / "model"

  # Trains, and says how far, in a line that a person can read.
  first = run(directory, "run.train_steps = 4")
  lines = first.stdout.splitlines()
  assert lines[:2] == ["checking the configuration", "building the graph"]
  assert re.fullmatch(
      r"step 4 of 4, loss \d\.\d{3}, [\d,]+ tokens/s, busiest expert "
      r"[1-4]\.\dx \(block_000/layer_001 (outer|inner)\), 00:00 left",
      lines[-1])
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
  before = written(model)
  other = run(directory, "MoE2D.hidden_size = 8", check=False)
  assert other.returncode == 1
  assert other.stderr.strip().splitlines()[-1].startswith(
      f"mtf_moe.train: --model_dir={model} holds a checkpoint of another model")
  assert "Traceback" not in other.stderr
  assert before == written(model)

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
  check_report(model)


def test_a_time_limit_stops_with_a_checkpoint(directory):
  stopped = run(
      directory, "run.train_steps = 100000", "train_model.max_minutes = 0.02")
  line, = re.findall("time is up .*", stopped.stdout)
  step = program.newest_step(directory / "model")
  assert line == (
      f"time is up (train_model.max_minutes = 0.02) at step {step:,} of "
      "100,000, at a learning rate of 0.01: the same command goes on from here")
  assert tf.train.latest_checkpoint(str(directory / "model"))


@pytest.mark.parametrize("bindings, said", [
    (["TextFiles.glob = 'none.txt'"], "TextFiles.glob='none.txt' matches no"),
    (["MoE2D.expert_x = 3"], "MoE2D.expert_x = 3 gives dimension 'expert_x' "),
    (["no_such.parameter = 1"], "No configurable matching 'no_such'"),
    (["run.train_steps 7"], "--gin_param, line 11, is no gin: Couldn't parse "
     "statement, expected ':' or '='. It says 'run.train_steps 7'."),
    (["run.train_steps = [1,"], "--gin_param ends within brackets or quotes"),
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
  shown = forked.run("mtf_moe.train", "--help")
  assert "--model_dir" in shown.stdout and "--gin_file" in shown.stdout
  assert "runs/tiny.gin" in shown.stdout
