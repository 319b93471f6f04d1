"""A training step of the configured model, lowered for one core."""

import dataclasses

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe.plan import one_core
from mtf_moe.run import optimization
from mtf_moe.run.configured_model import ConfiguredModel

# What the collectives and counters of the two parts of a step are marked with.
MODEL, OPTIMIZER = "model", "optimizer"


@dataclasses.dataclass(frozen=True)
class LoweredStep:
  """What costs are counted on.

  Attributes:
    configured: the `ConfiguredModel`.
    graph: the mtf.Graph.
    mesh_impl: the `OneCoreMeshImpl`, with the collectives.
    model_variables: the variables of the model.
    slot_variables: those of the optimizer.
    gradients: of the loss, for the variables that are trained.
    counters: pairs (name, number over all cores), by the part of the step:
      `MODEL` is forward and backward of one microbatch, `OPTIMIZER` the rest,
      with the all-reduces of gradients, which mtf puts off until then.
  """

  configured: ConfiguredModel
  graph: mtf.Graph
  mesh_impl: one_core.OneCoreMeshImpl
  model_variables: list[mtf.Variable]
  slot_variables: list[mtf.Variable]
  gradients: list[mtf.Tensor]
  counters: dict[str, list[tuple[str, int]]]


def lower(configured: ConfiguredModel) -> LoweredStep:
  """Builds and lowers forward, backward and update of one microbatch.

  Args:
    configured: the `ConfiguredModel`. `run.optimizer` is needed.

  Returns:
    a `LoweredStep`
  """
  with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "plan")
    one_core.Mark(mesh, MODEL)
    loss = configured.loss(mesh, "train")
    model_variables = list(graph.all_variables)
    gradients = mtf.gradients(
        [loss], [v.outputs[0] for v in graph.trainable_variables])
    one_core.Mark(mesh, OPTIMIZER)
    optimization.apply(
        configured.run["optimizer"], 1.0, gradients, graph.trainable_variables)
    # Ahead of the lowering, which may join variables to larger ones.
    slot_variables = [
        v for v in graph.all_variables if v not in set(model_variables)]
    impl = one_core.OneCoreMeshImpl(configured.mesh_shape, configured.layout)
    lowering = mtf.Lowering(
        graph, {mesh: impl}, autostack=configured.run.get("autostack", True))
  return LoweredStep(configured, graph, impl, model_variables, slot_variables,
                     gradients, _by_part(lowering.counters))


def _by_part(counters):
  """Splits the counters at the marks."""
  parts = {}
  for name, value in counters:
    if name.startswith(one_core.MARK):
      parts[name.removeprefix(one_core.MARK)] = current = []
    elif parts:
      current.append((name, value))
  return parts
