"""Real checkpoints, whole and damaged in several ways."""

import os

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
