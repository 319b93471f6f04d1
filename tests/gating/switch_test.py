"""The Switch router, alone against mesh_tensorflow's, and in the two levels."""

import dataclasses

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe.gating import routing
from mtf_moe.gating import switch
from tests import harness
from tests.oracle import comparison
from tests.oracle.case import Case


def their_hparams():
  hparams = moe.HParams()
  moe.set_default_moe_hparams(hparams)
  hparams.moe_switch_policy_eval = "argmax"
  hparams.moe_word_embed_mode = hparams.moe_z_loss = None
  hparams.moe_use_second_place_expert_prob = None
  return hparams


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=str)
@pytest.mark.parametrize("importance", [None, [1.0] * 5 + [0.0] * 7])
def test_as_the_reference(dtype, importance):
  """Where the reference masks its losses right: without padding."""
  batch, group, depth = (
      mtf.Dimension(*dim) for dim in (("batch", 2), ("group", 12), ("m", 6)))
  experts, capacity = mtf.Dimension("x", 4), mtf.Dimension("c", 3)
  arrays = {"inputs": (
      Case().rng("inputs").normal(size=(2, 12, 6)), [batch, group, depth])}
  if importance is not None:
    arrays["importance"] = np.array([importance] * 2), [batch, group]

  def build(tensors):
    arguments = {
        "outer_expert_dims": None, "experts_dim": experts,
        "expert_capacity_dim": capacity, "hparams": their_hparams(),
        "train": False, "variable_dtype": harness.variable_dtype(dtype),
        "importance": tensors.get("importance")}
    with tf.variable_scope("ours"):
      routed = switch.route(tensors["inputs"], **{
          **arguments, "hparams": mtf_moe.MoeHparams()})
    combine = routed.combine_tensor(dtype)
    with tf.variable_scope("theirs"):
      theirs = moe._switch_gating(tensors["inputs"], **arguments)
    return ((routing.dispatch_tensor(combine), combine, routed.balance_loss),
            theirs)

  ours, theirs = harness.evaluate(
      build, arrays, lambda name, shape: harness.random_weights("w", shape),
      dtype=dtype)
  np.testing.assert_array_equal(ours[0], theirs[0])
  np.testing.assert_array_equal(ours[1], theirs[1])
  assert 0 < ours[0].sum() < 24  # Some are dropped.
  if importance is None:
    np.testing.assert_allclose(
        ours[2], theirs[2], rtol=1e-6 if dtype == tf.float32 else 2.0 ** -7)


def shares(gating):
  """The share of each expert in each token, [tokens, x, y]; no token dropped.

  Returns:
    the shares, and the gates of both levels: [tokens, x] and [tokens, x, y]
  """
  case = Case(shape=(2, 8), experts=(4, 2), importance="absent",
              factors=(4.0, 4.0, 4.0), policy="all")
  hparams = mtf_moe.MoeHparams.of(case.hparams())
  hparams = dataclasses.replace(hparams, moe_gating=gating)

  def build(tensors):
    outputs, _ = mtf_moe.transformer_moe_layer_v2(
        tensors["inputs"], mtf.Dimension("number", 8), hparams, True,
        harness.variable_dtype(), experts=harness.numbered_experts(4, 2))
    return outputs

  found = harness.evaluate(build, comparison.arrays(case), case.weights)
  inputs, _, weights = comparison.loops_arguments(case)
  tokens = inputs.reshape(-1, case.depth)

  def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)

  outer = softmax(tokens @ weights["outer_gating/kernel"])
  inner = softmax(np.einsum(
      "tm,xmy->txy", tokens, weights["inner_gating/kernel"]))
  return found.reshape(-1, 4, 2), outer, inner


def largest(gates):
  """The gates, with zeros for all but the largest of the last axis."""
  return gates * (gates == gates.max(axis=-1, keepdims=True))


def test_at_both_levels():
  found, outer, inner = shares("switch")
  expected = largest(outer)[..., None] * largest(inner)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_below_top_2():
  """Of each of two groups of experts, a token uses the likeliest expert."""
  found, outer, inner = shares(("top_2", "switch"))
  second = np.sort(outer, axis=-1)[:, -2:-1]
  both = outer * (outer >= second)
  both /= both.sum(axis=-1, keepdims=True)
  expected = both[..., None] * largest(inner)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_above_top_2():
  """Every token is a first choice, whatever its weight: two experts of two."""
  found, outer, inner = shares(("switch", "top_2"))
  assert outer.max(axis=-1).min() < 0.5
  np.testing.assert_allclose(
      found, largest(outer)[..., None] * inner, atol=1e-6)


def test_a_router_of_ones_own():
  calls = []

  def router(*args, name, **kwargs):
    calls.append(name)
    return switch.route(*args, name=name, **kwargs)

  found, *_ = shares((router, "switch"))
  np.testing.assert_array_equal(found, shares("switch")[0])
  assert calls == ["outer_gating"]
