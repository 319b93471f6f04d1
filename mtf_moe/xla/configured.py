"""The training step of the configured model as a program for XLA devices."""

from collections.abc import Iterable, Mapping

import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import simd
from mtf_moe.run import optimization
from mtf_moe.run import sessions
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.simd import graphs

LOSS = "loss"


def program(configured: ConfiguredModel, seed: int,
            features: Iterable[str] | None = None, mode: str = "train"
            ) -> simd.Program:
  """Builds forward, backward and update, with the loop over microbatches.

  Args:
    configured: the `ConfiguredModel`; run.optimizer is needed.
    seed: an integer, for initial values and for all that is drawn in a step.
    features: what the data has, such as "targets_segmentation"; None for what
      the model needs.
    mode: "train", or "eval" for the loss alone.

  Returns:
    a simd.Program. Its inputs are int32 [<batch dims>, length], the features.
    Its outputs are the loss, under the name `LOSS`, and what the mixtures
    record, by tag, where there is no loop over microbatches.
  """
  *_, batch_dim = configured.batch_dims
  number = configured.num_microbatches

  def loss_of(features):
    return {LOSS: configured.loss_of(features, mode)}

  def model_fn(features):
    if mode == "eval":
      return loss_of(features), []
    graph = features["targets"].graph
    if number > 1:
      gradients, outputs = mtf.serialize_training_step(
          features, loss_of, batch_dim, number)
    else:
      outputs = loss_of(features) | _records(graph)
      gradients = mtf.gradients(
          [outputs[LOSS]], [v.outputs[0] for v in graph.trainable_variables])
    rate = optimization.learning_rate(
        configured.run.get("learning_rate_schedule"), configured.total_steps,
        tf.train.get_or_create_global_step())
    return outputs, optimization.update(
        configured.run, rate, gradients, graph.trainable_variables)

  if features is None:
    features = configured.feature_dims
  return simd.build(
      model_fn, configured.mesh_shape, configured.layout,
      {feature: (tf.int32, mtf.Shape([
          *configured.batch_dims, configured.length_dim(feature)]))
       for feature in features}, seed=seed)


def _records(graph):
  """What layers record, by tag."""
  return {op.name: op.outputs[0] for op in graph.operations
          if isinstance(op, mtf.ScalarSummaryOperation)}


def initial_values(built: simd.Program) -> Mapping[str, np.ndarray]:
  """First values of all variables of a program, by name: its seed's."""
  values = {name: variable.value for name, variable in built.variables.items()}
  # What cores compute has no kernels here.
  around_cores = tf.graph_util.extract_sub_graph(
      built.graph_def, sorted({built.initializer, *(
          graphs.node_name(value) for value in values.values())}))
  with tf.Graph().as_default(), sessions.on_cpu() as session:
    tf.import_graph_def(around_cores, name="")
    session.run(built.initializer)
    return session.run(values)


def values_of_checkpoint(built: simd.Program, path: str
                         ) -> Mapping[str, np.ndarray]:
  """The values that a checkpoint has for the variables of a program.

  Args:
    built: the program.
    path: a string, a checkpoint or a directory with one.

  Returns:
    arrays, by name

  Raises:
    ValueError: if there is no checkpoint, or it lacks a variable, or has one of
      another shape.
  """
  try:
    reader = tf.train.load_checkpoint(path)
  except (tf.errors.OpError, ValueError) as error:
    raise ValueError(
        f"--checkpoint={path} has no checkpoint ({error}): name a model "
        "directory, or the checkpoint without its ending.") from None
  shapes = reader.get_variable_to_shape_map()
  for name, variable in built.variables.items():
    if shapes.get(name) != list(variable.shape):
      raise ValueError(
          f"--checkpoint={path} is of another model: {name!r} has the shape "
          f"{list(variable.shape)} here, and {shapes.get(name)} there: give "
          "the configuration that it was trained with.")
  return {name: reader.get_tensor(name) for name in built.variables}
