"""Runs mtf code on a placement mesh with given weights, and differentiates it.
"""

import dataclasses

import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import simd

CANONICAL_LAYOUT = (
    "outer_batch:outer,batch:batch,expert_x:batch,expert_y:outer")


def mesh_impl(rows=1, columns=1, layout=CANONICAL_LAYOUT):
  """A placement mesh of outer x batch slices, all on the one CPU."""
  shape = mtf.convert_to_shape([("outer", rows), ("batch", columns)])
  return mtf.placement_mesh_impl.PlacementMeshImpl(
      shape, mtf.convert_to_layout_rules(layout), [""] * shape.size)


def variable_dtype(dtype=tf.float32):
  """Variables in float32, activations in the given type."""
  return mtf.VariableDType(tf.float32, tf.float32, dtype)


def random_weights(name, shape):
  """Normal values for a variable, the same ones for the same name."""
  return np.random.default_rng(list(name.encode())).normal(size=shape)


def numbered_experts(x, y):
  """Experts that return their own number, one-hot, whatever their input.

  What comes back to a token are then the shares of its experts.

  Args:
    x: an integer, the groups of experts.
    y: an integer, the experts in each.

  Returns:
    a function with the signature of `experts.feed_forward`, for outputs of
    depth x * y
  """
  numbers = np.eye(x * y).reshape([x, y, x * y]).transpose([1, 0, 2])

  def experts(inputs, output_dim, expert_dims, *unused_args):
    table = mtf.import_fully_replicated(
        inputs.mesh, tf.constant(numbers, inputs.dtype),
        mtf.Shape([*expert_dims, output_dim]), "numbers")
    return table + mtf.zeros(
        inputs.mesh, mtf.Shape([*inputs.shape.dims[:-1], output_dim]),
        inputs.dtype)

  return experts


def evaluate(build, arrays, weights, impl=None, dtype=tf.float32):
  """Builds mtf code, lowers it and runs it.

  Args:
    build: a function from a dict of Tensors to a nest of Tensors.
    arrays: the inputs, by name: pairs of an array and its Dimensions.
    weights: a function from a variable's name and shape to its value.
    impl: a mesh implementation, by default of one slice.
    dtype: the type of the inputs.

  Returns:
    the nest, of float32 arrays
  """
  with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    built = build({
        name: mtf.cast(mtf.import_fully_replicated(
            mesh, tf.constant(array, tf.float32), mtf.Shape(dims), name), dtype)
        for name, (array, dims) in arrays.items()})
    lowering = mtf.Lowering(
        graph, {mesh: impl or mesh_impl()}, autostack=False)
    fetches = tf.nest.map_structure(
        lambda t: tf.cast(lowering.export_to_tf_tensor(t), tf.float32), built)
    with tf.Session(config=graphs_as_built()) as session:
      # All in one run: each other one would prune the graph anew.
      variables = tf.global_variables()
      session.run([v.initializer for v in variables], {
          v.initial_value: weights(v.op.name, v.shape.as_list())
          for v in variables})
      session.run(lowering.copy_masters_to_slices())
      return session.run(fetches)


def summaries(graph):
  """The Tensors that an mtf graph records, by name."""
  return {op.name: op.outputs[0] for op in graph.operations
          if isinstance(op, mtf.ScalarSummaryOperation)}


@dataclasses.dataclass(frozen=True)
class Result:
  """What one layer computed.

  Attributes:
    output: [..., n].
    loss: scalar.
    input_gradient: shaped as the inputs.
    gradients: each variable's gradient, by its name in the layer.
    variables: each variable's (dimension, size) pairs, by its name.
  """

  output: np.ndarray
  loss: np.ndarray
  input_gradient: np.ndarray
  gradients: dict[str, np.ndarray]
  variables: dict[str, tuple]


