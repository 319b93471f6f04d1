"""The largest of gates, against NumPy."""

import mesh_tensorflow as mtf
import numpy as np
import pytest

from mtf_moe.gating import selection
from tests import harness

BATCH, GROUP = mtf.Dimension("batch", 2), mtf.Dimension("group", 96)


@pytest.mark.parametrize("mesh", [(1, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("experts", [1, 2, 4, 13])
def test_likeliest(experts, mesh):
  rng = np.random.default_rng(experts)
  # Fifths: most tokens have several that are the largest. And very small ones.
  gates = rng.integers(6, size=[2, 96, experts]) / 5.0
  gates[0, :48] *= 1e-40
  direction = rng.normal(size=[2, 96])
  dim = mtf.Dimension("experts", experts)

  def build(tensors):
    gate, expert = selection.likeliest(tensors["gates"], dim)
    return [gate, expert, *mtf.gradients(
        [gate], [tensors["gates"]], [tensors["direction"]])]

  actual = harness.evaluate(
      build, {"gates": (gates, [BATCH, GROUP, dim]),
              "direction": (direction, [BATCH, GROUP])}, None,
      harness.mesh_impl(*mesh))
  gates = gates.astype(np.float32)
  chosen = gates.argmax(axis=-1)
  gradient = np.zeros(gates.shape)
  np.put_along_axis(
      gradient, chosen[..., np.newaxis], direction[..., np.newaxis], axis=-1)
  np.testing.assert_array_equal(actual[0], gates.max(axis=-1))
  np.testing.assert_array_equal(actual[1], chosen)
  np.testing.assert_allclose(actual[2], gradient, rtol=1e-6)


@pytest.mark.parametrize("capacity", [1, 3, 7, 12])
def test_top_k_tokens(capacity):
  """The last slots are empty where there are more than tokens."""
  rng = np.random.default_rng(capacity)
  gates = rng.integers(1, 6, size=[2, 8, 3]) / 5.0
  direction = rng.normal(size=[2, 3, capacity])
  batch, group, experts, slots = (mtf.Dimension(*dim) for dim in (
      ("batch", 2), ("group", 8), ("experts", 3), ("capacity", capacity)))

  def build(tensors):
    tokens, values = selection.top_k_tokens(tensors["gates"], group, slots)
    return [tokens, values, *mtf.gradients(
        [values], [tensors["gates"]], [tensors["direction"]])]

  tokens, values, gradient = harness.evaluate(
      build, {"gates": (gates, [batch, group, experts]),
              "direction": (direction, [batch, experts, slots])}, None)
  order = np.argsort(-gates, axis=1, kind="stable").transpose(0, 2, 1)
  kept = min(capacity, 8)
  np.testing.assert_array_equal(tokens[..., :kept], order[..., :kept])
  np.testing.assert_array_equal(tokens[..., kept:], -1)
  expected, of_gates = np.zeros([2, 3, capacity]), np.zeros(gates.shape)
  for b, x, c in np.ndindex(2, 3, kept):
    token = order[b, x, c]
    expected[b, x, c] = gates[b, token, x]
    of_gates[b, token, x] += direction[b, x, c]
  np.testing.assert_allclose(values, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, of_gates, rtol=1e-6)


def test_top_1_of_any_numbers():
  values = np.array([[-3.0, -1.0, -2.0], [0.5, -7.0, 0.5], [-2.0, -2.0, -4.0]])
  dims = [mtf.Dimension("token", 3), mtf.Dimension("expert", 3)]
  for dim, axis in zip(dims, (0, 1)):
    largest, where = harness.evaluate(
        lambda tensors, dim=dim: selection.top_1(tensors["values"], dim),
        {"values": (values, dims)}, None)
    np.testing.assert_array_equal(largest, values.max(axis=axis))
    np.testing.assert_array_equal(where, values.argmax(axis=axis))
