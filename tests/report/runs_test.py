"""Event files of TensorFlow's own writer, read back."""

import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.report import runs
from tests.report import event_files


def values(run, tag="loss"):
  series = run.scalars[tag]
  return dict(zip(series.steps.tolist(), series.values.tolist()))


def test_everything_that_was_written(tmp_path):
  """A thousand steps and more, of which TensorBoard would sample some."""
  event_files.write(tmp_path, {
      step: {"loss": step / 4, "other/tag": 1.0} for step in range(1500)})
  (tmp_path / "operative_config.gin").write_text("a.b = 1\n")
  run, = runs.read([f"{tmp_path}/"])
  assert values(run) == {step: step / 4 for step in range(1500)}
  assert set(run.scalars) == {"loss", "other/tag"}
  assert run.last_step == 1499
  assert run.config == "a.b = 1\n"
  assert run.plan is None and run.evaluations == {}
  assert run.name == tmp_path.name and run.directory == str(tmp_path)


def test_a_run_that_was_killed_and_resumed(tmp_path):
  """Killed in a write, behind step 301; resumed twice from a checkpoint."""
  event_files.write(tmp_path, {
      step: {"loss": 10.0 + step, "early": 1.0} for step in (1, 101, 201, 301)
  } | {401: {"loss": 0.0}}, ".a")
  killed, = tmp_path.glob("*.a")
  data = killed.read_bytes()
  killed.write_bytes(data[:-5])
  event_files.write(tmp_path, {
      step: {"loss": 20.0 + step} for step in (151, 251)}, ".b")
  event_files.write(tmp_path, {
      step: {"loss": 30.0 + step} for step in (251, 351)}, ".c")
  run, = runs.read([str(tmp_path)])
  assert values(run) == {1: 11, 101: 111, 151: 171, 251: 281, 351: 381}
  # Also what was not recorded again: it is of a model that is lost.
  assert values(run, "early") == {1: 1, 101: 1}


def test_a_file_without_a_whole_record_is_no_file(tmp_path):
  event_files.write(tmp_path, {1: {"loss": 1.0}}, ".a")
  event_files.write(tmp_path, {2: {"loss": 2.0}}, ".b")
  cut, = tmp_path.glob("*.b")
  cut.write_bytes(cut.read_bytes()[:60])
  run, = runs.read([str(tmp_path)])
  assert values(run) == {1: 1}


def test_files_that_are_written_at_the_same_time(tmp_path):
  """The second one begins with an early step, and is no resumed run."""
  with (event_files.writer(tmp_path, ".a") as one,
        event_files.writer(tmp_path, ".b") as other):
    for step in (1, 2, 3):
      event_files.add(one, step, {"loss": step})
      event_files.add(other, step, {"speed": 10 * step})
  run, = runs.read([str(tmp_path)])
  assert values(run) == {1: 1, 2: 2, 3: 3}
  assert values(run, "speed") == {1: 10, 2: 20, 3: 30}


def test_scalars_in_the_newer_format(tmp_path):
  """Those that mesh_tensorflow writes on a TPU are tensors."""
  metadata = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(
      plugin_name="scalars"))
  with event_files.writer(tmp_path) as writer:
    for step in (1, 2):
      writer.add_summary(tf.Summary(value=[tf.Summary.Value(
          tag="moe/a", metadata=metadata,
          tensor=tf.make_tensor_proto(0.5 * step))]), step)
  run, = runs.read([str(tmp_path)])
  assert values(run, "moe/a") == {1: 0.5, 2: 1.0}


def test_evaluations_that_were_repeated(tmp_path):
  """The newer result of a step counts; other steps stay, in any order."""
  event_files.write(tmp_path, {1: {"loss": 1.0}})
  for suffix, steps in ((".a", {5: 1.0, 9: 2.0}), (".b", {5: 3.0})):
    event_files.write(tmp_path / "eval_x", {
        step: {"token_accuracy": value} for step, value in steps.items()},
                      suffix)
  (tmp_path / "eval_empty").mkdir()
  run, = runs.read([str(tmp_path)])
  assert list(run.evaluations) == ["eval_x"]
  series = run.evaluations["eval_x"]["token_accuracy"]
  np.testing.assert_array_equal(series.steps, [5, 9])
  np.testing.assert_array_equal(series.values, [3, 2])


