"""Makes mesh_tensorflow importable on the TensorFlow of today.

mesh-tensorflow 0.1.21 was written for the TensorFlow of 2022. Since then
TensorFlow moved one function, dropped `tf.estimator`, and Python's packaging
lost two modules that mesh_tensorflow or gin import. Importing this module puts
back what is missing; `mtf_moe/__init__.py` imports it before anything else, so
a program that imports `mtf_moe` first can import `mesh_tensorflow` afterwards.

Each patch looks for the missing thing itself, not for a version number, and
leaves alone whatever is there. None of them changes what TensorFlow computes,
but for products that it computes wrong on some processors, and none switches to
TF1 behaviour: a program that builds mesh_tensorflow graphs calls
`tf.compat.v1.disable_v2_behavior()` itself.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
import warnings

# The exact releases that the tests of this package run on.
TESTED_TENSORFLOW = ("2.12.1", "2.15.1", "2.21.0")

# What tensorflow-estimator imports although TensorFlow 2.16 removed it, with a
# hint for the one that a program can meet without having asked for it. On a
# CPU, mesh_tensorflow needs none of them.
_REMOVED_ESTIMATOR_MODULES = {
    "tensorflow.python.distribute.estimator_training": "",
    "tensorflow.python.tpu.tpu_embedding": "",
    "tensorflow.python.tpu.tpu_embedding_gradient": "",
    "tensorflow.python.tpu.session_support": (
        " If this came up in training on a TPU, set the environment variable "
        "TF_TPU_GRACEFUL_SHUTDOWN_MODE to the empty string."),
}


def _import_tensorflow():
  """Returns the tensorflow module, or says how to install it."""
  # Read once, at the import. TensorFlow's remarks on the processor are no news
  # to the user of a program; its warnings and errors stay.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  try:
    import tensorflow
    return tensorflow
  except ModuleNotFoundError as error:
    if error.name != "tensorflow":
      raise  # TensorFlow is there but broken, and its own message is better.
    tested = ", ".join(TESTED_TENSORFLOW)
    raise ImportError(
        "mtf_moe needs TensorFlow, which is not installed (it is not installed "
        "along with mtf_moe, since TPU hosts bring their own build). Tested "
        f"are the releases {tested}. Install one with `pip install "
        "'mtf_moe[cpu]'` for a CPU, `pip install 'mtf_moe[tensorflow]'` "
        "otherwise.") from error


tf = _import_tensorflow()

from mtf_moe import absent_datasets  # noqa: E402  (It imports TensorFlow.)
from mtf_moe import stand_in  # noqa: E402


def _minor_series(version):
  return tuple(version.split(".")[:2])


def _warn_if_untested(version):
  """Warns once, at the import, when nobody has tried this TensorFlow."""
  if _minor_series(version) in map(_minor_series, TESTED_TENSORFLOW):
    return
  tested = ", ".join(TESTED_TENSORFLOW)
  warnings.warn(
      f"mtf_moe is not tested on TensorFlow {version}; it is tested on "
      f"{tested}. If mesh_tensorflow fails in a strange way, try one of those.",
      stacklevel=5)  # The line of the user that imports mtf_moe.


def _avoid_wrong_products():
  """Keeps TensorFlow from instructions with which it multiplies wrong.

  On processors with AMX, the oneDNN in TensorFlow 2.12.1 and 2.21.0 computes
  some products of bfloat16 wrong: of 49 to 63 rows with up to 32 columns, the
  first ones are of other numbers. That in 2.15.1 does not, and may use AMX. A
  value of the user's own stays (mtf_moe/run/arithmetic.py looks at results).

  Right is also TF_ENABLE_ONEDNN_OPTS=0, but it rounds every addition of a
  product to bfloat16, and is read when TensorFlow is imported; this is read at
  the first product.
  """
  if _minor_series(tf.__version__) != ("2", "15"):
    # The most that it may use, which is just below AMX.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")


def _new_module(name, cls=types.ModuleType):
  """An empty module that the import system takes for a loaded one."""
  module = cls(name, "Stands in for a missing module; see mtf_moe.compat.")
  # Without a spec, importlib.util.find_spec(name) raises instead of answering.
  module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
  return module


def _install_module(name, module):
  """Makes `import name` and `from parent import name` give `module`."""
  sys.modules[name] = module
  parent, _, child = name.rpartition(".")
  if parent:
    setattr(importlib.import_module(parent), child, module)


def _can_import(name):
  """Whether `import name` works, without the warnings it may give."""
  try:
    with warnings.catch_warnings():
      # A working pkg_resources announces its own end on every first import.
      warnings.simplefilter("ignore")
      importlib.import_module(name)
  except Exception:  # Not only ImportError: an old one can break in any way.
    return False
  return True


def _restore_tensor_conversion():
  """Puts back a function that TensorFlow 2.13 moved to another module.

  mesh_tensorflow/tpu_variables.py calls it where it used to be.
  """
  from tensorflow.python.framework import ops
  if hasattr(ops, "register_tensor_conversion_function"):
    return
  from tensorflow.python.framework import tensor_conversion_registry as registry
  ops.register_tensor_conversion_function = (
      registry.register_tensor_conversion_function)


class _RemovedModule(types.ModuleType):
  """A module whose every name is a class that cannot be instantiated.

  tensorflow-estimator takes names from the removed modules at its import
  (to subclass them, or for isinstance checks), so every name has to exist; to
  call one, function or class, is what has to fail, and clearly.
  """

  def __getattr__(self, name):
    if name.startswith("__"):  # Python's own questions to a module.
      raise AttributeError(name)
    qualified = f"{self.__name__}.{name}"
    hint = _REMOVED_ESTIMATOR_MODULES[self.__name__]

    def fail(*unused_args, **unused_kwargs):
      raise NotImplementedError(
          f"{qualified} was removed from TensorFlow 2.16 and mtf_moe does not "
          f"replace it.{hint} TensorFlow 2.15 still has it.")

    placeholder = type(
        name, (), {"__init__": fail, "__module__": self.__name__})
    setattr(self, name, placeholder)  # The same class every time it is asked.
    return placeholder


def _restore_estimator():
  """Puts back `tf.estimator` and TPUEstimator, gone since TensorFlow 2.16.

  mesh_tensorflow imports them from four places, gin.tf from one. The package
  tensorflow-estimator 2.15.0 still has all of it, and runs on TensorFlow 2.21
  once the modules it imports exist.
  """
  if hasattr(tf.compat.v1, "estimator"):
    return
  if importlib.util.find_spec("tensorflow_estimator") is None:
    raise ImportError(
        f"TensorFlow {tf.__version__} comes without tf.estimator, which "
        "mesh_tensorflow imports. Install it with `pip install "
        "tensorflow-estimator==2.15.0`.")
  _install_removed_estimator_modules()
  _restore_estimator_export()
  _install_module("tensorflow.estimator", importlib.import_module(
      "tensorflow_estimator._api.v2.estimator"))
  _install_module("tensorflow.compat.v1.estimator", importlib.import_module(
      "tensorflow_estimator._api.v1.estimator"))
  for name in ("tpu_config", "tpu_estimator"):
    _install_module(f"tensorflow.python.tpu.{name}", importlib.import_module(
        f"tensorflow_estimator.python.estimator.tpu.{name}"))


def _install_removed_estimator_modules():
  for name in _REMOVED_ESTIMATOR_MODULES:
    if not _can_import(name):
      _install_module(name, _new_module(name, _RemovedModule))
  training = sys.modules["tensorflow.python.distribute.estimator_training"]
  if isinstance(training, _RemovedModule):
    # The one function that train_and_evaluate calls on every run. What it asks
    # about, a coordinator for several workers, is part of what was removed.
    training.should_run_distribute_coordinator = lambda config: False


def _restore_estimator_export():
  """Teaches TensorFlow's export decorator the name "estimator" again.

  tensorflow-estimator marks each public symbol with it at its import.
  """
  from tensorflow.python.util import tf_export
  if hasattr(tf_export, "ESTIMATOR_API_NAME"):
    return
  name = "estimator"
  tf_export.ESTIMATOR_API_NAME = name
  for table, suffix in ((tf_export.API_ATTRS, ""),
                        (tf_export.API_ATTRS_V1, "_v1")):
    attributes = type(table[tf_export.TENSORFLOW_API_NAME])
    table.setdefault(name, attributes(f"_{name}_api_names{suffix}",
                                      f"_{name}_api_constants{suffix}"))


def _stub_tensorflow_datasets():
  """Lets mesh_tensorflow.transformer be imported without its data sets.

  It imports tensorflow_datasets in three modules and uses three functions of
  it, one of which, `as_numpy`, has nothing to do with downloaded data.
  """
  problem = absent_datasets.problem()
  if problem is not None:
    absent_datasets.AbsentDatasets(problem).install()


def _stub_pkg_resources():
  """Finds a file of an installed package; setuptools 82 dropped the real one.

  mesh_tensorflow.transformer.utils asks for its defaults.gin this way,
  tensorflow_hub, which T5 imports, compares versions, and pytest's
  `syspath_prepend` asks any pkg_resources that it finds loaded to look through
  the new path for parts of packages declared to it as in many places.
  """
  if _can_import("pkg_resources"):
    return
  from packaging import version

  def resource_filename(package_or_requirement, resource_name):
    module = importlib.import_module(package_or_requirement)
    return os.path.join(os.path.dirname(module.__file__), resource_name)

  def fixup_namespace_packages(path_item, parent=None):
    del path_item, parent  # Here no package can be declared so.

  stub = stand_in.StandIn(
      "pkg_resources",
      "pkg_resources cannot be imported, and of it mtf_moe brings only "
      "resource_filename, parse_version and fixup_namespace_packages. Install "
      "it with `pip install 'setuptools<81'`.")
  stub.resource_filename = resource_filename
  stub.fixup_namespace_packages = fixup_namespace_packages
  stub.parse_version = version.parse
  stub.install()


def _stub_distutils():
  """Compares versions; Python 3.12 dropped the real distutils.

  gin.tf compares TensorFlow's version with the oldest it supports.
  """
  if _can_import("distutils.version"):
    return
  from packaging import version
  stand_in.StandIn(
      "distutils",
      "distutils cannot be imported (Python 3.12 and later come without), and "
      "of it mtf_moe brings only distutils.version. Install it with `pip "
      "install setuptools`.").install()
  stub = _new_module("distutils.version")
  stub.LooseVersion = version.Version
  _install_module("distutils.version", stub)


def _mend_gin_search():
  """Lets gin look for `models/x.gin` where there is a folder `models`.

  Gin also looks for a file inside a Python package of that name, and any
  folder on Python's path, such as the current one, counts as a package. It has
  no file of its own, for which gin 0.5 is not prepared.
  """
  reader = importlib.import_module("gin.resource_reader")
  parse_path = reader._parse_config_path

  def parse_path_or_refuse(path):
    try:
      return parse_path(path)
    except TypeError as error:
      raise ValueError(f"not in a package: {path}") from error

  reader._parse_config_path = parse_path_or_refuse


def _apply():
  _warn_if_untested(tf.__version__)
  _avoid_wrong_products()
  _restore_tensor_conversion()
  _stub_pkg_resources()
  _stub_distutils()
  _restore_estimator()
  _stub_tensorflow_datasets()
  _mend_gin_search()


_apply()
