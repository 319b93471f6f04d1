"""Both ways of dispatch, held against each other, and what they cost."""

import collections
import math

import hypothesis
from hypothesis import strategies as st
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import tags
from tests import harness
from tests.oracle import comparison
from tests.oracle import strategies
from tests.oracle.case import Case

# Gradients smaller than this are differences of terms of order 1.
SMALLEST_GRADIENT = 0.1
GATINGS = ("top_2", "top_2", "switch", ("top_2", "switch"), ("switch", "top_2"),
           "switch_max", ("top_n", "expert_selection"), ("ntlb", "top_n"))


def tolerance(dtype, size):
  """How far apart numbers of this size may be.

  Sums of two to three terms are added up in another order. In bfloat16, one way
  rounds products and the other their sum: two units in the last place, which is
  the eighth binary one.
  """
  if dtype == tf.float32:
    return 2e-6 * size
  return 2 * 2.0 ** (math.floor(math.log2(size)) - 7)


def run_both(case, gating="top_2"):
  """The results of both ways in one graph, by name."""
  impl = harness.mesh_impl(*case.mesh, layout=case.layout)

  def layer(dispatch):
    def call(tensors):
      return mtf_moe.transformer_moe_layer_v2(
          tensors["inputs"], comparison.output_dim(case),
          case.hparams(
              moe_dispatch=dispatch, moe_gating=gating, moe_ntlb_top_k=1,
              moe_top_n_num_experts_per_token=1), case.train,
          harness.variable_dtype(case.dtype), layout=impl.layout_rules,
          mesh_shape=impl.shape, nonpadding=tensors.get("nonpadding"),
          num_microbatches=case.num_microbatches)
    return call

  with comparison.same_draws(), comparison.shared_draws(case):
    return harness.run_layers(
        {way: layer(way) for way in ("einsum", "index")},
        comparison.arrays(case), impl, case.weights, case.dtype, case.seed)


def check_equal(case, gating="top_2"):
  results = run_both(case, gating)
  einsum, index = results["einsum"], results["index"]
  # What comes out of a gradient that is zero: a unit of float32 for each token,
  # which add up as steps in random directions do.
  nothing = 2.0 ** -23 * math.sqrt(math.prod(case.shape))
  assert index.variables == einsum.variables
  np.testing.assert_array_equal(index.loss, einsum.loss)
  np.testing.assert_allclose(
      index.output, einsum.output, rtol=0,
      atol=tolerance(case.dtype, np.abs(einsum.output).max() or 1.0))
  for name, expected in [("inputs", einsum.input_gradient),
                         *einsum.gradients.items()]:
    actual = index.gradients.get(name, index.input_gradient)
    size = np.abs(expected).max()
    if size < nothing and case.dtype == tf.float32:
      assert np.abs(actual).max() < nothing, name
      continue
    np.testing.assert_allclose(
        actual, expected, rtol=0, err_msg=name,
        atol=tolerance(case.dtype, max(size, SMALLEST_GRADIENT)))


@pytest.mark.parametrize("shard", range(4))
def test_generated_cases(shard):
  @hypothesis.seed(shard)
  @hypothesis.settings(max_examples=8)
  @hypothesis.given(strategies.cases(), st.sampled_from(GATINGS))
  def check(case, gating):
    check_equal(case, gating)

  check()


@pytest.mark.parametrize("layout", [
    harness.CANONICAL_LAYOUT, "outer_batch:outer,d_model:batch",
    "d_model:outer,batch:batch,expert_x:batch"])
def test_split_dimensions(layout):
  """All batch dimensions of both levels, and the depth of inputs and outputs.
  """
  check_equal(Case(
      mesh=(2, 2), layout=layout, policy="all", shape=(2, 4, 8),
      importance="halves", second_place_loss=True, router="near_equal"))


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=str)
def test_weights_of_zero(dtype):
  """They hold a slot, but nothing is sent to it."""
  check_equal(Case(router="saturated", policy="all", dtype=dtype,
                   factors=(0.5, 0.5, 0.5)))


def collectives(layer, with_inputs, **hparams):
  """Counts operations that communicate in a training step on a 2x2 mesh.

  Args:
    layer: ours, or the reference's.
    with_inputs: whether the inputs are differentiated, too.
    **hparams: that differ from a case's.

  Returns:
    a Counter by the kind of operation
  """
  case = Case(mesh=(2, 2), shape=(2, 4, 8), policy="all")
  depth = mtf.Dimension("d_model", 6)
  mesh_shape = "outer:2,batch:2"

  def call(tensors):
    return layer(
        tensors["inputs"], depth, case.hparams(**hparams), True,
        harness.variable_dtype(), layout=case.layout, mesh_shape=mesh_shape,
        nonpadding=tensors["ones"])

  return collections.Counter(kind for kind, _ in harness.communication(
      call, [*case.token_dims(), depth], mesh_shape, case.layout, with_inputs))


@pytest.mark.parametrize("layer, hparams", [
    (mtf_moe.transformer_moe_layer_v2, {"moe_dispatch": "einsum"}),
    (mtf_moe.transformer_moe_layer_v2, {"moe_dispatch": "index"}),
    (moe.transformer_moe_layer_v2, {})], ids=["einsum", "index", "reference"])
def test_all_to_alls_of_a_training_step(layer, hparams):
  """Rows go there and back, four moves, and one carries the importance.

  Gradients go back the same four ways; two of them end at the inputs, and are
  left out where those need no gradient. No table of choices is differentiated.
  """
  assert collectives(layer, with_inputs=False, **hparams)["alltoall"] == 5 + 2
  counted = collectives(layer, with_inputs=True, **hparams)
  assert counted["alltoall"] == 5 + 4 and "allconcat" not in counted


def test_same_summaries():
  """What is recorded does not depend on how tokens move."""
  case = Case(policy="all", importance="halves")

  def build(tensors):
    recorded = []
    for dispatch in ("einsum", "index"):
      with tf.variable_scope(dispatch):
        mtf_moe.transformer_moe_layer_v2(
            tensors["inputs"], tensors["inputs"].shape.dims[-1],
            case.hparams(moe_dispatch=dispatch, moe_summaries=True), True,
            harness.variable_dtype(), nonpadding=tensors["nonpadding"])
    for dispatch in ("einsum", "index"):
      prefix = f"moe/{dispatch}/"
      recorded.append({
          name.removeprefix(prefix): value for name, value
          in harness.summaries(tensors["inputs"].graph).items()
          if name.startswith(prefix)})
    return recorded

  einsum, index = harness.evaluate(
      build, comparison.arrays(case),
      lambda name, shape: case.weights(name.partition("/")[2], shape))
  # The layer's results are equal to 2e-6, all that is counted to the last bit.
  rms = f"{tags.LAYER}/{tags.OUTPUTS}"
  assert einsum.pop(rms) == pytest.approx(index.pop(rms), rel=2e-6)
  assert einsum == index and len(einsum) > 20
