"""Stands in for tensorflow_datasets where that is missing or broken.

Data sets that are on this machine need one function of it, `as_numpy`, which
works here; whatever else is asked for, the answer is why it is not there.
"""

import importlib
import logging

import tensorflow as tf

from mtf_moe import stand_in

NAME = "tensorflow_datasets"

# What mesh_tensorflow.transformer uses.
_USED = ("load", "builder", "as_numpy")


def problem() -> str | None:
  """What is wrong with the tensorflow_datasets that is installed.

  With the wrong protobuf or tensorflow-metadata, it can be imported and be
  empty: it only logs what went wrong.

  Returns:
    a phrase to put behind its name; None where it has what is used.
  """
  absl_logger = logging.getLogger("absl")
  logged = _LoggedErrors()
  absl_logger.addFilter(logged)
  try:
    package = importlib.import_module(NAME)
    for name in _USED:
      getattr(package, name)
  except AttributeError as error:
    reason = logged.errors[0] if logged.errors else _one_line(error)
    return f"cannot be used ({reason})"
  except Exception as error:  # Mismatched protobufs break it in many ways.
    return f"cannot be imported ({_one_line(error)})"
  finally:
    absl_logger.removeFilter(logged)
  return None


def _one_line(error):
  return f"{type(error).__name__}: {' '.join(str(error).split())}"


class _LoggedErrors(logging.Filter):
  """Keeps errors, with their tracebacks, off the screen.

  Attributes:
    errors: a line for each.
  """

  def __init__(self):
    super().__init__()
    self.errors = []

  def filter(self, record):
    if not record.exc_info:
      return True
    self.errors.append(_one_line(record.exc_info[1]))
    return False


class AbsentDatasets(stand_in.StandIn):
  """Has `as_numpy`, and says why it has nothing else."""

  def __init__(self, problem: str):
    """Makes the module.

    Args:
      problem: what `problem` returned.
    """
    super().__init__(NAME, (
        f"{NAME} {problem}. To use one of its data sets, `pip install "
        "tensorflow-datasets`; with TensorFlow 2.12 or 2.15, `pip install "
        "tensorflow-datasets==4.9.10 tensorflow-metadata==1.16.1`."))

  def load(self, *unused_args, **unused_kwargs):
    raise ImportError(self.message)

  builder = load

  def as_numpy(self, dataset):
    return tf.nest.map_structure(_as_numpy, dataset)


def _as_numpy(value):
  """NumPy values of a tf.data.Dataset (as an iterable) or of a tensor."""
  if hasattr(value, "element_spec"):
    return _NumpyDataset(value)
  if hasattr(value, "numpy"):
    return value.numpy()
  with _graph_session() as session:
    return session.run(value)


class _NumpyDataset:
  """Iterates over a data set as often as asked, eagerly or in a TF1 graph."""

  def __init__(self, dataset):
    self._dataset = dataset

  def __iter__(self):
    if tf.executing_eagerly():
      return iter(self._dataset.as_numpy_iterator())
    return self._iterate_in_graph()

  def _iterate_in_graph(self):
    iterator = tf.compat.v1.data.make_initializable_iterator(self._dataset)
    element = iterator.get_next()
    with _graph_session() as session:
      session.run([iterator.initializer, tf.compat.v1.tables_initializer()])
      while True:
        try:
          yield session.run(element)
        except tf.errors.OutOfRangeError:
          return


def _graph_session():
  """A session that leaves accelerators to the training program."""
  return tf.compat.v1.Session(
      config=tf.compat.v1.ConfigProto(device_count={"GPU": 0}))
