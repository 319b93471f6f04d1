"""What routers share, against NumPy."""

import mesh_tensorflow as mtf
import numpy as np
import pytest

from mtf_moe.gating import router
from tests import harness

BATCH, GROUP = mtf.Dimension("batch", 2), mtf.Dimension("group", 96)


@pytest.mark.parametrize("mesh", [(1, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("experts", [1, 2, 4, 13])
def test_top_1(experts, mesh):
  rng = np.random.default_rng(experts)
  # Fifths: most tokens have several that are the largest. And very small ones.
  gates = rng.integers(6, size=[2, 96, experts]) / 5.0
  gates[0, :48] *= 1e-40
  direction = rng.normal(size=[2, 96])
  dim = mtf.Dimension("experts", experts)

  def build(tensors):
    gate, expert = router.top_1(tensors["gates"], dim)
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
