"""Tests of compat.py, on the TensorFlow that is installed.

What compat does, it does once, at its import: most tests therefore look at a
fresh Python process. What stands in for absent modules is in stand_in_test.py.
"""

import importlib
import sys

import pytest
import tensorflow as tf

from mtf_moe import compat
from tests import fresh_process

_MODULES = (
    "mesh_tensorflow",
    "mesh_tensorflow.transformer.dataset",
    "mesh_tensorflow.transformer.moe",
    "mesh_tensorflow.transformer.utils",
    "mesh_tensorflow.transformer.vocabulary",
    "gin.tf",
)


# Imports.


@pytest.mark.parametrize("name", _MODULES)
def test_module_can_be_imported(name):
  importlib.import_module(name)


def test_names_that_mesh_tensorflow_needs_exist():
  ops = importlib.import_module("tensorflow.python.framework.ops")
  assert callable(ops.register_tensor_conversion_function)
  assert tf.compat.v1.estimator.ModeKeys.TRAIN == "train"
  assert callable(tf.estimator.SessionRunHook)
  tpu_config = importlib.import_module("tensorflow.python.tpu.tpu_config")
  assert tpu_config.TPUConfig().iterations_per_loop == 2  # TPUConfig's default
  distutils_version = importlib.import_module("distutils.version")
  assert (distutils_version.LooseVersion("1.13.0")
          < distutils_version.LooseVersion(tf.__version__))


def test_second_import_changes_nothing():
  names = ("distutils.version", "pkg_resources", "tensorflow_datasets",
           "tensorflow.python.tpu.tpu_estimator")
  for name in names:
    importlib.import_module(name)
  before = {name: sys.modules[name] for name in names}
  ops = importlib.import_module("tensorflow.python.framework.ops")
  register = ops.register_tensor_conversion_function
  estimator = tf.compat.v1.estimator

  importlib.reload(compat)

  assert {name: sys.modules[name] for name in names} == before
  assert ops.register_tensor_conversion_function is register
  assert tf.compat.v1.estimator is estimator


# TensorFlow itself: missing, untested, tested.


def test_missing_tensorflow_is_an_error_that_says_what_to_install():
  result = fresh_process.run("""
      import sys
      sys.modules["tensorflow"] = None
      import mtf_moe.compat
      """)
  assert result.returncode == 1
  last_line = result.stderr.strip().splitlines()[-1]
  assert last_line.startswith("ImportError: mtf_moe needs TensorFlow")
  assert "pip install 'mtf_moe[cpu]'" in last_line
  for release in ("2.12.1", "2.15.1", "2.21.0"):
    assert release in last_line


def _warnings_of(version):
  """(file, message) of mtf_moe's warnings on TensorFlow `version`."""
  found = fresh_process.json_of(f"""
      import json, warnings
      import tensorflow as tf
      tf.__version__ = {version!r}
      with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import mtf_moe
      print(json.dumps([(w.filename, str(w.message)) for w in caught]))
      """)
  return [(name, message) for name, message in found if "mtf_moe" in message]


@pytest.mark.parametrize("version", ["2.13.0", "2.1.21"])
def test_untested_tensorflow_warns_once_at_the_users_line(version):
  [(filename, message)] = _warnings_of(version)
  assert filename == "<string>"  # The program, not a file of the package.
  assert version in message
  for release in compat.TESTED_TENSORFLOW:
    assert release in message


def test_other_patch_release_of_a_tested_series_does_not_warn():
  assert _warnings_of("2.15.0") == []


# Estimator.


def test_tpu_estimator_trains_and_evaluates_on_a_cpu(tmp_path):
  found = fresh_process.json_of(f"""
      import mtf_moe.compat
      import json
      import tensorflow.compat.v1 as tf
      from tensorflow.compat.v1 import estimator as tf_estimator
      from tensorflow.python.tpu import tpu_config, tpu_estimator
      tf.disable_v2_behavior()

      def model_fn(features, labels, mode, params):
        w = tf.get_variable("w", [], initializer=tf.zeros_initializer())
        loss = tf.reduce_mean((w * features - labels)**2)
        step = tf.train.get_global_step()
        train_op = tf.train.GradientDescentOptimizer(0.05).minimize(loss, step)
        return tpu_estimator.TPUEstimatorSpec(
            mode, loss=loss, train_op=train_op)

      def input_fn(params=None):
        return tf.data.Dataset.from_tensors(([1., 2.], [2., 4.])).repeat()

      estimator = tpu_estimator.TPUEstimator(
          model_fn=model_fn, use_tpu=False, train_batch_size=2,
          eval_batch_size=2, config=tpu_config.RunConfig(
              model_dir={str(tmp_path)!r}, tpu_config=tpu_config.TPUConfig()))
      estimator.train(input_fn, max_steps=1)
      one = estimator.get_variable_value("w")
      tf_estimator.train_and_evaluate(
          estimator, tf_estimator.TrainSpec(input_fn, max_steps=2),
          tf_estimator.EvalSpec(input_fn, steps=1))
      two = estimator.get_variable_value("w")
      loss = estimator.evaluate(input_fn, steps=1)["loss"]
      print(json.dumps([float(one), float(two), float(loss)]))
      """)
  # The loss is 2.5 (w - 2)^2, its slope 5 (w - 2): a step of 0.05 leaves 3/4 of
  # the distance to 2. From 0 this gives 0.5, then 0.875, exact in binary, and a
  # last loss of 2.5 * 1.125^2.
  assert found == [0.5, 0.875, 2.5 * 1.125**2]


def _tensorflow_has_estimator():
  return tuple(map(int, tf.__version__.split(".")[:2])) < (2, 16)


@pytest.mark.skipif(_tensorflow_has_estimator(),
                    reason="this TensorFlow still has tf.estimator")
def test_removed_features_fail_clearly_only_when_used():
  result = fresh_process.run("""
      import mtf_moe.compat
      from tensorflow.python.tpu import tpu_embedding, session_support
      assert not isinstance(1, tpu_embedding.FeatureConfig)
      assert tpu_embedding.FeatureConfig is tpu_embedding.FeatureConfig
      assert not hasattr(tpu_embedding, "__file__")
      session_support.ResetComputation()
      """)
  last_line = result.stderr.strip().splitlines()[-1]
  assert last_line.startswith(
      "NotImplementedError: tensorflow.python.tpu.session_support."
      "ResetComputation was removed")
  assert "TF_TPU_GRACEFUL_SHUTDOWN_MODE" in last_line


@pytest.mark.skipif(_tensorflow_has_estimator(),
                    reason="this TensorFlow still has tf.estimator")
def test_missing_estimator_package_says_what_to_install():
  result = fresh_process.run("""
      import sys
      sys.modules["tensorflow_estimator"] = None
      import mtf_moe.compat
      """)
  last_line = result.stderr.strip().splitlines()[-1]
  assert last_line.startswith("ImportError: TensorFlow 2.")
  assert "pip install tensorflow-estimator==2.15.0" in last_line
