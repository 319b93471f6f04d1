"""The Switch router in the two levels, against NumPy."""

import dataclasses

import mesh_tensorflow as mtf
import numpy as np

import mtf_moe
from tests import harness
from tests.oracle import comparison
from tests.oracle.case import Case


def shares(gating):
  """The share of each expert in each token, [tokens, x, y]; no token dropped.

  Returns:
    the shares, and the gates of both levels: [tokens, x] and [tokens, x, y]
  """
  case = Case(shape=(2, 8), experts=(4, 2), importance="absent",
              factors=(4.0, 4.0, 4.0), policy="all")
  hparams = mtf_moe.MoeHparams.of(case.hparams())
  hparams = dataclasses.replace(
      hparams, moe_gating=gating, moe_switch_policy_train="argmax")

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
