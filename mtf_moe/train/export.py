"""Models that are exported: they go where they are told, and need no Python."""

import gin
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe.run import gin_bindings
from mtf_moe.run import paths
from mtf_moe.text import vocabulary as vocabulary_lib

MODES = ("export_infer", "export_score", "export")
_EXAMPLE = 'such as run.export_path = "exported"'
# Operations that call the Python of the process that made the graph.
_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")


def check_path():
  """Checks where gin has configured to export to.

  Raises:
    ValueError: if run.export_path is not set, or cannot be used.
  """
  path = gin_bindings.bound("utils.run", "export_path")
  if not path or not isinstance(path, str):
    raise ValueError(
        f"run.export_path = {path!r} says nowhere to export to: set it to a "
        f"directory, {_EXAMPLE}. Every export is a new directory in it, named "
        "by the time.")
  usable = paths.usable(path, "run.export_path")
  if not paths.is_remote(usable):
    obstacle = paths.obstacle(usable)
    if obstacle is not None:
      raise ValueError(
          f"run.export_path = {path!r} cannot be made or written in "
          f"{obstacle}: set it to a directory of yours, {_EXAMPLE}.")
  with gin.unlock_config():
    gin.bind_parameter("utils.run.export_path", usable)


def check_vocabularies(vocabulary):
  """Sees that text is encoded and decoded by operations of TensorFlow.

  Others are exported as well, but only work in the process that made them.

  Args:
    vocabulary: a Vocabulary or a pair of them, as for mesh_tensorflow's `run`.

  Raises:
    ValueError: if one needs Python.
  """
  for of in (utils.inputs_vocabulary, utils.targets_vocabulary):
    used = of(vocabulary)
    name = type(used).__name__
    try:
      called = _called_by(used)
    except NotImplementedError as error:
      raise ValueError(
          f"run.vocabulary is a {name}, which has no operations to encode and "
          "decode text with, so it cannot be exported: use "
          "@mtf_moe.ByteVocabulary().") from error
    if not called.isdisjoint(_PYTHON):
      raise ValueError(
          f"run.vocabulary is a {name}, which encodes or decodes text by "
          "calling Python, so a model that is exported with it could not be "
          "served: use @mtf_moe.ByteVocabulary(), or a SentencePieceVocabulary "
          "that `python -m mtf_moe.text.vocabulary` made.")


def _called_by(vocabulary):
  """The types of the operations that encode and decode."""
  with tf.Graph().as_default() as graph, vocabulary_lib.as_operations():
    # As they are used: for data, and for a batch.
    tf.data.Dataset.from_tensors("a").map(vocabulary.encode_tf)
    vocabulary.decode_tf(tf.zeros([1, 1], tf.int32))
    built = graph.as_graph_def()
  return {node.op for nodes in (
      built.node, *(function.node_def for function in built.library.function))
          for node in nodes}
