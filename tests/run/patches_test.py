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
