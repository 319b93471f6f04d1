"""Results as data, and evaluations in the process that has trained."""

import os
import time

import pytest

from mtf_moe.train import results
from tests.train import small_models
from tests.train.small_models import LENGTH
from tests.train.small_models import ONE_SLICE

AT_END = "train_model.evaluate_at_end = True"
TOKENS_PER_STEP = 4 * LENGTH
PERPLEXITY = ["runs/perplexity.gin"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A model of three steps, evaluated by the same process and by another run.
  """
  directory = tmp_path_factory.mktemp("results")
  (directory / "text.txt").write_text("abcd efgh ijkl mnop " * 50)
  model = small_models.Model(f"{directory}/model", ["runs/tiny.gin"], [
      f"TextFiles.glob = '{directory}/text.txt'", "TextFiles.held_out = 0.2",
      "train_model.seed = 5", "train_model.steps_per_record = 1"])
  printed = small_models.run(model, ONE_SLICE, "run.train_steps = 3", AT_END)
  assert "step 3 of 3" in printed
  assert "held-out bits per byte: " in printed.splitlines()[-1]
  small_models.run(model, ONE_SLICE, files=PERPLEXITY)
  return model


def test_the_same_as_in_a_process_of_its_own(model):
  at_end, alone = results.read(model.directory)[:2]
  process = {"cpu_seconds", "seconds", "written"}
  assert {name for name, value in at_end.items() if value is None} == set()
  assert process < at_end.keys() == alone.keys()
  for name in at_end.keys() - process:
    assert at_end[name] == alone[name], name
  assert alone["seconds"] > at_end["seconds"] > 0


def test_what_a_line_says(model):
  line, *_ = results.read(model.directory)
  assert (line["step"], line["num_tokens"], line["dropless"]) == (3, 201, False)
  # A fifth of 1,000 bytes, and the end of the document.
  assert line["bits_per_byte"] == pytest.approx(
      line["nats_per_token"] * 201 / 200 / 0.6931472)
  assert line["tokens_seen"] == 3 * TOKENS_PER_STEP
  assert line["seeds"] == {
      "train_model.seed": 5, "text_dataset.shuffle_seed": 0}
  assert line["versions"].keys() >= {"tensorflow", "mesh-tensorflow"}
  training = line["training"]
  assert 0 < training["cpu_seconds"] < line["cpu_seconds"]
  assert 0 < training["seconds"] < line["seconds"]
  # The balancing loss of the first level is 1 or more, and its weight 0.01.
  auxiliary = training["loss"] - training["loss_without_auxiliary"]
  assert 0.01 <= auxiliary < 0.05
  records = training["records"]
  assert 1.0 <= records["outer/load/max_over_mean"] <= 2.0  # Two experts.
  assert 0.0 <= records["layer/tokens/no_expert"] <= 1.0


def test_runs_that_go_on_add_up(model):
  before = results.read_training(model.directory)
  small_models.run(model, ONE_SLICE, "run.train_steps = 5", AT_END)
  line = results.read(model.directory)[-1]
  assert line["step"] == 5 and line["tokens_seen"] == 5 * TOKENS_PER_STEP
  assert line["training"]["cpu_seconds"] > before.cpu_seconds
  assert line["training"]["seconds"] > before.seconds
  small_models.run(  # Nothing is left to do, but to evaluate.
      model, ONE_SLICE, "run.train_steps = 5", AT_END)
  again = results.read(model.directory)[-1]
  assert again["written"] >= line["written"]
  assert again["nats_per_token"] == line["nats_per_token"]
  assert again["training"] == line["training"]


def test_an_older_checkpoint_is_not_what_training_ended_with(model):
  small_models.run(model, ONE_SLICE, "run.train_steps = 5")  # If it has not.
  small_models.run(
      model, ONE_SLICE, "run.eval_checkpoint_step = [3]", files=PERPLEXITY)
  line = results.read(model.directory)[-1]
  assert (line["step"], line["training"], line["tokens_seen"]) == (
      3, None, None)


def test_a_configuration_is_the_same_for_all_seeds(model, tmp_path):
  def configuration(name, *bindings):
    other = small_models.Model(
        str(tmp_path / name), model.files, model.bindings)
    small_models.run(other, ONE_SLICE, "run.train_steps = 1", AT_END, *bindings)
    line, = results.read(other.directory)
    return line["configuration"]

  first = configuration("first")
  assert configuration("seed", "train_model.seed = 6",
                       "text_dataset.shuffle_seed = 1",
                       "train_model.max_minutes = 60") == first
  assert configuration("rate", "run.learning_rate_schedule = 0.03") != first
  assert configuration("capacity", "MoE2D.capacity_factor_train = 1.5") != first


def test_a_killed_run_is_counted_in_tokens_only():
  meter = results.Meter(results.Training(3, 30, 1.0, 0.5, 7.0, 8.0), 0, 20)
  meter.begin(10)  # Seven steps were lost sight of.
  time.sleep(0.01)
  meter.observe(2.0, {})
  assert meter.end(11) == results.Training(11, 11 * 20, 2.0)


def test_what_is_measured():
  tag = "moe/block_{}/layer/loss/auxiliary"
  meter = results.Meter(results.Training(3, 30, 1.0, 0.5, 7.0, 8.0), 0, 20)
  meter.begin(3)
  time.sleep(0.01)
  meter.observe(2.0, {tag.format(0): 0.25, tag.format(1): 0.5})
  meter.observe(4.0, {})
  found = meter.end(5)
  assert (found.step, found.tokens) == (5, 70)
  assert (found.loss, found.loss_without_auxiliary) == (3.0, 2.25)
  assert 7.0 <= found.cpu_seconds < 8.0 < found.seconds < 9.0
  assert found.records == {"layer/loss/auxiliary": 0.375}


def test_records_are_means_over_layers_and_the_last_recorded_steps():
  meter = results.Meter(None, 0, 20)
  meter.begin(0)
  for step in range(7):
    meter.observe(2.0, {
        "moe/block_0/inner/load/max_over_mean": step,
        "moe/block_1/inner/load/max_over_mean": step + 1.0,
        "moe/block_0/outer/load/max_over_mean": 1.5,
        "moe/block_0/layer/load/expert_0_1": 7.0})
    meter.observe(2.0, {})
  assert meter.end(14).records == {
      "inner/load/max_over_mean": 4.5, "outer/load/max_over_mean": 1.5}


def test_a_damaged_file_is_told(tmp_path, capsys):
  (tmp_path / results.TRAINING_FILE).write_text("{")
  assert results.read_training(str(tmp_path)) is None
  results.keep_training(str(tmp_path), results.Training(1, 2))
  assert results.read_training(str(tmp_path)) == results.Training(1, 2)


@pytest.mark.parametrize("bindings, said", [
    (["train_model.evaluate_at_end = 1"], "evaluate_at_end = 1 .*True or"),
    ([AT_END, "evaluate.with_dropless = 1"], "with_dropless = 1"),
    ([AT_END, "held_out_steps.batch_size = 2"], "held_out_steps.batch_size"),
])
def test_mistakes_are_found_before_training(model, bindings, said, tmp_path,
                                            capsys):
  new = small_models.Model(str(tmp_path / "new"), model.files, model.bindings)
  with pytest.raises(SystemExit, match=said):
    small_models.run(new, ONE_SLICE, *bindings)
  assert not os.path.exists(new.directory)


