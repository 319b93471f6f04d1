"""A directory that is held by one run, on a disk that can be full."""

import os
import shutil
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.train import model_directory


def hold(directory):
  """Enters a directory, and leaves it."""
  with model_directory.held(directory):
    pass


def write(path):
  """Writes with Python."""
  with open(path, "w") as f:
    f.write("x")


def write_with_tensorflow(path):
  with tf.io.gfile.GFile(path, "w") as f:
    f.write("x")


def test_held_by_one(tmp_path):
  directory = str(tmp_path / "new" / "model")
  assert not model_directory.is_held(directory)
  with model_directory.held(directory):
    assert model_directory.is_held(directory)
    with pytest.raises(ValueError, match=(
        f"--model_dir={directory} is being trained by another run "
        rf"\(process {os.getpid()}\). Wait")):
      hold(directory)
  assert not model_directory.is_held(directory)
  hold(directory)


@pytest.mark.parametrize("name", [
    "running", "train.log", "command", "command.1", "operative_config.gin",
    "layers.json", "layers.json.tmp",
    "checkpoint", "checkpoint.tmp", "graph.pbtxt", "eval_test_8",
    "validation_eval", "events.out.tfevents.1", "eval_8/words_7_predictions"])
def test_links_to_files_of_the_user(name, tmp_path):
  model, precious = tmp_path / "model", tmp_path / "precious"
  precious.write_text("precious")
  (model / name).parent.mkdir(parents=True)
  (model / name).symlink_to(precious)
  with pytest.raises(ValueError, match=(
      f"--model_dir={model} has {name}, which is a link to {precious}, ")):
    hold(str(model))
  assert precious.read_text() == "precious"
  assert len(list(model.iterdir())) == 1
  precious.unlink()  # A new file elsewhere is no better.
  with pytest.raises(ValueError, match="is a link to"):
    hold(str(model))


def test_links_that_harm_nobody(tmp_path):
  model = tmp_path / "model"
  model.mkdir()
  (model / "config").write_text("")
  (model / "operative_config.gin").symlink_to("config")
  (model / "text").symlink_to(tmp_path)  # No run writes there.
  (model / "model.ckpt-1.index").symlink_to(tmp_path / "other.index")
  hold(str(model))
  (tmp_path / "link").symlink_to(model)
  hold(str(tmp_path / "link"))


def test_pipes_do_not_make_a_run_wait(tmp_path):
  os.mkfifo(tmp_path / "train.log")
  with pytest.raises(ValueError, match=(
      r"has train\.log, which is neither a file nor a directory")):
    hold(str(tmp_path))


def test_a_lock_ends_with_its_process(tmp_path):
  subprocess.run([sys.executable, "-c", f"""
import os
from mtf_moe.train import model_directory
model_directory.held({str(tmp_path)!r}).__enter__()
os._exit(0)"""], check=True)
  assert (tmp_path / "running").exists()
  assert not model_directory.is_held(str(tmp_path))


def test_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=(
      f"--model_dir={tmp_path}/file/model cannot be written: .*ot a directory"
      ".*Choose")):
    hold(str(tmp_path / "file" / "model"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_may_not_be_written(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(ValueError, match="cannot be written: Permission denied"):
    hold(str(tmp_path))


def test_space(tmp_path):
  free = shutil.disk_usage(tmp_path).free
  model_directory.check_space(str(tmp_path), free // 2)
  with pytest.raises(ValueError, match=(
      f"--model_dir={tmp_path} is on a disk with [0-9,.]+ MB free, and a "
      "checkpoint takes [0-9,.]+ MB: make room")):
    model_directory.check_space(str(tmp_path), 2 * free)


def test_write_failures(tmp_path):
  """Real errors of the system and of TensorFlow; /dev/full is always full."""
  with pytest.raises(OSError) as system:
    write("/dev/full")
  assert model_directory.is_write_failure(system.value)
  assert model_directory.reason(system.value) == "No space left on device"
  with pytest.raises(tf.errors.OpError) as tensorflow:
    write_with_tensorflow("/dev/full")
  assert model_directory.is_write_failure(tensorflow.value)
  assert "No space left" in model_directory.reason(tensorflow.value)
  with pytest.raises(FileNotFoundError) as other:
    write(tmp_path / "none" / "file")
  assert not model_directory.is_write_failure(other.value)
  with pytest.raises(tf.errors.NotFoundError) as other:
    write_with_tensorflow(str(tmp_path / "none" / "file"))
  assert not model_directory.is_write_failure(other.value)


def test_nothing_is_overwritten(tmp_path):
  config = tmp_path / "operative_config.gin"
  for text in ("one", "two"):
    config.write_text(text)
    model_directory.keep_config(str(tmp_path))
  assert (tmp_path / "operative_config.gin.1").read_text() == "one"
  assert (tmp_path / "operative_config.gin.2").read_text() == "two"
  assert model_directory.save_command(str(tmp_path))
  model_directory.save_command(str(tmp_path))
  assert (tmp_path / "command").read_text() == (
      tmp_path / "command.1").read_text()
