"""What the benchmark compares: layers, each in a graph and session of its own.
"""

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
import numpy as np
import tensorflow.compat.v1 as tf

from benchmarking import settings as settings_lib
import mtf_moe
from mtf_moe import experts

MODES = ("forward", "training")


def _variable_dtype(inputs):
  """Weights are computed with in the type of the inputs."""
  return mtf.VariableDType(tf.float32, inputs.dtype, inputs.dtype)


def _mixture(function, setting, inputs, dispatch="einsum"):
  return function(
      inputs, setting.model_dim, setting.hparams(dispatch), True,
      _variable_dtype(inputs), layout=settings_lib.LAYOUT,
      mesh_shape=setting.mesh_shape,
      # Without it, the reference does not train.
      nonpadding=mtf.ones(
          inputs.mesh, mtf.Shape(setting.token_dims), dtype=inputs.dtype))


def _feed_forward(setting, inputs, expert_dims, hidden):
  outputs = experts.feed_forward(
      inputs, setting.model_dim, expert_dims,
      mtf_moe.MoeHparams(moe_hidden_size=hidden), True,
      _variable_dtype(inputs))
  return outputs, None


# Functions of a Setting and the inputs, a Tensor, which return the outputs, a
# Tensor, and the loss, a scalar or None.
BUILDERS = {
    "reference": lambda setting, inputs: _mixture(
        moe.transformer_moe_layer_v2, setting, inputs),
    "einsum": lambda setting, inputs: _mixture(
        mtf_moe.transformer_moe_layer_v2, setting, inputs, "einsum"),
    "index": lambda setting, inputs: _mixture(
        mtf_moe.transformer_moe_layer_v2, setting, inputs, "index"),
    "bound": lambda setting, inputs: _feed_forward(
        setting, inputs, setting.expert_input_dims[:2], setting.hidden),
    "dense": lambda setting, inputs: _feed_forward(
        setting, inputs, [], setting.dense_hidden),
}


class Contender:
  """A step of a layer, forward or training, ready to run.

  Training is the outputs and the loss, the gradients of both by the inputs and
  all variables, and an update of the variables. Outputs are differentiated in
  a random direction, as if a model followed.
  """

  def __init__(self, name, setting, mode):
    """Builds the graph.

    Args:
      name: a key of BUILDERS.
      setting: a `Setting`.
      mode: one of MODES.
    """
    shape = setting.mesh_shape
    impl = mtf.placement_mesh_impl.PlacementMeshImpl(
        shape, mtf.convert_to_layout_rules(settings_lib.LAYOUT),
        [""] * shape.size)
    with tf.Graph().as_default():
      mtf_graph = mtf.Graph()
      mesh = mtf.Mesh(mtf_graph, "mesh")
      inputs = _variable(
          mesh, "inputs", setting.expert_input_dims if name == "bound"
          else [*setting.token_dims, setting.model_dim])
      results, updates = _step(
          inputs, *BUILDERS[name](setting, inputs), mode)
      lowering = mtf.Lowering(mtf_graph, {mesh: impl}, autostack=False)
      # The results come last, and are the only ones to return a value.
      self._fetches = [
          [lowering.lowered_operation(op) for op in updates],
          [_first_elements(lowering, x) for x in results]]
      self._session = _session_with_values(lowering)

  def step(self):
    """Runs it once.

    Returns:
      lists of one element from each slice of the mesh: that of the outputs, of
      the loss if there is one, and in training of the gradient by the inputs
    """
    return self._session.run(self._fetches)[-1]

  def trace(self):
    """Runs it once, and returns the StepStats that TensorFlow took."""
    metadata = tf.RunMetadata()
    self._session.run(
        self._fetches, run_metadata=metadata,
        options=tf.RunOptions(trace_level=tf.RunOptions.SOFTWARE_TRACE))
    return metadata.step_stats

  def close(self):
    self._session.close()


def _variable(mesh, name, dims):
  """A Tensor from a variable, which no rewriting of the graph can fold."""
  shape = mtf.Shape(dims)
  variable = tf.get_variable(
      name, shape.to_integer_list, initializer=tf.zeros_initializer(),
      trainable=False)
  return mtf.import_tf_tensor(mesh, variable, shape)


def _step(inputs, outputs, loss, mode):
  """(the Tensors that a step computes, the mtf Operations that it runs)."""
  results = [outputs] + ([] if loss is None else [loss])
  if mode == "forward":
    return results, []
  directions = [_variable(inputs.mesh, "direction", outputs.shape.dims)]
  if loss is not None:
    directions.append(mtf.ones(loss.mesh, loss.shape, loss.dtype))
  variables = list(inputs.graph.trainable_variables)
  input_gradient, *gradients = mtf.gradients(
      results, [inputs] + [v.outputs[0] for v in variables], directions)
  updates = mtf.optimize.SgdOptimizer(settings_lib.LEARNING_RATE).apply_grads(
      gradients, variables)
  return [*results, input_gradient], updates


def _first_elements(lowering, x):
  """One of each slice: to fetch all would take time, and none is pruned."""
  slices = lowering.tensors[x].to_laid_out_tensor().all_slices
  return [piece[(0,) * piece.shape.rank] if piece.shape.rank else piece
          for piece in slices]


def _session_with_values(lowering):
  """A session in which all variables have their values."""
  copy_to_slices = lowering.copy_masters_to_slices()
  # On a GPU, CPU time would say nothing.
  session = tf.Session(config=tf.ConfigProto(device_count={"GPU": 0}))
  session.run(tf.global_variables_initializer())
  for variable in tf.global_variables():
    variable.load(
        _values(variable.op.name, variable.shape.as_list()), session)
  session.run(copy_to_slices)
  return session


def _values(name, shape):
  """Normal values for a variable, the same for the same name in all graphs."""
  values = np.random.default_rng(list(name.encode())).standard_normal(
      shape, np.float32)
  # The rows of a kernel are what is summed over.
  return values * shape[-2] ** -0.5 if name.endswith("kernel") else values
