"""What mixtures record, written to event files by any training with Estimators.

On TensorFlow's TPUs there are other means, which mtf has:
tpu_estimator_model_fn.tpu_summaries = True.
"""

from collections.abc import Mapping
import contextlib
import functools
import inspect
import logging
import weakref

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from tensorflow_estimator.python.estimator import estimator as estimator_lib

from mtf_moe.run import arithmetic

_logger = logging.getLogger("mtf_moe")


# The names of tensors by tag, of each graph.
_collected = weakref.WeakKeyDictionary()


def collected_scalars():
  """The tensors that mtf.scalar_summary collected, by tag, but for a TPU's.

  They are taken out of the graph's collection: wherever TensorFlow saves a
  graph, it would try to save the pairs, and warn.
  """
  graph = tf.get_default_graph()
  names = _collected.setdefault(graph, {})
  names.update({
      tag: tensor.name for tag, tensor in tf.get_collection(
          mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY)
      if "_tpu_replicate" not in tensor.op.node_def.attr})
  mtf.utils.remove_summaries()
  return {tag: graph.get_tensor_by_name(name) for tag, name in names.items()}


class Recorder:
  """Writes what was recorded of some steps to the event files of a directory.

  Of the first one, and of one more after so many each time: the steps in which
  an Estimator writes the loss there. Without a directory, nothing is written.
  """

  def __init__(self, model_dir: str | None, every_steps: int):
    self._model_dir = model_dir
    self._every_steps = every_steps
    self._last = None

  def is_due(self, step: int) -> bool:
    """Whether to record a step that is about to be run; asked once for each."""
    if self._last is not None and step < self._last + self._every_steps:
      return False
    self._last = step
    return True

  def write(self, step: int, values: Mapping[str, float]):
    """Writes values, by tag."""
    if self._model_dir is None:
      return
    tf.summary.FileWriterCache.get(self._model_dir).add_summary(
        tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value)
                          for tag, value in values.items()]), step)


class RecordHook(tf.train.SessionRunHook):
  """Has a `Recorder` write what `mtf.scalar_summary` collected."""

  def __init__(self, recorder: Recorder):
    self._recorder = recorder

  def begin(self):
    self._collected = collected_scalars()
    self._global_step = tf.train.get_global_step()

  def after_create_session(self, session, coord):
    self._next_step = int(session.run(self._global_step)) + 1

  def before_run(self, run_context):
    due = self._recorder.is_due(self._next_step)
    return tf.train.SessionRunArgs(self._collected if due else {})

  def after_run(self, run_context, run_values):
    if not self._collected:
      return
    # Nothing orders the reading of the step and its increase: once more, now
    # that the step is over.
    step = int(run_context.session.run(self._global_step))
    self._next_step = step + 1
    if run_values.results:
      self._recorder.write(step, run_values.results)


class ArithmeticHook(tf.train.SessionRunHook):
  """Warns where a run computes in bfloat16, and TensorFlow does so wrong."""

  def begin(self):
    self._looks = arithmetic.multiplies_bfloat16(tf.get_default_graph())

  def after_create_session(self, session, coord):
    # Not before: the first session of a process settles how many threads all
    # have, and that is to be the program's.
    if self._looks and arithmetic.is_wrong():
      _logger.warning("%s", arithmetic.ADVICE)


@contextlib.contextmanager
def every_estimator():
  """Lets all Estimators train with records, and with resource variables.

  Without the latter, a backward pass on a CPU may read weights that the
  optimizer has already changed in the same step: nothing orders the two.
  """
  estimator = estimator_lib.Estimator
  changed = {name: _with_hooks(name, getattr(estimator, name))
             for name in ("train", "evaluate", "predict")}
  changed["_call_model_fn"] = _taking_scalars(estimator._call_model_fn)
  originals = {name: getattr(estimator, name) for name in changed}
  for name, method in changed.items():
    setattr(estimator, name, method)
  try:
    yield
  finally:
    for name, method in originals.items():
      setattr(estimator, name, method)


def _taking_scalars(call_model_fn):
  """Takes what was collected before any hook writes the graph to a file."""

  @functools.wraps(call_model_fn)
  def method(*args, **kwargs):
    spec = call_model_fn(*args, **kwargs)
    collected_scalars()
    return spec

  return method


def _with_hooks(name, original):
  """A method of Estimator that runs with hooks of ours."""
  signature = inspect.signature(original)

  @functools.wraps(original)
  def method(self, *args, **kwargs):
    call = signature.bind(self, *args, **kwargs)
    hooks = [*(call.arguments.get("hooks") or ()), ArithmeticHook()]
    if name == "train" and self.config.is_chief:
      hooks.append(RecordHook(Recorder(
          self.model_dir, self.config.save_summary_steps or 100)))
    call.arguments["hooks"] = hooks
    with _resource_variables() if name == "train" else contextlib.nullcontext():
      return original(*call.args, **call.kwargs)

  return method


@contextlib.contextmanager
def _resource_variables():
  before = tf.resource_variables_enabled()
  tf.enable_resource_variables()
  try:
    yield
  finally:
    if not before:
      tf.disable_resource_variables()
