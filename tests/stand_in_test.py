"""Tests of what stands in for modules that are missing or broken.

In a fresh process they are made to look absent by the means Python has for it,
a None in `sys.modules`.
"""

import textwrap

import pytest

from tests import fresh_process


@pytest.fixture(scope="module")
def without_optional_modules():
  """What a process finds that has none of the modules compat stands in for."""
  return fresh_process.json_of("""
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
  found = fresh_process.json_of("""
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
  result = fresh_process.run("""
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
  return fresh_process.json_of("""
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
  result = fresh_process.run("""
      import mtf_moe.compat
      import tensorflow_datasets
      tensorflow_datasets.load("glue/cola")
      """, python_path=[tmp_path])
  last_line = result.stderr.strip().splitlines()[-1]
  assert last_line.startswith("ImportError: tensorflow_datasets cannot be used")
  assert "no attribute 'as_numpy'" in last_line
