"""Tests of compat.py, on the TensorFlow that is installed.

What compat does, it does once, at its import: most tests therefore look at a
fresh Python process, in which chosen modules are made to look absent by the
means Python has for it, a None in `sys.modules`.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
import tensorflow as tf

from mtf_moe import compat

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_MODULES = (
    "mesh_tensorflow",
    "mesh_tensorflow.transformer.dataset",
    "mesh_tensorflow.transformer.moe",
    "mesh_tensorflow.transformer.utils",
    "mesh_tensorflow.transformer.vocabulary",
    "gin.tf",
)


def _run(code, python_path=()):
  """Runs `code` in a fresh process; its last line of output may be JSON."""
  paths = [*map(str, python_path), str(_ROOT)]
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths),
                 "TF_CPP_MIN_LOG_LEVEL": "3"}
  return subprocess.run(
      [sys.executable, "-c", textwrap.dedent(code)], env=environment,
      capture_output=True, text=True, timeout=300, check=False)


def _json_of(code, python_path=()):
  result = _run(code, python_path)
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


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
  result = _run("""
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
  found = _json_of(f"""
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


# Stubs.


@pytest.fixture(scope="module")
def without_optional_modules():
  """What a process finds that has none of the modules compat stands in for."""
  return _json_of("""
      import sys
      import tensorflow as tf  # Old ones use distutils themselves.
      names = ["tensorflow_datasets", "pkg_resources", "distutils",
               "distutils.version"]
      sys.modules.update(dict.fromkeys(names))
      import mtf_moe.compat
      import importlib, importlib.util, json
      from absl import flags
      import gin
      import tensorflow_datasets as tfds
      import mesh_tensorflow.transformer.utils as utils

      def error_of(function, *args):
        try:
          function(*args)
        except Exception as error:
          return type(error).__name__ + ": " + str(error)

      def numbers(dataset):
        return [int(x) for x in dataset]

      found = {}
      found["load"] = error_of(tfds.load, "glue/cola")
      found["builder"] = error_of(tfds.builder, "glue/cola")
      found["spec"] = importlib.util.find_spec("tensorflow_datasets").name

      dataset = tfds.as_numpy(tf.data.Dataset.range(3))
      found["eager"] = [numbers(dataset), numbers(dataset)]
      found["tensor"] = tfds.as_numpy({"a": tf.constant([4, 5])})["a"].tolist()

      with tf.Graph().as_default():
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["a", "b"], [7, 8]), -1)
        words = tf.data.Dataset.from_tensor_slices({"w": ["b", "a", "c"]})
        words = words.map(lambda x: {"id": table.lookup(x["w"]), **x})
        rows = tfds.as_numpy(words)
        found["graph"] = [
            [(int(row["id"]), row["w"].decode()) for row in rows]
            for _ in range(2)]
        found["graph_tensor"] = int(tfds.as_numpy(tf.constant(6)))
        bad = tf.data.Dataset.from_tensors(1.0)
        bad = bad.map(lambda x: tf.debugging.check_numerics(x / 0.0, "bad"))
        found["graph_error"] = error_of(list, tfds.as_numpy(bad))

      flags.FLAGS(["program"])
      utils.parse_gin_defaults_and_flags()
      found["gin"] = gin.query_parameter(
          "Unitransformer.max_length")

      import pkg_resources
      from pkg_resources import parse_version
      found["parsed"] = [parse_version("2.9.1") < parse_version("2.15.0")]

      def import_error(code):
        return error_of(lambda: exec(code, {"pkg_resources": pkg_resources}))

      found["elsewhere"] = [import_error(code) for code in (
          "pkg_resources.require", "from pkg_resources import require",
          "import pkg_resources.extern", "import distutils.util",
          "from distutils import util")]

      import pytest
      with pytest.MonkeyPatch.context() as patch:
        found["prepended"] = error_of(patch.syspath_prepend, "/my/modules")
        found["first"] = sys.path[0]

      from distutils.version import LooseVersion
      found["versions"] = [LooseVersion("2.9.1") < LooseVersion("2.15.0"),
                           LooseVersion("2.15.0") < LooseVersion("2.9.1")]
      print(json.dumps(found))
      """)


@pytest.mark.parametrize("function", ["load", "builder"])
def test_absent_data_sets_say_what_to_install(without_optional_modules,
                                              function):
  message = without_optional_modules[function]
  assert message.startswith("ImportError: tensorflow_datasets cannot be")
  assert "pip install tensorflow-datasets" in message
  assert "tensorflow-metadata==1.16.1" in message


def test_find_spec_answers_for_a_stub(without_optional_modules):
  assert without_optional_modules["spec"] == "tensorflow_datasets"


def test_as_numpy_of_a_data_set_can_be_read_twice(without_optional_modules):
  assert without_optional_modules["eager"] == [[0, 1, 2], [0, 1, 2]]


def test_as_numpy_of_a_data_set_with_a_table_in_a_graph(
    without_optional_modules):
  once = [[8, "b"], [7, "a"], [-1, "c"]]
  assert without_optional_modules["graph"] == [once, once]


def test_as_numpy_in_a_graph_passes_errors_on(without_optional_modules):
  assert "InvalidArgumentError" in without_optional_modules["graph_error"]


def test_as_numpy_of_tensors(without_optional_modules):
  assert without_optional_modules["tensor"] == [4, 5]
  assert without_optional_modules["graph_tensor"] == 6


def test_file_of_a_package_is_found_without_pkg_resources(
    without_optional_modules):
  # What mesh_tensorflow's own gin/defaults.gin says.
  assert without_optional_modules["gin"] == 512


def test_versions_compare_as_numbers_without_distutils(
    without_optional_modules):
  assert without_optional_modules["versions"] == [True, False]


def test_versions_compare_as_numbers_without_pkg_resources(
    without_optional_modules):
  assert without_optional_modules["parsed"] == [True]


def test_pytest_prepends_to_the_path_without_pkg_resources(
    without_optional_modules):
  assert without_optional_modules["prepended"] is None
  assert without_optional_modules["first"] == "/my/modules"


def test_what_a_stand_in_lacks_it_says_how_to_get(without_optional_modules):
  errors = without_optional_modules["elsewhere"]
  assert [error.partition(":")[0] for error in errors] == [
      "AttributeError", *4 * ["ImportError"]]
  for error, package in zip(
      errors, [*3 * ["setuptools<81"], *2 * ["setuptools"]], strict=True):
    assert f"pip install {package}`" in error.replace("'", "")


def test_present_modules_are_left_alone(tmp_path):
  for name in ("tensorflow_datasets", "pkg_resources"):
    (tmp_path / f"{name}.py").write_text(
        "HERE = True\nload = builder = as_numpy = lambda *_: None\n")
  found = _json_of("""
      import distutils.version, json
      import tensorflow as tf
      present = distutils.version
      has_estimator = hasattr(tf, "estimator")
      estimator = has_estimator and tf.estimator.__name__
      import mtf_moe.compat
      import distutils.version, pkg_resources, tensorflow_datasets
      print(json.dumps([
          distutils.version is present, pkg_resources.HERE,
          tensorflow_datasets.HERE,
          not has_estimator or tf.estimator.__name__ == estimator]))
      """, python_path=[tmp_path])
  assert found == [True, True, True, True]


def test_broken_data_sets_package_counts_as_absent(tmp_path):
  (tmp_path / "tensorflow_datasets.py").write_text(
      "raise TypeError('Descriptors cannot be created directly.')\n")
  result = _run("""
      import mtf_moe.compat
      import mesh_tensorflow.transformer.dataset
      import tensorflow_datasets
      tensorflow_datasets.load("glue/cola")
      """, python_path=[tmp_path])
  last_line = result.stderr.strip().splitlines()[-1]
  assert last_line.startswith("ImportError: tensorflow_datasets cannot be")
  assert "TypeError: Descriptors cannot be created" in last_line


@pytest.fixture(scope="module")
def empty_data_sets(tmp_path_factory):
  """What a process finds whose tensorflow_datasets logs an error and is empty.

  As 4.9.10 does with tensorflow-metadata 1.21.
  """
  path = tmp_path_factory.mktemp("packages")
  package = path / "tensorflow_datasets"
  package.mkdir()
  (package / "core.py").write_text("")
  (package / "__init__.py").write_text(textwrap.dedent("""
      from absl import logging
      try:
        from tensorflow_datasets import core
        raise TypeError("Descriptors cannot\\nbe created directly.")
      except Exception as error:
        logging.exception(error)
      """))
  return _json_of("""
      import mtf_moe.compat
      import importlib, json
      import importlib.util
      import tensorflow_datasets as tfds
      import mesh_tensorflow.transformer.dataset

      def error_of(code):
        try:
          exec(code)
        except Exception as error:
          return [type(error).__name__, str(error)]

      print(json.dumps({
          "errors": [error_of(code) for code in (
              "tfds.load('glue/cola')", "tfds.builder('glue/cola')",
              "tfds.core", "tfds.anything",
              "from tensorflow_datasets import core",
              "from tensorflow_datasets import anything",
              "import tensorflow_datasets.core",
              "import tensorflow_datasets.public_api as api")],
          "has": [hasattr(tfds, "load"), hasattr(tfds, "core"),
                  hasattr(tfds, "__wrapped__")],
          "spec": importlib.util.find_spec("tensorflow_datasets").name}))
      """, python_path=[path])


def test_empty_data_sets_package_says_why_whatever_is_asked(empty_data_sets):
  assert [kind for kind, _ in empty_data_sets["errors"]] == [
      "ImportError", "ImportError", "AttributeError", "AttributeError",
      "ImportError", "ImportError", "ImportError", "ImportError"]
  for _, message in empty_data_sets["errors"]:
    assert "tensorflow_datasets cannot be used" in message
    assert "TypeError: Descriptors cannot be created directly." in message
    assert "tensorflow-metadata==1.16.1" in message


def test_empty_data_sets_package_can_be_asked_what_it_has(empty_data_sets):
  assert empty_data_sets["has"] == [True, False, False]
  assert empty_data_sets["spec"] == "tensorflow_datasets"


def test_data_sets_package_without_a_function_names_it(tmp_path):
  (tmp_path / "tensorflow_datasets.py").write_text("load = builder = print\n")
  result = _run("""
      import mtf_moe.compat
      import tensorflow_datasets
      tensorflow_datasets.load("glue/cola")
      """, python_path=[tmp_path])
  last_line = result.stderr.strip().splitlines()[-1]
  assert last_line.startswith("ImportError: tensorflow_datasets cannot be used")
  assert "no attribute 'as_numpy'" in last_line


# Estimator.


def test_tpu_estimator_trains_and_evaluates_on_a_cpu(tmp_path):
  found = _json_of(f"""
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
  result = _run("""
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
  result = _run("""
      import sys
      sys.modules["tensorflow_estimator"] = None
      import mtf_moe.compat
      """)
  last_line = result.stderr.strip().splitlines()[-1]
  assert last_line.startswith("ImportError: TensorFlow 2.")
  assert "pip install tensorflow-estimator==2.15.0" in last_line
