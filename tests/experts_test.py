"""The experts' network, against the layers of mtf that it stands for."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import experts
from mtf_moe.hparams import MoeHparams
from tests import harness

Y, X, TOKENS, DEPTH, HIDDEN = (
    mtf.Dimension(name, size) for name, size in [
        ("expert_y", 2), ("expert_x", 3), ("tokens", 5), ("d_model", 4),
        ("expert_hidden", 6)])


def with_layers_of_mtf(
    inputs, output_dim, expert_dims, hparams, train, variable_dtype):
  del train
  hidden = mtf.layers.dense_product(
      inputs, reduced_dims=[DEPTH], new_dims=[HIDDEN], expert_dims=expert_dims,
      activation_functions=hparams.moe_activation, use_bias=False,
      variable_dtype=variable_dtype, name="wi")
  return mtf.layers.dense(
      hidden, output_dim, reduced_dims=[HIDDEN], expert_dims=expert_dims,
      use_bias=False, variable_dtype=variable_dtype, name="wo")


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("activation", [
    "relu", "gelu", ["relu"], ["gelu", "linear"], mtf.tanh, None],
    ids=lambda given: getattr(given, "__name__", str(given)))
def test_as_the_layers_of_mtf(activation, scaled, dtype, monkeypatch):
  monkeypatch.setattr(mtf.layers, "unit_scaling_convention", lambda: scaled)
  hparams = MoeHparams(moe_hidden_size=HIDDEN.size, moe_activation=activation)

  def network(function):
    def call(tensors):
      outputs = function(
          tensors["inputs"], DEPTH, [Y, X], hparams, True,
          harness.variable_dtype(dtype))
      return outputs, mtf.reduce_sum(outputs)
    return call

  dims = [Y, X, TOKENS, DEPTH]
  inputs = np.random.default_rng(0).normal(size=[dim.size for dim in dims])
  results = harness.run_layers(
      {"ours": network(experts.feed_forward),
       "theirs": network(with_layers_of_mtf)},
      {"inputs": (inputs, dims)}, harness.mesh_impl(), harness.random_weights,
      dtype)
  ours, theirs = results["ours"], results["theirs"]
  assert ours.variables == theirs.variables
  np.testing.assert_array_equal(ours.output, theirs.output)
  # Of matrix products that add up the same terms in another order.
  tolerance = 1e-6 if dtype == tf.float32 else 2.0 ** -7
  for actual, expected in [
      (ours.input_gradient, theirs.input_gradient),
      *[(ours.gradients[name], gradient)
        for name, gradient in theirs.gradients.items()]]:
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_outputs_of_the_dimension_of_the_hidden_layer():
  """mtf renames what would be twice in a variable."""
  hparams = MoeHparams(moe_hidden_size=HIDDEN.size)
  with tf.Graph().as_default():
    graph = mtf.Graph()
    inputs = mtf.zeros(
        mtf.Mesh(graph, "mesh"), mtf.Shape([Y, X, TOKENS, HIDDEN]))
    outputs = experts.feed_forward(
        inputs, HIDDEN, [Y, X], hparams, True, harness.variable_dtype())
  assert outputs.shape == inputs.shape
  assert graph.trainable_variables[0].shape.dimension_names == [
      "expert_y", "expert_x", "_expert_hidden", "expert_hidden"]
