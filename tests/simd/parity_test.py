"""The TPU's program computes what a placement mesh computes.

The ordinary run covers each factor in a few combinations; all of them:

    scripts/test.sh -m slow tests/simd
"""

import itertools

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import levels
from tests import harness
from tests.oracle import case as case_lib
from tests.simd import comparison
from tests.simd import models
from tests.simd import placement

# Both sides do the same arithmetic on the same slices; only the order in which
# an all-reduce adds up may differ, by some units of float32 after two updates.
TOLERANCE = 1e-6
# With attention, weights have gradients in bfloat16, and four cores' terms are
# added up in it: on each side three sums, each rounded by half a unit of 2^-8.
BFLOAT16_TOLERANCE = 6 * 2.0 ** -8
# What depends on no all-reduce but of scalars has the same bits in the first
# step; two microbatches add up their losses before or after it.
EXACT = ("output", "loss", "input_gradient")
EXACT_IN_MICROBATCHES = ("output",)
_PERMUTED = [2, 0, 3, 1]


def layer_run(rows, columns, optimizer, num_microbatches=1, **changed):
  """The bare layer; moe_* names and attributes of the Case can be changed."""
  hparams = {name: changed.pop(name) for name in list(changed)
             if name.startswith("moe_")}
  case = models.case_on(rows, columns, **changed)
  if num_microbatches == 1:
    model = models.layer_model(case, optimizer, **hparams)
  else:
    model = models.microbatched_model(
        case, optimizer, num_microbatches, **hparams)
  return comparison.Run(
      model, models.mesh_shape(case), case.layout,
      models.layer_signature(case), models.layer_feeds(case), case.weights)


def levels_run(num_levels, dispatch):
  """The layer of some levels, two slices along as many axes of a mesh."""
  axes = ["first", "second", "third"][:num_levels]
  layout = levels.canonical_layout(num_levels, axes)
  mesh_shape = ",".join(f"{axis}:2" for axis in axes)
  dims = [mtf.Dimension(name, 4) for name in levels.batch_names(num_levels)]
  shape = mtf.Shape([*dims, mtf.Dimension("length", 4),
                     mtf.Dimension("d_model", 6)])
  rng = np.random.default_rng(0)
  return comparison.Run(
      models.levels_model([4, 2, 2][:num_levels], layout, mesh_shape, dispatch),
      mesh_shape, layout, {"inputs": (tf.float32, shape)},
      {"inputs": rng.integers(-8, 9, size=shape.to_integer_list) / 8},
      case_lib.Case().weights)


def transformer_run(rows, columns, *args, steps=2, **moe):
  inputs, feeds = models.transformer_inputs(rows, columns)
  return comparison.Run(
      models.transformer_model(rows, columns, *args, **moe),
      f"outer:{rows},batch:{columns}", harness.CANONICAL_LAYOUT, inputs, feeds,
      models.transformer_weights, steps)


def check(run, float32_alltoall=True, tolerance=TOLERANCE, exact=EXACT,
          **options):
  """Asserts that both sides agree, step by step.

  Args:
    run: a comparison.Run.
    float32_alltoall: whether all-to-alls keep float32, or both sides round.
    tolerance: of all errors, relative to the largest element.
    exact: the kinds of results, where there are any, that are the same, bit for
      bit, in the first step.
    **options: of `simd.build`.
  """
  program = run.build(**options)
  actual = run.on_cores(program, float32_alltoall)
  expected = run.on_placement_mesh(
      placement.PlacementMeshImpl if float32_alltoall
      else placement.RoundingMeshImpl)
  _, _, spread = actual
  assert spread == 0.0
  first = comparison.errors((actual[0][:1], {}), (expected[0][:1], {}))
  assert [first.get(kind, 0.0) for kind in exact] == [0.0] * len(exact), first
  errors = comparison.errors(actual, expected)
  assert max(errors.values()) <= tolerance, errors