def run_layers(layers, arrays, impl, weights, dtype=tf.float32, seed=0):
  """Runs layers side by side, with the same weights, and differentiates them.

  Args:
    layers: functions from a dict of Tensors to (outputs, loss), by name.
    arrays: the inputs, as for `evaluate`. The one called "inputs" is
      differentiated.
    impl: a mesh implementation.
    weights: a function from a variable's name in its layer, and its shape, to
      its value.
    dtype: the type of the activations.
    seed: of the direction in which outputs are differentiated.

  Returns:
    a `Result` for each layer, by name
  """
  variables = {}

  def build(tensors):
    values = {}
    for scope, layer in layers.items():
      with tf.variable_scope(scope):
        values[scope], variables[scope] = _differentiated(
            layer, scope, tensors, seed)
    return values

  values = evaluate(
      build, arrays,
      lambda name, shape: weights(name.partition("/")[2], shape), impl, dtype)
  return {scope: Result(variables=variables[scope], **values[scope])
          for scope in layers}


def output_direction(seed, shape):
  """The direction in which outputs are differentiated."""
  return np.random.default_rng(seed).normal(size=shape)


def _differentiated(layer, scope, tensors, seed):
  """(the Tensors of a Result by name, the shapes of the layer's variables)."""
  outputs, loss = layer(tensors)
  direction = mtf.import_fully_replicated(
      outputs.mesh,
      tf.constant(output_direction(seed, outputs.shape.to_integer_list),
                  tf.float32),
      outputs.shape, "direction")
  objective = (mtf.reduce_sum(mtf.to_float(outputs) * direction)
               + mtf.to_float(loss))
  variables = {v.name[len(scope) + 1:]: v
               for v in outputs.graph.trainable_variables
               if v.name.startswith(scope + "/")}
  input_gradient, *gradients = mtf.gradients(
      [objective],
      [tensors["inputs"]] + [v.outputs[0] for v in variables.values()])
  values = {
      "output": outputs,
      "loss": loss,
      "input_gradient": input_gradient,
      "gradients": dict(zip(variables, gradients))}
  shapes = {name: tuple((d.name, d.size) for d in v.shape.dims)
            for name, v in variables.items()}
  return values, shapes


def communication(layer, tokens_shape, mesh_shape, layout, with_inputs=True):
  """What communicates in a training step of a layer.

  Counted in the program of one core, which is built much more quickly than
  those of all slices of a placement mesh.

  Args:
    layer: a function from Tensors "inputs" and "ones", as large without the
      last dimension, to (outputs, loss).
    tokens_shape: the shape of the inputs, dimensions.
    mesh_shape: an input to mtf.convert_to_shape.
    layout: an input to mtf.convert_to_layout_rules.
    with_inputs: whether the inputs are differentiated, too.

  Returns:
    pairs of a kind of operation, such as "alltoall", and its elements on all
    cores, in the order in which they are lowered
  """
  def model(tensors):
    inputs = tensors["inputs"]
    outputs, loss = layer({**tensors, "ones": mtf.ones(
        inputs.mesh, mtf.Shape(inputs.shape.dims[:-1]))})
    gradients = mtf.gradients(
        [mtf.reduce_sum(mtf.square(outputs)) + loss],
        [v.outputs[0] for v in outputs.graph.trainable_variables]
        + [inputs] * with_inputs)
    # Sums over cores wait until they are used: exported, they are.
    return {f"gradient_{i}": g for i, g in enumerate(gradients)}, []

  program = simd.build(model, mesh_shape, layout,
                       {"inputs": (tf.float32, mtf.Shape(tokens_shape))})
  counted = [(name.split("/")[0], value) for name, value in program.counters]
  return [(kind, value) for kind, value in counted if kind.startswith("all")]


def graphs_as_built():
  """A session config that runs a graph as it is.

  Which is quicker for one that is used only once; and TensorFlow's optimizer
  may add up in another order, by the names of operations.
  """
  config = tf.ConfigProto()
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  return config
