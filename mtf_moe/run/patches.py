"""Changes of mesh_tensorflow's behaviour, for as long as a run lasts.

Its `run` offers no way to do these things. Each is a context that puts back
what was there.
"""

from collections.abc import Callable
import contextlib
import sys
from typing import Any

from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe import transformer_layers


@contextlib.contextmanager
def silent_print_op():
  """Makes `tf.Print` an identity.

  mesh_tensorflow prints the loss of every training step with it, as a raw line
  on standard error.
  """
  def identity(input_, *unused_args, **unused_kwargs):
    return input_

  with _replaced(tf, "Print", identity):
    yield


@contextlib.contextmanager
def our_layer_of_one_level():
  """Has mesh_tensorflow's own layers use MoE1D of this package.

  Its ExpertsSelfAttention makes one by the class, and in gin that class has the
  same name, and so the same parameters, of which it knows only its own.
  """
  module = sys.modules["mesh_tensorflow.transformer.moe"]
  with _replaced(module, "MoE1D", transformer_layers.MoE1D):
    yield


@contextlib.contextmanager
def graphs_as_built():
  """Runs graphs on a CPU as they are built.

  The placement mesh has thousands of small operations for each layer, and
  optimizing them takes longer than it saves: some 20 seconds before the first
  step of a small model. mesh_tensorflow turns the optimizer off on TPUs only,
  and takes no session configuration.
  """
  def skip_optimizer(estimator):
    options = estimator._session_config.graph_options.rewrite_options
    options.disable_meta_optimizer = True
    return estimator

  with changed_estimators(skip_optimizer):
    yield


@contextlib.contextmanager
def changed_estimators(change: Callable[[Any], Any]):
  """Passes the estimators that mesh_tensorflow makes through `change`.

  Its `run` makes one for every mode, and takes hooks for training only.

  Args:
    change: a function from an estimator to the one to use in its place.
  """
  get_estimator = utils.get_estimator

  def get_changed_estimator(**kwargs):
    return change(get_estimator(**kwargs))

  with _replaced(utils, "get_estimator", get_changed_estimator):
    yield


@contextlib.contextmanager
def beginning_from(path: str | None):
  """Makes the estimators of mesh_tensorflow begin from a checkpoint, or none.

  Floating-point numbers of another type than a variable's are rounded to that.

  Args:
    path: a string, in place of what run.init_checkpoint says.
  """
  get_estimator = utils.get_estimator
  init_from_checkpoint = tf.train.init_from_checkpoint

  def get_estimator_that_begins(**kwargs):
    return get_estimator(**{**kwargs, "init_checkpoint": path})

  def init_in_any_type(given, assignment_map):
    with _restored_in_any_type(given):
      init_from_checkpoint(given, assignment_map)

  with (_replaced(utils, "get_estimator", get_estimator_that_begins),
        _replaced(tf.train, "init_from_checkpoint", init_in_any_type)):
    yield


@contextlib.contextmanager
def _restored_in_any_type(path):
  """Lets operations restore tensors of a checkpoint in other types than theirs.

  TensorFlow refuses that, once the graph runs.
  """
  io_ops = sys.modules["tensorflow.python.ops.io_ops"]
  restore = io_ops.restore_v2
  there = tf.train.load_checkpoint(path).get_variable_to_dtype_map()

  def restore_and_cast(prefix, tensor_names, shape_and_slices, dtypes,
                       name=None):
    restored = restore(prefix, tensor_names, shape_and_slices,
                       [there[one] for one in tensor_names], name=name)
    return [tf.cast(tensor, dtype)
            for tensor, dtype in zip(restored, dtypes, strict=True)]

  with _replaced(io_ops, "restore_v2", restore_and_cast):
    yield


@contextlib.contextmanager
def usable_checkpoints(model_dir: str, find: Callable[[], list[str]]):
  """Has TensorFlow and mesh_tensorflow find the checkpoints that `find` finds.

  TensorFlow takes the newest, wherever it may be, from a file that whoever made
  the directory wrote.

  Args:
    model_dir: a string; other directories stay as they are.
    find: a function that returns the paths of checkpoints, oldest first.
  """
  latest_checkpoint = tf.train.latest_checkpoint
  get_checkpoint_iterator = utils.get_checkpoint_iterator

  def latest(checkpoint_dir, latest_filename=None):
    if checkpoint_dir != model_dir:
      return latest_checkpoint(checkpoint_dir, latest_filename)
    return (find() or [None])[-1]

  def get_usable(checkpoint_step, checkpoint_dir, **kwargs):
    found = get_checkpoint_iterator(checkpoint_step, checkpoint_dir, **kwargs)
    if checkpoint_step != "all" or checkpoint_dir != model_dir:
      return found
    return [path for path in found if path in find()]

  # Estimators look it up where it is defined.
  defined_in = sys.modules[latest_checkpoint.__module__]
  with (_replaced(tf.train, "latest_checkpoint", latest),
        _replaced(defined_in, "latest_checkpoint", latest),
        _replaced(utils, "get_checkpoint_iterator", get_usable)):
    yield


@contextlib.contextmanager
def _replaced(module, name, value):
  before = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, before)