LAYERS = {
    "einsum, SGD": (
        (2, 2, "sgd"), {}, {}),
    "index, Adafactor, autostack, permuted cores": (
        (2, 2, "adafactor"), {"moe_dispatch": "index"},
        {"autostack": True, "logical_to_physical": _PERMUTED}),
    "all-to-alls rounded": (
        (2, 2, "sgd"), {"moe_dispatch": "index"}, {"float32_alltoall": False}),
    "bfloat16": (
        (2, 2, "adafactor"), {"dtype": tf.bfloat16}, {}),
    "4x2": (
        (4, 2, "sgd"), {"moe_dispatch": "index"}, {}),
    "microbatches": (
        (2, 2, "sgd", 2), {"moe_dispatch": "index"},
        {"exact": EXACT_IN_MICROBATCHES}),
    "evaluation": (
        (2, 2, "none"), {"train": False}, {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
  args, changed, options = LAYERS[name]
  check(layer_run(*args, **changed), **options)


@pytest.mark.parametrize("gating", [
    "switch", ("switch_max", "ntlb"), ("expert_selection", "top_n"),
    ("group_limited", "expert_choice"), ("sigmoid_top_k", "sigmoid_top_k"),
    ("hash", "hash")], ids=str)
def test_routers(gating):
  check(layer_run(
      2, 2, "sgd", moe_gating=gating, moe_switch_policy_train="argmax",
      moe_ntlb_top_k=2, moe_top_n_num_experts_per_token=2,
      moe_limited_num_groups=2, moe_limited_top_groups=1, moe_sigmoid_top_k=1,
      moe_sigmoid_bias_rate=0.25))


@pytest.mark.parametrize("changed", [
    {"moe_fill_order": "gate"}, {"moe_shared_hidden_size": 8}], ids=str)
def test_options(changed):
  check(layer_run(2, 2, "sgd", moe_dispatch="index", **changed))


@pytest.mark.parametrize("num_levels, dispatch", [
    (1, "einsum"), (3, "index"),
    pytest.param(3, "einsum", marks=pytest.mark.slow)])
def test_levels(num_levels, dispatch):
  check(levels_run(num_levels, dispatch))


# Adafactor divides gradients by their own size, also such as are rounding, so
# that what differs after an update by a unit is more in the second step's
# gradients.
TRANSFORMER_STEPS = {"none": 2, "sgd": 2, "adafactor": 1}


@pytest.mark.parametrize("optimizer", [
    "adafactor", pytest.param("sgd", marks=pytest.mark.slow)])
def test_transformer(optimizer):
  # Its loss is a sum over the tokens of all cores.
  check(transformer_run(2, 2, optimizer, dispatch="index",
                        steps=TRANSFORMER_STEPS[optimizer]),
        exact=("output",), autostack=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh,dispatch,optimizer,autostack,dtype,float32_alltoall,microbatches",
    [values for values in itertools.product(
        ((2, 2), (4, 2)), ("einsum", "index"), ("sgd", "adafactor"),
        (False, True), (tf.float32, tf.bfloat16), (True, False), (1, 2))
     if values[4] == tf.float32 or values[5]])
def test_layer_in_all_combinations(
    mesh, dispatch, optimizer, autostack, dtype, float32_alltoall,
    microbatches):
  check(layer_run(*mesh, optimizer, microbatches, moe_dispatch=dispatch,
                  dtype=dtype),
        float32_alltoall,
        exact=EXACT if microbatches == 1 else EXACT_IN_MICROBATCHES,
        autostack=autostack,
        logical_to_physical=_PERMUTED if mesh == (2, 2) and autostack else None)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2), (4, 2)])
@pytest.mark.parametrize("dispatch", ["einsum", "index"])
@pytest.mark.parametrize("optimizer,dtype,train", [
    ("sgd", tf.float32, True), ("adafactor", tf.float32, True),
    ("none", tf.float32, False), ("sgd", tf.bfloat16, True)])
def test_transformer_in_all_combinations(
    mesh, dispatch, optimizer, dtype, train):
  check(transformer_run(*mesh, optimizer, dtype, train, dispatch=dispatch,
                        steps=TRANSFORMER_STEPS[optimizer]),
        exact=("output",),
        tolerance=TOLERANCE if dtype == tf.float32 else BFLOAT16_TOLERANCE)
