"""Batches for a loop that runs no TensorFlow, read one ahead."""

from collections.abc import Callable
import concurrent.futures
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.run import sessions


class Batches:
  """The batches of a data set; a context manager.

  Attributes:
    features: the names of what a batch has.
  """

  def __init__(self, make_dataset: Callable[[], tf.data.Dataset], seed: int):
    """Prepares the data set.

    Args:
      make_dataset: a function that makes it; its examples are dicts.
      seed: an integer, of what it draws without a seed of its own.
    """
    graph = tf.Graph()
    with graph.as_default(), tf.device("/cpu:0"):
      tf.set_random_seed(seed)
      iterator = tf.data.make_initializable_iterator(make_dataset())
      self._next = iterator.get_next()
    self.features = tuple(self._next)
    self._session = sessions.on_cpu(graph)
    self._session.run(iterator.initializer)
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._future = None

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    self._thread.shutdown(cancel_futures=True)
    self._session.close()

  def next(self, prepare: Callable[[str, np.ndarray], Any]) -> dict[str, Any]:
    """The next batch.

    Args:
      prepare: a function of a name and an array, which is applied to everything
        in the batch, in the thread that reads: to take it to a device.

    Returns:
      a dict by name
    """
    future = self._future or self._thread.submit(self._read, prepare)
    self._future = self._thread.submit(self._read, prepare)
    return future.result()

  def _read(self, prepare):
    return {name: prepare(name, value)
            for name, value in self._session.run(self._next).items()}
