"""Transform: the network inside an expert.

Any callable with the signature of `feed_forward` can take its place, as
`experts` of `transformer_moe_layer` or as gin `MoE2D.experts`.
"""

import functools
import inspect

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import knobs
from mtf_moe.hparams import MoeHparams


def feed_forward(
    inputs, output_dim, expert_dims, hparams, train, variable_dtype):
  """One hidden layer, without biases, of its own for every expert.

  Args:
    inputs: a Tensor [<expert dims>, <batch dims>, input].
    output_dim: a mtf.Dimension.
    expert_dims: a list of the dimensions of `inputs` that number the experts,
      empty for the shared expert.
    hparams: what `MoeHparams.of` takes; its moe_hidden_size, moe_activation,
      moe_dropout_rate and moe_use_experts_attention are used.
    train: a boolean.
    variable_dtype: a mtf.VariableDType.

  Returns:
    a Tensor [<expert dims>, <batch dims>, output], or with
    hparams.moe_use_experts_attention a list of two, queries and keys

  Raises:
    ValueError: if the activation is not known.
  """
  hparams = MoeHparams.of(hparams)
  check_activation(hparams.moe_activation)
  # Tokens of the shared expert are split as inputs are, those of the others
  # are not: a layout may split the hidden layers of these over axes of those.
  hidden_dim = mtf.Dimension(
      "expert_hidden" if expert_dims else "shared_hidden",
      hparams.moe_hidden_size)
  hidden = _hidden_units(
      inputs, hidden_dim, expert_dims, hparams, variable_dtype)
  if hparams.moe_dropout_rate:
    hidden = mtf.dropout(hidden, train, rate=hparams.moe_dropout_rate)
  outputs = [
      _dense(hidden, output_dim, expert_dims, hparams, variable_dtype, name)
      for name in (("q_wo", "k_wo") if hparams.moe_use_experts_attention
                   else ("wo",))]
  return outputs if len(outputs) > 1 else outputs[0]


def _hidden_units(inputs, hidden_dim, expert_dims, hparams, variable_dtype):
  """The hidden layer; where there are several activations, their product."""
  activation = hparams.moe_activation
  activations = activation if isinstance(activation, list) else [activation]
  return functools.reduce(mtf.multiply, [
      _activated(
          _dense(inputs, hidden_dim, expert_dims, hparams, variable_dtype,
                 f"wi_{number}" if len(activations) > 1 else "wi"), one)
      for number, one in enumerate(activations)])


def _dense(inputs, output_dim, expert_dims, hparams, variable_dtype, name):
  """mtf.layers.dense without a bias, but for the order of its gradients.

  Args:
    inputs: a Tensor [<expert dims>, <batch dims>, input].
    output_dim: a Dimension.
    expert_dims: a list of Dimensions.
    hparams: a MoeHparams. With moe_dispatch = "einsum", whose results are the
      reference's to the last bit, gradients are mtf's.
    variable_dtype: a mtf.VariableDType.
    name: a string, the variable scope.

  Returns:
    a Tensor [<expert dims>, <batch dims>, output]
  """
  *dims, input_dim = inputs.shape.dims
  if output_dim == input_dim:  # Weights cannot have the same dimension twice.
    input_dim = mtf.Dimension("_" + input_dim.name, input_dim.size)
    inputs = mtf.reshape(inputs, dims + [input_dim])
  weights = mtf.layers.get_dense_kernel_weights(
      inputs, [output_dim], [input_dim], expert_dims, kernel_initializer=None,
      name=name, variable_dtype=variable_dtype)
  with tf.variable_scope(name):
    product = (mtf.EinsumOperation if hparams.moe_dispatch == "einsum"
               else _Product)
    outputs = product([inputs, weights], mtf.Shape(dims + [output_dim]))
  if mtf.layers.unit_scaling_convention():
    return outputs.outputs[0] * input_dim.size ** -0.5
  return outputs.outputs[0]


class _Product(mtf.EinsumOperation):
  """The product of inputs [..., input] and weights [..., input, output]."""

  def gradient(self, grad_ys):
    grad, = grad_ys
    inputs, weights = self.inputs
    # The gradient of the weights is a plain matrix product in this order. In
    # mtf's, a CPU transposes the result, which takes as long again. Some CPUs
    # add up in another order here, others do not.
    return [mtf.einsum([grad, weights], inputs.shape),
            mtf.einsum([inputs, grad], weights.shape)]


def _activated(x, activation):
  """Applies what hparams.moe_activation allows."""
  if activation == "relu":
    return _relu(x)
  if activation in (None, "linear"):
    return x
  return (getattr(mtf, activation) if isinstance(activation, str)
          else activation)(x)


def _relu(x):
  """mtf.relu with TensorFlow's gradient: one pass instead of three."""
  def gradient(op, grad):
    return [mtf.cwise(
        lambda grad, y: tf.raw_ops.ReluGrad(gradients=grad, features=y),
        [grad, op.outputs[0]], grad_function=0, name="relu_gradient")]

  return mtf.cwise(tf.nn.relu, [x], grad_function=gradient, name="relu")


def _takes_one(name):
  """Whether a name is that of a function of mtf from x to what has its shape.
  """
  function = getattr(mtf, name, None)
  if not inspect.isfunction(function):
    return False
  parameters = inspect.signature(function).parameters
  needed = [parameter.name for parameter in parameters.values()
            if parameter.default is parameter.empty]
  return needed == ["x"] and "output_shape" not in parameters


def check_activation(activation):
  """Raises ValueError unless mtf knows every activation of a gated unit."""
  if activation in ([], ()):
    raise knobs.Mistake(
        "activation", activation,
        'has no activation: use one such as "relu", or "linear" for none.')
  for one in activation if isinstance(activation, list) else [activation]:
    named = isinstance(one, str) and (one == "linear" or _takes_one(one))
    if not (one is None or callable(one) or named):
      raise knobs.Mistake("activation", one, (
          'is not an activation of mtf: use one such as "relu", "gelu" or '
          '"linear", a function of a mtf.Tensor, or a list of them such as '
          '["gelu", "linear"] for a gated unit.'))
