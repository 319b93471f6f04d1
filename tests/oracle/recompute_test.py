"""The layer inside mtf.recompute_grad, which copies its operations.

mtf marks what a recomputed function computed as unusable, so an operation whose
gradient holds a tensor of its own, in place of `op.inputs`, raises.
"""

import dataclasses

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe.hparams import DISPATCHES
from tests import harness
from tests.oracle import comparison
from tests.oracle.case import Case

CASES = [
    Case(importance="absent", second_place_loss=True),
    Case(importance="absent", mesh=(1, 2), policy="random")]


def layer(function, case, recomputed=True, outside=False, **hparams):
  """A layer for `harness.run_layers`.

  Args:
    function: the layer.
    case: a Case.
    recomputed: whether it is inside of mtf.recompute_grad.
    outside: whether the padding is a Tensor from outside.
    **hparams: further hyperparameters.

  Returns:
    a function from a dict of Tensors to (outputs, loss)
  """
  impl = harness.mesh_impl(*case.mesh)

  def call(tensors):
    inputs = tensors["inputs"]

    def ones():
      return mtf.ones(inputs.mesh, inputs.shape[:-1], case.dtype)

    from_outside = ones() if outside else None

    def apply(inputs):
      nonpadding = from_outside if outside else ones()
      return function(
          inputs, comparison.output_dim(case), case.hparams(**hparams),
          case.train, harness.variable_dtype(case.dtype),
          layout=impl.layout_rules, mesh_shape=impl.shape,
          nonpadding=nonpadding, num_microbatches=1)

    return mtf.recompute_grad(apply, [inputs]) if recomputed else apply(inputs)

  return call


def run(case, **layers):
  with comparison.shared_draws(case):
    return harness.run_layers(
        layers, comparison.arrays(case), harness.mesh_impl(*case.mesh),
        case.weights, case.dtype, case.seed)


def assert_equal(actual, expected, tolerance):
  """Compares two harness.Results, relative to the largest elements."""
  def values(result):
    return {**{name: getattr(result, name) for name in (
        "output", "loss", "input_gradient")}, **result.gradients}

  actual, expected = values(actual), values(expected)
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(
        actual[name], value, rtol=0, atol=tolerance * np.abs(value).max(),
        err_msg=name)


@pytest.mark.parametrize("dispatch, dtype, tolerance", [
    ("einsum", tf.float32, 0.0), ("einsum", tf.bfloat16, 0.0),
    # By index, sums are in another order.
    ("index", tf.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_to_the_reference(case, dispatch, dtype, tolerance):
  case = dataclasses.replace(case, dtype=dtype)
  results = run(
      case, ours=layer(mtf_moe.transformer_moe_layer_v2, case,
                       moe_dispatch=dispatch),
      theirs=layer(moe.transformer_moe_layer_v2, case))
  assert_equal(results["ours"], results["theirs"], tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_index_in_bfloat16_computes_what_it_does_plainly(case):
  """A processor without products in bfloat16 rounds each of their terms.

  Then sums in another order than the reference's are far from it.
  """
  case = dataclasses.replace(case, dtype=tf.bfloat16)
  results = run(case, **{
      name: layer(mtf_moe.transformer_moe_layer_v2, case, recomputed,
                  moe_dispatch="index")
      for name, recomputed in (("plain", False), ("recomputed", True))})
  assert_equal(results["recomputed"], results["plain"], 0.0)


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("gating, policy, tolerance", [
    ("switch", "argmax", 0.0), (("top_2", "switch"), "argmax", 0.0),
    # Gradients of inputs are added up in another order.
    ("switch", "input_jitter", 1e-6),
    (("ntlb", "expert_selection"), "input_jitter", 1e-6)], ids=str)
def test_other_routers_compute_what_they_do_plainly(
    gating, policy, tolerance, dispatch):
  case = Case(importance="absent")
  results = run(case, **{
      name: layer(mtf_moe.transformer_moe_layer_v2, case, recomputed,
                  moe_gating=gating, moe_dispatch=dispatch, moe_ntlb_top_k=2,
                  moe_switch_policy_train=policy)
      for name, recomputed in (("plain", False), ("recomputed", True))})
  assert_equal(results["recomputed"], results["plain"], tolerance)


def test_padding_from_outside():
  """mtf wants a gradient for what a recomputed function uses."""
  case = Case(importance="absent")
  results = run(
      case, inside=layer(mtf_moe.transformer_moe_layer_v2, case),
      outside=layer(mtf_moe.transformer_moe_layer_v2, case, outside=True))
  assert_equal(results["outside"], results["inside"], 0.0)
  with pytest.raises(ValueError, match="no gradient"):
    run(case, theirs=layer(moe.transformer_moe_layer_v2, case, outside=True))
