"""Transform: the network inside an expert.

Any callable with the signature of `feed_forward` can take its place, as
`experts` of `transformer_moe_layer_v2` or as gin `MoE2D.experts`.
"""

import mesh_tensorflow as mtf


def feed_forward(
    inputs, output_dim, expert_dims, hparams, train, variable_dtype):
  """One hidden layer, without biases, of its own for every expert.

  Args:
    inputs: a Tensor [<expert dims>, <batch dims>, input].
    output_dim: a mtf.Dimension.
    expert_dims: a list of the dimensions of `inputs` that number the experts.
    hparams: a `MoeHparams`; its moe_hidden_size, moe_activation and
      moe_dropout_rate are used.
    train: a boolean.
    variable_dtype: a mtf.VariableDType.

  Returns:
    a Tensor [<expert dims>, <batch dims>, output]

  Raises:
    ValueError: if the activation is not known.
  """
  _check_activation(hparams.moe_activation)
  hidden_dim = mtf.Dimension("expert_hidden", hparams.moe_hidden_size)
  hidden = mtf.layers.dense_product(
      inputs, reduced_dims=inputs.shape.dims[-1:], new_dims=[hidden_dim],
      expert_dims=expert_dims, activation_functions=hparams.moe_activation,
      use_bias=False, variable_dtype=variable_dtype, name="wi")
  if hparams.moe_dropout_rate:
    hidden = mtf.dropout(hidden, train, rate=hparams.moe_dropout_rate)
  return mtf.layers.dense(
      hidden, output_dim, reduced_dims=[hidden_dim], expert_dims=expert_dims,
      use_bias=False, variable_dtype=variable_dtype, name="wo")


def _check_activation(activation):
  """Raises unless mtf knows every activation of a gated unit."""
  for one in activation if isinstance(activation, list) else [activation]:
    named = isinstance(one, str) and (one == "linear" or hasattr(mtf, one))
    if not (one is None or callable(one) or named):
      raise ValueError(
          f"MoE2D.activation = {one!r} is not an activation of mtf: use one "
          'such as "relu", "gelu" or "linear", a function of a mtf.Tensor, or '
          'a list of them such as ["gelu", "linear"] for a gated unit.')
