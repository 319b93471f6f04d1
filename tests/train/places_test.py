"""The program in directories with odd names, and in those of other people."""

import dataclasses
import json
import os
import re
import shutil

import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.train import results
from tests.train.program import write_text
from tests.train.small_models import ONE_SLICE
from tests.train.small_models import Model
from tests.train.small_models import metrics
from tests.train.small_models import run

EVERY_STEP = ["run.save_checkpoints_steps = 1", "run.keep_checkpoint_max = 2"]
PERPLEXITY = ["runs/perplexity.gin"]


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory):
  """A Model with checkpoints of steps 1 and 2."""
  directory = tmp_path_factory.mktemp("trained")
  write_text(directory)
  model = Model(str(directory / "model"), ["runs/tiny.gin"], [
      f"TextFiles.glob = '{directory}/text.txt'", "TextFiles.held_out = 0.2",
      *EVERY_STEP])
  run(model, ONE_SLICE, "run.train_steps = 2")
  return model


@pytest.fixture(name="model")
def _model(trained, tmp_path):
  """A copy of it."""
  shutil.copytree(trained.directory, tmp_path / "model")
  return dataclasses.replace(trained, directory=str(tmp_path / "model"))


def contents(directory):
  """What is in a directory, and when it was written."""
  return {path.relative_to(directory): (
      path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
          for path in directory.rglob("*")}


def plant(tmp_path, model):
  """Has the account of a model name what is in a directory elsewhere."""
  elsewhere = tmp_path / "elsewhere"
  shutil.copytree(model.directory, elsewhere)
  (elsewhere / "[model.ckpt-99999].index").write_text("precious")
  names = ["../elsewhere/[model.ckpt-99999]*",
           *[f"{elsewhere}/model.ckpt-{step}" for step in (3, 2, 1)],
           "../elsewhere/model.ckpt-1", "../elsewhere/*"]
  with open(os.path.join(model.directory, "checkpoint"), "w") as f:
    f.write(f"model_checkpoint_path: {json.dumps(names[-1])}\n")
    f.writelines(f"all_model_checkpoint_paths: {json.dumps(name)}\n"
                 for name in names)
  return elsewhere


def test_evaluating_what_somebody_else_made(tmp_path, model):
  """Reads what is in the directory, and adds its own results to it."""
  elsewhere = plant(tmp_path, model)
  (tmp_path / "model" / "model.ckpt-9_temp_1").mkdir()
  data = max((tmp_path / "model").glob("model.ckpt-2.data-*"),
             key=os.path.getsize)
  damaged = bytearray(data.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  data.write_bytes(damaged)
  before = contents(elsewhere), contents(tmp_path / "model")
  for step in ("-1", "'all'"):
    printed = run(model, ONE_SLICE, f"run.eval_checkpoint_step = {step}",
                  files=PERPLEXITY)
    assert re.findall("evaluated step ([0-9]+) ", printed) == ["1"]
  assert contents(elsewhere) == before[0]
  after = contents(tmp_path / "model")
  assert before[1].items() <= after.items()
  new = {path.parts[0] for path in after.keys() - before[1].keys()}
  assert results.FILE in new  # A line for each evaluation.
  assert all(name.startswith("eval_") for name in new - {results.FILE})


def test_training_on_from_what_somebody_else_made(tmp_path, model):
  """TensorFlow removes old checkpoints; those elsewhere are none of its."""
  elsewhere = plant(tmp_path, model)
  before = contents(elsewhere)
  printed = run(model, ONE_SLICE, "run.train_steps = 6")
  assert "resuming at step 2" in printed
  assert contents(elsewhere) == before
  assert {path.stem for path in (tmp_path / "model").glob("*.index")} == {
      "model.ckpt-5", "model.ckpt-6"}


@pytest.mark.parametrize("name", ["run[3]", "run*", "run?", "run\\3"])
@pytest.mark.parametrize("mode", ["train", "perplexity_eval", "export_infer"])
def test_names_that_tensorflow_cannot_use(name, mode, tmp_path, trained):
  model = dataclasses.replace(trained, directory=str(tmp_path / name))
  with pytest.raises(SystemExit) as refused:
    run(model, ONE_SLICE, f"run.mode = '{mode}'")
  given = f"--model_dir={tmp_path / name}"
  assert str(refused.value).startswith(f"mtf_moe.train: {given!r} has ")
  assert "\n" not in str(refused.value)
  assert not list(tmp_path.iterdir())


def test_names_that_are_only_odd(tmp_path, trained, monkeypatch):
  """In a directory that is not named, and so may have any name."""
  (tmp_path / "run[3]" / "b").mkdir(parents=True)
  monkeypatch.chdir(tmp_path / "run[3]")
  name = "b/../b/./a ]{ü}%s'//"
  model = dataclasses.replace(trained, directory=name)
  run(model, ONE_SLICE, "run.train_steps = 1")
  assert tf.train.latest_checkpoint(name).endswith("/model.ckpt-1")
  printed = run(model, ONE_SLICE, "run.train_steps = 4")
  assert "resuming at step 1" in printed
  assert sorted(file for file in os.listdir(name) if file.endswith(".index")
                ) == ["model.ckpt-3.index", "model.ckpt-4.index"]
  printed = run(model, ONE_SLICE, files=PERPLEXITY)
  assert "evaluated step 4 " in printed
  evaluation, = (file for file in os.listdir(name) if file.startswith("eval_"))
  assert metrics(os.path.join(name, evaluation))["num_eval_tokens"] > 0


def test_a_model_that_is_a_file(tmp_path, trained):
  (tmp_path / "model").write_text("a file")
  model = dataclasses.replace(trained, directory=str(tmp_path / "model"))
  for mode, said in (("train", "cannot be written"),
                     ("perplexity_eval", "holds no checkpoint")):
    with pytest.raises(SystemExit, match=f"--model_dir={tmp_path}.*{said}"):
      run(model, ONE_SLICE, f"run.mode = '{mode}'")


@pytest.mark.parametrize("mode", ["train", "perplexity_eval"])
def test_several_machines(mode, tmp_path, trained, monkeypatch):
  monkeypatch.setenv("TF_CONFIG", json.dumps({
      "cluster": {"chief": ["localhost:1"], "worker": ["localhost:2"]},
      "task": {"type": "worker", "index": 0}}))
  model = dataclasses.replace(trained, directory=str(tmp_path / "model"))
  with pytest.raises(SystemExit, match=r"^mtf_moe\.train: .*TF_CONFIG.*unset"):
    run(model, ONE_SLICE, f"run.mode = '{mode}'")
  assert not list(tmp_path.iterdir())
