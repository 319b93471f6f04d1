"""NaN, infinities and large numbers: how far they reach."""

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from tests import harness

DEPTH = mtf.Dimension("d_model", 6)
DIMS = [mtf.Dimension("outer_batch", 2), mtf.Dimension("batch", 4),
        mtf.Dimension("length", 8)]
BAD = 1, 2, 3  # The token that gets a NaN.
HPARAMS = dict(
    moe_gating="top_2", moe_num_experts=(4, 2), moe_hidden_size=8,
    moe_group_size=8, moe_loss_coef=0.1, moe_min_expert_capacity=1,
    moe_capacity_factor_train=1.0, moe_capacity_factor_second_level=1.0,
    moe_second_policy_train="threshold", moe_second_threshold_train=0.2,
    moe_use_second_place_loss=True, moe_z_loss=0.01, moe_word_embed_mode=None)


def run(inputs, nonpadding, function=mtf_moe.transformer_moe_layer_v2,
        weights=harness.random_weights, **hparams):
  """Runs a layer in training; groups are sequences, at both levels."""
  def layer(tensors):
    return function(
        tensors["inputs"], DEPTH, moe.HParams(**HPARAMS, **hparams), True,
        harness.variable_dtype(), layout="", mesh_shape="",
        nonpadding=tensors["nonpadding"], num_microbatches=1)

  return harness.run_layers(
      {"layer": layer},
      {"inputs": (inputs, [*DIMS, DEPTH]), "nonpadding": (nonpadding, DIMS)},
      harness.mesh_impl(), weights)["layer"]


def some_inputs():
  shape = [dim.size for dim in [*DIMS, DEPTH]]
  return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_token_that_is_not_finite_is_as_padding(value):
  """So no token notices, in its group or in others, and no gradient.

  Only its own result is zero, where the residual connection around the layer
  carries the NaN on.
  """
  inputs = some_inputs()
  nonpadding = np.ones(inputs.shape[:-1])
  nonpadding[BAD] = 0
  expected = run(np.where(nonpadding[..., np.newaxis], inputs, 0), nonpadding)
  inputs[(*BAD, 2)] = value
  actual = run(inputs, np.ones_like(nonpadding))
  np.testing.assert_array_equal(actual.output, expected.output)
  np.testing.assert_array_equal(actual.loss, expected.loss)
  assert np.isfinite(actual.output).all() and not actual.output[BAD].any()
  # Padding has a gradient, from the gates left in the second-place loss.
  expected.input_gradient[BAD] = 0
  np.testing.assert_array_equal(actual.input_gradient, expected.input_gradient)
  for name, gradient in expected.gradients.items():
    np.testing.assert_array_equal(actual.gradients[name], gradient)


def test_a_nan_in_the_reference_reaches_its_whole_groups():
  """At level one all of its group, at level two all whose slots share one."""
  inputs = some_inputs()
  inputs[BAD] = np.nan
  result = run(inputs, np.ones(inputs.shape[:-1]),
               moe.transformer_moe_layer_v2)
  assert np.isnan(result.output[BAD[:2]]).all()
  # The slots of the four sequences of an outer entry are one group there.
  assert np.isnan(result.output[BAD[0]]).all(axis=-1).sum() > 8
  assert np.isfinite(result.output[1 - BAD[0]]).all()
  assert np.isnan(result.loss)
  assert all(np.isnan(g).any() for g in result.gradients.values())


@pytest.mark.parametrize("dispatch", ["einsum", "index"])
@pytest.mark.parametrize("level", ["outer", "inner"])
def test_a_router_that_diverged(level, dispatch):
  """Training sees a loss of NaN, and no error from a token without a slot."""
  def weights(name, shape):
    values = harness.random_weights(name, shape)
    if name.startswith(level):
      values[..., -1] = np.nan
    return values

  inputs = some_inputs()
  result = run(inputs, np.ones(inputs.shape[:-1]), weights=weights,
               moe_dispatch=dispatch)
  assert np.isnan(result.loss)


def test_large_logits():
  """Of 1e4 and -1e4 at both routers, with all losses: nothing overflows."""
  inputs = some_inputs()
  inputs[..., 0] = 1e4 * np.sign(inputs[..., 0])

  def weights(name, shape):
    values = harness.random_weights(name, shape)
    if "gating" in name:
      values[..., 0, :] = np.where(np.arange(shape[-1]) % 2, -1.0, 1.0)
    else:
      values[..., 0, :] = 1e-4  # So that the outputs stay of order 1.
    return values

  result = run(inputs, np.ones(inputs.shape[:-1]), weights=weights)
  assert result.loss > 0.01 * 1e4 ** 2  # The z-loss of both levels.
  for values in (result.output, result.loss, result.input_gradient,
                 *result.gradients.values()):
    assert np.isfinite(values).all()
  # It is the logits that are so large, not that nobody is routed any more.
  assert (np.abs(result.output).max(axis=-1) > 0).mean() > 0.25


@pytest.mark.parametrize("dtype, tolerance", [
    (tf.float32, 1e-6),
    # Each of the two weights, at most 1, is rounded to eight significant bits.
    (tf.bfloat16, 2.0 ** -8)], ids=str)
def test_weights_sum_to_one_within_the_rounding_of_their_type(dtype, tolerance):
  group, experts = mtf.Dimension("s", 512), mtf.Dimension("x", 4)
  logits = np.random.default_rng(0).normal(size=(512, 4))

  def build(tensors):
    _, combine, _ = mtf_moe._top_2_gating(
        tensors["inputs"], None, experts, mtf.Dimension("c", 512),
        mtf_moe.MoeHparams(moe_second_policy_train="all"), True,
        harness.variable_dtype(dtype))
    return mtf.cast(combine, tf.float32)

  combine = harness.evaluate(
      build, {"inputs": (logits, [group, mtf.Dimension("m", 4)])},
      lambda name, shape: np.eye(4), dtype=dtype)
  sums = combine.sum(axis=(1, 2))
  error = np.abs(sums - 1).max()
  assert error <= tolerance
  if dtype == tf.bfloat16:
    assert error > 2.0 ** -10  # They are not renormalized after the rounding.
