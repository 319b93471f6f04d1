"""The variables of a run as its checkpoints have them, without a mesh."""

from collections.abc import Mapping
import concurrent.futures

import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.run import sessions

NAME = "model.ckpt"


class Masters:
  """Writes checkpoints as an Estimator does, beside the steps.

  A checkpoint is written in a thread, in which what goes wrong comes up when
  the next one is written, or in `wait`. A context manager.
  """

  def __init__(self, values: Mapping[str, np.ndarray], model_dir: str,
               keep_max: int | None):
    """Prepares it.

    Args:
      values: an array for each variable, by name, of its shape and type.
      model_dir: where to write; checkpoints that TensorFlow has on account
        there are counted.
      keep_max: how many checkpoints to keep; None for all.
    """
    self._path = f"{model_dir}/{NAME}"
    graph = tf.Graph()
    with graph.as_default():
      self._given = {
          name: tf.placeholder(value.dtype, value.shape)
          for name, value in values.items()}
      variables = {
          name: tf.get_variable(name, given.shape, given.dtype)
          for name, given in self._given.items()}
      self._assign = tf.group(*[
          tf.assign(variable, self._given[name])
          for name, variable in variables.items()])
      self._saver = tf.train.Saver(
          variables, sharded=True, max_to_keep=keep_max,
          keep_checkpoint_every_n_hours=2, save_relative_paths=True)
    self._session = sessions.on_cpu(graph)
    state = tf.train.get_checkpoint_state(model_dir)
    if state is not None:
      self._saver.recover_last_checkpoints(state.all_model_checkpoint_paths)
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._writing = None

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    self._thread.shutdown()
    self._session.close()

  def save(self, step: int, values: Mapping[str, np.ndarray]):
    """Begins to write a checkpoint, when the one before is written.

    Args:
      step: its number.
      values: the whole arrays of all variables, by name. They are not to be
        changed any more.
    """
    self.wait()
    self._writing = self._thread.submit(self._write, step, values)

  def wait(self):
    """Waits until everything is written."""
    if self._writing is not None:
      writing, self._writing = self._writing, None
      writing.result()

  def _write(self, step, values):
    with self._session.graph.as_default():
      self._session.run(self._assign, {
          placeholder: np.asarray(
              values[name], placeholder.dtype.as_numpy_dtype)
          for name, placeholder in self._given.items()})
      self._saver.save(
          self._session, self._path, global_step=step, write_meta_graph=False)
