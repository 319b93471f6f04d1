"""Real checkpoints, whole and damaged in several ways."""

import json
import os
import shutil

import gin
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.train import checkpoints


def save(directory, values):
  """Saves a checkpoint for each step with a value."""
  with tf.Graph().as_default(), tf.Session() as session:
    variable = tf.get_variable("weights", [1000])
    other = tf.get_variable("step", initializer=np.int64(0))
    saver = tf.train.Saver(save_relative_paths=True)
    session.run(other.initializer)
    for step, value in values.items():
      variable.load(np.full([1000], value, np.float32), session)
      saver.save(session, str(directory / "model.ckpt"), step)


def path(directory, step):
  return str(directory / f"model.ckpt-{step}")


def flip_a_bit(file):
  data = bytearray(file.read_bytes())
  data[100] ^= 1
  file.write_bytes(data)


DAMAGES = {
    "a bit": lambda d: flip_a_bit(d / "model.ckpt-3.data-00000-of-00001"),
    "no end": lambda d: os.truncate(d / "model.ckpt-3.data-00000-of-00001", 99),
    "no data": lambda d: os.remove(d / "model.ckpt-3.data-00000-of-00001"),
    "no index": lambda d: os.remove(d / "model.ckpt-3.index"),
    "empty index": lambda d: os.truncate(d / "model.ckpt-3.index", 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(damage, tmp_path, caplog):
  save(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0})
  assert checkpoints.problem(path(tmp_path, 3)) is None
  DAMAGES[damage](tmp_path)
  assert "cannot be read" in checkpoints.problem(path(tmp_path, 3))
  assert checkpoints.newest_good(str(tmp_path)) == path(tmp_path, 2)

  checkpoints.set_aside_damaged(str(tmp_path))
  assert tf.train.latest_checkpoint(str(tmp_path)) == path(tmp_path, 2)
  assert "model.ckpt-3 is damaged" in caplog.text
  assert "model.ckpt-2 is used" in caplog.text
  assert list((tmp_path / "damaged").iterdir())
  assert not list(tmp_path.glob("model.ckpt-3*"))
  # And is found where the directory was moved.
  moved = tmp_path.rename(tmp_path.parent / f"{tmp_path.name}_moved")
  assert tf.train.latest_checkpoint(str(moved)) == path(moved, 2)


def test_values_that_are_not_finite(tmp_path):
  save(tmp_path, {1: 1.0, 2: np.nan, 3: np.inf})
  assert checkpoints.problem(path(tmp_path, 2)) == (
      "variable weights has values that are not finite")
  assert checkpoints.newest_good(str(tmp_path)) == path(tmp_path, 1)
  checkpoints.set_aside_damaged(str(tmp_path))
  assert tf.train.latest_checkpoint(str(tmp_path)) == path(tmp_path, 1)


def test_nothing_is_wrong(tmp_path, caplog):
  save(tmp_path, {1: 1.0, 2: 2.0})
  before = (tmp_path / "checkpoint").read_text()
  checkpoints.set_aside_damaged(str(tmp_path))
  assert (tmp_path / "checkpoint").read_text() == before
  assert not caplog.text


def test_a_record_that_is_missing(tmp_path):
  """As where a run was killed between the checkpoint and its record."""
  save(tmp_path, {9: 1.0, 10: 2.0})
  os.remove(tmp_path / "checkpoint")
  checkpoints.set_aside_damaged(str(tmp_path))
  assert tf.train.latest_checkpoint(str(tmp_path)) == path(tmp_path, 10)


def test_no_checkpoint_is_good(tmp_path):
  save(tmp_path, {1: np.nan})
  before = sorted(tmp_path.iterdir())
  with pytest.raises(ValueError, match=(
      f"--model_dir={tmp_path} has no good checkpoint. Of the newest, "
      "model.ckpt-1, variable weights")):
    checkpoints.set_aside_damaged(str(tmp_path))
  assert sorted(tmp_path.iterdir()) == before


def test_no_checkpoint_at_all(tmp_path):
  checkpoints.set_aside_damaged(str(tmp_path))
  assert checkpoints.newest_good(str(tmp_path)) is None


def test_it_can_be_turned_off(tmp_path):
  save(tmp_path, {1: 1.0, 2: np.nan})
  gin.parse_config("set_aside_damaged.enabled = False")
  checkpoints.set_aside_damaged(str(tmp_path))
  assert tf.train.latest_checkpoint(str(tmp_path)) == path(tmp_path, 2)


def test_what_was_not_finished_is_removed(tmp_path):
  save(tmp_path, {1: 1.0})
  remains = tmp_path / "model.ckpt-2_temp_1234"
  remains.mkdir()
  (remains / "part-00000-of-00001.data").write_bytes(b"half")
  checkpoints.set_aside_damaged(str(tmp_path))
  assert not remains.exists()
  assert checkpoints.size(path(tmp_path, 1)) > 4000


def account(directory, *paths):
  """Writes what TensorFlow would take for its account."""
  (directory / "checkpoint").write_text("".join(
      f"{key}: {json.dumps(str(name))}\n"
      for key, names in [("model_checkpoint_path", paths[-1:]),
                         ("all_model_checkpoint_paths", paths)]
      for name in names))


def contents(directory):
  """What is in a directory, and when it was written."""
  return {path.relative_to(directory): (
      path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
          for path in directory.rglob("*")}


@pytest.fixture
def elsewhere(tmp_path):
  """A directory of somebody else, with what looks like checkpoints."""
  directory = tmp_path / "elsewhere"
  directory.mkdir()
  save(directory, {7: np.nan})
  (directory / "model.ckpt-8.index").write_text("precious")
  (directory / "[model.ckpt-99999]").write_text("precious")
  (directory / "model.ckpt-9_temp_1").mkdir()
  (directory / "model.ckpt-9_temp_1" / "file").write_text("precious")
  return directory


@pytest.fixture
def model(tmp_path):
  directory = tmp_path / "model"
  directory.mkdir()
  save(directory, {1: 1.0, 2: 2.0})
  return directory


@pytest.mark.parametrize("name", [
    "../elsewhere/[model.ckpt-99999]*", "../elsewhere/model.ckpt-7",
    "../elsewhere/model.ckpt-8", "../elsewhere/*", "{elsewhere}/model.ckpt-7",
    "../elsewhere", "..", "/", "model.ckpt-9_temp_1/../../elsewhere/file"])
@pytest.mark.parametrize("move", [True, False])
def test_an_account_of_something_elsewhere(
    name, move, model, elsewhere, caplog):
  name = name.format(elsewhere=elsewhere)
  account(model, name, "model.ckpt-1", "model.ckpt-2", name)
  before = contents(elsewhere), contents(model)
  checkpoints.set_aside_damaged(str(model), move=move)
  assert contents(elsewhere) == before[0]
  warning, = caplog.messages
  assert f'{name}", which is not there' in warning
  assert "model.ckpt-2 is used" in warning
  assert checkpoints.newest(str(model)) == path(model, 2)
  if move:  # And TensorFlow, which removes old ones, has no others.
    state = tf.train.get_checkpoint_state(str(model))
    assert list(state.all_model_checkpoint_paths) == [
        path(model, 1), path(model, 2)]
  else:
    assert contents(model) == before[1]


@pytest.mark.parametrize("move", [True, False])
def test_nothing_but_an_account_of_something_elsewhere(
    move, tmp_path, elsewhere):
  model = tmp_path / "empty"
  model.mkdir()
  account(model, elsewhere / "model.ckpt-7")
  with pytest.raises(ValueError, match=(
      f"--model_dir={model} has no checkpoint, and its file `checkpoint` names "
      f'"{elsewhere}/model.ckpt-7", which is not there. Copy')):
    checkpoints.set_aside_damaged(str(model), move=move)


@pytest.mark.parametrize("old_place_is_there", [True, False])
def test_a_copy_of_an_account_with_paths(old_place_is_there, model, caplog):
  """Goes on in the new place, and leaves the old one alone."""
  account(model, path(model, 1), path(model, 2))
  copy = model.parent / "copy"
  shutil.copytree(model, copy)
  if not old_place_is_there:
    shutil.rmtree(model)
  checkpoints.set_aside_damaged(str(copy))
  assert not caplog.messages
  state = tf.train.get_checkpoint_state(str(copy))
  assert list(state.all_model_checkpoint_paths) == [
      path(copy, 1), path(copy, 2)]


@pytest.mark.parametrize("content", [
    b"", b"\xff\xfe", b"no account", b"x: " * 2 ** 19, None])
def test_an_account_that_cannot_be_read(content, model, caplog):
  file = model / "checkpoint"
  file.unlink()
  if content is None:
    os.mkfifo(file)
  else:
    file.write_bytes(content)
  checkpoints.set_aside_damaged(str(model))
  assert "cannot be read" in caplog.text
  assert tf.train.latest_checkpoint(str(model)) == path(model, 2)


def test_damaged_ones_are_never_lost(model, elsewhere, caplog):
  """Not to a folder that is elsewhere, and not to one of the same name."""
  (model / "damaged").symlink_to(elsewhere)
  (model / "damaged.1").write_text("a file")
  (model / "damaged.2").mkdir()
  (model / "damaged.2" / "model.ckpt-2.index").write_text("an earlier one")
  data = model / "model.ckpt-2.data-00000-of-00001"
  flip_a_bit(data)
  before, damaged = contents(elsewhere), data.read_bytes()
  checkpoints.set_aside_damaged(str(model))
  assert contents(elsewhere) == before
  assert (model / "damaged.2" / "model.ckpt-2.index").read_text() == (
      "an earlier one")
  assert (model / "damaged.3" / data.name).read_bytes() == damaged
  assert f"now in {model}/damaged.3" in caplog.text


def test_who_only_reads_moves_nothing(model, caplog):
  flip_a_bit(model / "model.ckpt-2.data-00000-of-00001")
  (model / "model.ckpt-3_temp_1").mkdir()
  before = contents(model)
  damaged = checkpoints.set_aside_damaged(str(model), move=False)
  assert contents(model) == before
  assert damaged == [path(model, 2)]
  assert checkpoints.usable(str(model), damaged) == [path(model, 1)]
  assert "model.ckpt-1 is used" in caplog.text


def test_remains_that_are_links(model, elsewhere):
  (model / "model.ckpt-5_temp_1").symlink_to(elsewhere)
  (model / "model.ckpt-6_temp_1").mkdir()
  (model / "model.ckpt-6_temp_1" / "part").symlink_to(elsewhere)
  before = contents(elsewhere)
  checkpoints.remove_remains(str(model))
  assert contents(elsewhere) == before
  assert not [name for name in os.listdir(model) if "temp" in name]


def test_a_path_is_no_pattern(tmp_path):
  """What was not finished in run3 is none of run[3]'s business."""
  (tmp_path / "run[3]").mkdir()
  (tmp_path / "run3" / "model.ckpt-2_temp_1").mkdir(parents=True)
  before = contents(tmp_path)
  checkpoints.set_aside_damaged(str(tmp_path / "run[3]"))
  assert contents(tmp_path) == before