def test_names_are_short_and_differ(tmp_path):
  directories = []
  for path in ("a/model", "b/model"):
    event_files.write(tmp_path / path, {1: {"loss": 1.0}})
    directories.append(str(tmp_path / path))
  # The first one is given twice.
  found = runs.read([*directories, directories[0] + "/"])
  assert [run.name for run in found] == ["a/model", "b/model"]
  assert runs.read(directories[:1])[0].name == "model"


def test_a_directory_whose_name_has_wildcards(tmp_path):
  directory = tmp_path / "lr[0.1]*"
  event_files.run(directory)
  run, = runs.read([str(directory)])
  assert run.last_step == 300 and len(run.evaluations) == 1


@pytest.mark.parametrize("name, value", [
    ("MoE2D.expert_x", "16"), ("run.mesh_shape", "'outer:2,batch:2'"),
    ("wide/MoE1D.expert", "2"), ("MoE1D.expert", None),
    ("MoE2D.expert", None), ("run.optimizer", None), ("twice.value", None)])
def test_parameters(name, value):
  run = runs.Run("", "", {}, {}, "MoE2D.expert_x = 16\nencoder/MoE2D.expert = 1"
                 "\nwide/mtf_moe.MoE1D.expert = 2"
                 "\nrun.mesh_shape = 'outer:2,batch:2'\nrun.optimizer = \\\n"
                 "  @a\ntwice.value = 1\ntwice.value = 2\n")
  assert run.parameter(name) == value


def test_what_cannot_be_read(tmp_path):
  with pytest.raises(ValueError, match=r"--model_dir=/no/such is no directory"):
    runs.read(["/no/such"])
  with pytest.raises(ValueError, match=r"has no event files \(events\.out"):
    runs.read([str(tmp_path)])
  with tf.Graph().as_default() as graph:
    tf.summary.FileWriter(str(tmp_path), graph).close()
  with pytest.raises(ValueError, match="no step has been recorded yet"):
    runs.read([str(tmp_path)])


PLAN = {"mesh_shape": "a:1", "costs": {}, "mixtures": [], "findings": [],
        "total_parameters": 1, "active_parameters": 1, "flops_per_token": 1}


@pytest.mark.parametrize("text", [
    "no JSON", "[]", json.dumps({"costs": 1}), "[" * 100000, json.dumps(PLAN),
    json.dumps({**PLAN, "costs": 3}), json.dumps({**PLAN, "mixtures": "ab"}),
    json.dumps({**PLAN, "total_parameters": "many"})])
def test_a_plan_that_is_none(tmp_path, text):
  event_files.write(tmp_path, {1: {"loss": 1.0}})
  (tmp_path / "plan.json").write_text(text)
  with pytest.raises(ValueError, match=r"plan\.json is not the plan of one"):
    runs.read([str(tmp_path)])


@pytest.mark.parametrize("name", [
    "plan.json", "layers.json", "operative_config.gin", "a.out.tfevents.b",
    "eval_a/a.out.tfevents.b"])
def test_what_is_no_plain_file(tmp_path, name):
  """Reading it would never end."""
  event_files.write(tmp_path, {1: {"loss": 1.0}})
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).symlink_to("/dev/zero")
  with pytest.raises(ValueError, match=f"{name} is no plain file"):
    runs.read([str(tmp_path)])
  (tmp_path / name).unlink()
  os.mkfifo(tmp_path / name)
  with pytest.raises(ValueError, match=f"{name} is no plain file"):
    runs.read([str(tmp_path)])


def test_tensors_that_are_no_scalars(tmp_path):
  metadata = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(
      plugin_name="scalars"))
  with event_files.writer(tmp_path) as writer:
    for step, value in ((1, [1.0, 2.0]), (2, "a"), (3, 0.5)):
      writer.add_summary(tf.Summary(value=[tf.Summary.Value(
          tag="moe/a", metadata=metadata,
          tensor=tf.make_tensor_proto(value))]), step)
  run, = runs.read([str(tmp_path)])
  assert values(run, "moe/a") == {3: 0.5}
