"""The layer of one level, against the reference's."""

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe as theirs
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import moe as ours
from tests import harness
from tests.oracle import comparison

OUTER, BATCH, LENGTH, BEAM, DEPTH = (
    mtf.Dimension(*dim) for dim in (
        ("outer_batch", 2), ("batch", 4), ("length", 8), ("beam", 3),
        ("d_model", 6)))
LAYOUT = "outer_batch:outer,batch:batch,experts:batch"
# As in `comparison`: the same arithmetic, in bfloat16 in another order.
TOLERANCE = {tf.float32: 1e-5, tf.bfloat16: 2.0 ** -7}


def hparams(**changed):
  """Those of MoE1D, small, and with few slots."""
  return theirs.HParams(**{**{
      "moe_num_experts": 4, "moe_loss_coef": 0.1, "moe_hidden_size": 8,
      "moe_group_size": 8, "moe_min_expert_capacity": 1,
      "moe_capacity_factor_train": 1.0, "moe_capacity_factor_eval": 1.5,
      "moe_use_second_place_loss": False, "moe_second_policy_train": "random",
      "moe_second_policy_eval": "threshold", "moe_second_threshold_train": 0.5,
      "moe_second_threshold_eval": 0.2, "moe_dropout_rate": 0.0,
      "moe_gating": "top_2", "moe_switch_policy_train": "input_jitter",
      "moe_switch_policy_eval": "input_jitter", "moe_switch_dropout": 0.1,
      "moe_switch_temperature": 1.0, "moe_switch_jitter": 0.1,
      "moe_ntlb_top_k": 2, "moe_output_dim": None,
      "moe_use_experts_attention": False, "moe_z_loss": None,
      "moe_word_embed_mode": None, "moe_use_second_place_expert_prob": None,
      "moe_use_second_place_expert_prob_temp": None,
      "moe_top_n_num_experts_per_token": 3}, **changed})


def compare(dims=(BATCH, LENGTH), mesh=(1, 1), layout=LAYOUT, train=True,
            dtype=tf.float32, output_dim=DEPTH, dispatch="einsum",
            arguments=None, **changed):
  """Runs both layers, with tokens that all count, and sees that they are equal.
  """
  impl = harness.mesh_impl(*mesh, layout=layout)

  def layer(function, more):
    def call(tensors):
      x = tensors["inputs"]
      outputs, loss = function(
          x, output_dim, hparams(**{**changed, **more}), train,
          harness.variable_dtype(dtype), layout=impl.layout_rules,
          mesh_shape=impl.shape,
          nonpadding=mtf.ones(x.mesh, mtf.Shape(x.shape.dims[:-1]), x.dtype),
          num_microbatches=1, token_embeddings=tensors["embeddings"],
          **(arguments or {}))
      if isinstance(outputs, list):
        queries, keys = outputs
        outputs = queries + 2 * keys
      return outputs, loss
    return call

  rng = np.random.default_rng(0)
  arrays = {
      name: (rng.integers(-9, 9, size=[*(dim.size for dim in dims), 6]) / 8,
             [*dims, DEPTH]) for name in ("inputs", "embeddings")}

  def weights(name, shape):
    return harness.random_weights(name, shape) * shape[-2] ** -0.5

  with comparison.same_draws():
    results = harness.run_layers(
        {"ours": layer(ours.transformer_moe_layer_v1,
                       {"moe_dispatch": dispatch, "moe_summaries": False}),
         "theirs": layer(theirs.transformer_moe_layer_v1, {})},
        arrays, impl, weights, dtype)
  mine, reference = results["ours"], results["theirs"]
  assert mine.variables == reference.variables
  if dispatch == "einsum":
    np.testing.assert_array_equal(mine.output, reference.output)
  for actual, expected in [
      (mine.output, reference.output), (mine.loss, reference.loss),
      (mine.input_gradient, reference.input_gradient),
      *((mine.gradients[name], gradient)
        for name, gradient in reference.gradients.items())]:
    np.testing.assert_allclose(
        actual, expected, rtol=0,
        atol=TOLERANCE[dtype] * np.abs(expected).max())
  return mine


GATINGS = ("top_2", "top_n", "switch", "switch_max", "ntlb", "expert_selection")


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=str)
@pytest.mark.parametrize("gating", GATINGS)
def test_gatings(gating, dtype):
  mine = compare(moe_gating=gating, dtype=dtype)
  assert f"{gating}_gating/kernel" in mine.variables


@pytest.mark.parametrize("gating", GATINGS)
def test_by_index_on_a_mesh(gating):
  compare(moe_gating=gating, dispatch="index", mesh=(1, 2))


@pytest.mark.parametrize("dims, mesh", [
    ((BATCH, LENGTH), (1, 2)), ((OUTER, BATCH, LENGTH), (2, 2)),
    ((OUTER, BATCH, LENGTH), (1, 1)), ((BATCH, BEAM, LENGTH), (1, 2)),
    ((OUTER, BATCH, BEAM, LENGTH), (2, 1)), ((BATCH,), (1, 2))], ids=str)
def test_dimensions_and_meshes(dims, mesh):
  layout = LAYOUT if OUTER in dims else "batch:batch,experts:batch"
  compare(dims, mesh, layout)


@pytest.mark.parametrize("layout", [
    "batch:batch,experts:batch,d_model_split:outer",
    "batch:batch,experts:batch,expert_hidden:outer",
    "batch:outer,experts:outer,d_model:batch"])
def test_layouts(layout):
  compare(mesh=(2, 2), layout=layout)


@pytest.mark.parametrize("changed", [
    {"train": False}, {"output_dim": mtf.Dimension("d_out", 5)},
    {"moe_use_experts_attention": True}, {"moe_dropout_rate": 0.3},
    {"arguments": {"activation": ["gelu", "linear"]}},
    {"moe_word_embed_mode": "add"}, {"moe_z_loss": 1.0, "moe_loss_coef": 1.0},
    {"moe_group_size": 6}, {"moe_min_expert_capacity": 4},
    {"moe_gating": "switch", "moe_use_second_place_expert_prob": 0.3}],
                         ids=str)
def test_parameters(changed):
  compare(**changed)


def test_an_activation_that_is_a_function():
  compare(arguments={"activation": mtf.tanh})
