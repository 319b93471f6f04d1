"""Checks of a run before TensorFlow does any work for it.

A mistake in a configuration should cost seconds and name the gin parameter; in
the middle of a TPUEstimator it costs minutes and names a tensor.
"""

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe import levels


def check_run(model_dir):
  """Checks what gin has configured for mesh_tensorflow's `run`.

  The model is built as an mtf graph, which needs no session, so the layers'
  own checks are made, and its variables are compared with those of the
  checkpoint to resume from.

  Args:
    model_dir: a string, the directory of the run.

  Raises:
    ValueError: if the batch does not fit the mesh, the data cannot be read, a
      layer refuses its parameters, or the checkpoint has other shapes.
  """
  variables = model_variables()
  if variables:
    _check_checkpoint(model_dir, variables)


def model_variables():
  """Builds the model that gin has configured, and checks it on the way.

  Returns:
    the shapes of its variables, a dict from name to a list of integers; empty
    where the lengths of sequences, and with them the model, depend on the data
    of an evaluation.

  Raises:
    ValueError: as `check_run`, but for the checkpoint.
  """
  run = gin.get_bindings("utils.run")
  lengths = run.get("sequence_length")
  if lengths is None:
    return {}
  if isinstance(lengths, int):
    lengths = {"inputs": lengths, "targets": lengths}
  mesh_shape = mtf.convert_to_shape(run["mesh_shape"])
  layout = mtf.convert_to_layout_rules(run["layout_rules"])
  batch_dims = _batch_dims(run, lengths, mesh_shape, layout)
  _check_data(run, lengths)
  return _variables_of_model(run, lengths, batch_dims, mesh_shape, layout)


def _check_data(run, lengths):
  """Makes the data set of a mode that has one, and throws it away."""
  mode = run.get("mode", "train")
  dataset_fn = run.get("train_dataset_fn")
  if mode in ("train", "perplexity_eval") and dataset_fn is not None:
    with tf.Graph().as_default():
      dataset_fn(
          sequence_length=lengths, vocabulary=run.get("vocabulary"),
          dataset_split=run.get("dataset_split", "train"))


def _batch_dims(run, lengths, mesh_shape, layout):
  """The batch Dimensions that the model will see."""
  batch_size = run.get("batch_size", ("tokens_per_replica", 2048))
  if not isinstance(batch_size, int):
    batch_size = utils.compute_batch_size(
        lengths, mesh_shape, layout, batch_size)
  if batch_size <= 0:
    raise ValueError(
        f"run.batch_size = {run.get('batch_size')!r} makes a batch of "
        f"{batch_size} sequences: set it to a positive number.")
  outer = gin.get_bindings("tpu_estimator_model_fn").get("outer_batch_size", 1)
  split = levels.MeshSplit(layout, mesh_shape)
  has_outer_batch = run.get("mode", "train") in ("train", "perplexity_eval")
  if not (has_outer_batch and outer):
    dims = [mtf.Dimension("batch", batch_size)]
  else:
    if batch_size % outer:
      raise ValueError(
          f"run.batch_size = {batch_size} sequences cannot be cut into "
          f"tpu_estimator_model_fn.outer_batch_size = {outer} parts: make the "
          f"batch a multiple of {outer}, or change outer_batch_size.")
    dims = [mtf.Dimension(levels.OUTER_BATCH, outer),
            mtf.Dimension("batch", batch_size // outer)]
    split.check_divides(dims[0], "tpu_estimator_model_fn.outer_batch_size")
  split.check_divides(
      dims[-1],
      "run.batch_size (over tpu_estimator_model_fn.outer_batch_size)")
  return dims


def _variables_of_model(run, lengths, batch_dims, mesh_shape, layout):
  """The model's variables, as a dict from name to a list of sizes."""
  vocabulary = run.get("vocabulary")
  model_type = run.get("model_type", "bitransformer")
  model = utils.build_model(
      model_type=model_type,
      input_vocab_size=utils.inputs_vocabulary(vocabulary).vocab_size,
      output_vocab_size=utils.targets_vocabulary(vocabulary).vocab_size,
      mesh_shape=mesh_shape, layout_rules=layout)
  with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "preflight")

    def ids(feature):
      return mtf.zeros(
          mesh, batch_dims + [mtf.Dimension("length", lengths[feature])],
          tf.int32)

    one_stack = model_type in ("lm", "delimited_lm")
    model.call_simple(
        inputs=(transformer.autoregressive_inputs(ids("targets")) if one_stack
                else ids("inputs")),
        targets=ids("targets"),
        compute_loss=True,
        mode="train" if run.get("mode", "train") == "train" else "eval",
        variable_dtype=utils.get_variable_dtype())
    return {variable.name: variable.shape.to_integer_list
            for variable in graph.all_variables}


def _check_checkpoint(model_dir, variables):
  """Raises if the newest checkpoint has variables of other shapes."""
  path = tf.train.latest_checkpoint(model_dir)
  if path is None:
    return
  saved = tf.train.load_checkpoint(path).get_variable_to_shape_map()
  for name, shape in sorted(variables.items()):
    if saved.get(name) != shape:
      there = (f"has the shape {saved[name]}" if name in saved
               else "does not exist")
      raise ValueError(
          f"--model_dir={model_dir} holds a checkpoint of another model: "
          f"variable {name} has the shape {shape} in this configuration, and "
          f"{there} in {path}. Choose a new --model_dir, or go back to the "
          "configuration in its operative_config.gin.")
