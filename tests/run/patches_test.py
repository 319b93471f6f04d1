"""Tests of the changes to mesh_tensorflow that last as long as a run."""

from mesh_tensorflow.transformer import utils
import pytest
import tensorflow.compat.v1 as tf
from tensorflow_estimator import estimator as tf_estimator

from mtf_moe.run import patches


def _estimator(model_dir):
  return tf_estimator.Estimator(lambda features: None, model_dir)


def _is_optimizer_off():
  config = utils.get_estimator(model_dir="none")._session_config
  return config.graph_options.rewrite_options.disable_meta_optimizer


def test_print_op_is_silent():
  before = tf.Print
  with tf.Graph().as_default():
    x = tf.constant(1.5)
    with patches.silent_print_op():
      assert tf.Print(x, [x], "never shown") is x
  assert tf.Print is before


def test_graphs_run_as_they_are_built(monkeypatch):
  monkeypatch.setattr(utils, "get_estimator", _estimator)
  assert not _is_optimizer_off()
  with patches.graphs_as_built():
    assert _is_optimizer_off()
  assert not _is_optimizer_off()


def test_an_error_ends_a_change(monkeypatch):
  monkeypatch.setattr(utils, "get_estimator", _estimator)
  with pytest.raises(ZeroDivisionError), patches.changed_estimators(str):
    assert isinstance(utils.get_estimator(model_dir="none"), str)
    raise ZeroDivisionError
  assert utils.get_estimator is _estimator


def test_checkpoints_that_may_be_used(tmp_path):
  """For Estimators and for mesh_tensorflow, and in one directory only."""
  def checkpoint_paths(directory, steps):
    return [f"{directory}/model.ckpt-{step}" for step in steps]

  def newest(directory):
    estimator = _estimator(directory)
    return {tf.train.latest_checkpoint(directory),
            estimator.latest_checkpoint(),
            *utils.get_checkpoint_iterator(-1, directory),
            next(iter(utils.get_checkpoint_iterator(None, directory)))}

  directories = [str(tmp_path / name) for name in ("one", "other")]
  for directory in directories:
    with tf.Graph().as_default(), tf.Session() as session:
      variable = tf.get_variable("v", [])
      session.run(variable.initializer)
      saver = tf.train.Saver()
      for step in (1, 2, 3):
        saver.save(session, f"{directory}/model.ckpt", step)
  one, other = directories
  usable = checkpoint_paths(one, [1, 2])
  with patches.usable_checkpoints(one, lambda: usable):
    assert newest(one) == {f"{one}/model.ckpt-2"}
    assert newest(other) == {f"{other}/model.ckpt-3"}
    assert list(utils.get_checkpoint_iterator("all", one)) == usable
    assert list(utils.get_checkpoint_iterator("all", other)) == (
        checkpoint_paths(other, [1, 2, 3]))
    usable = []
    assert tf.train.latest_checkpoint(one) is None
  assert newest(one) == {f"{one}/model.ckpt-3"}
