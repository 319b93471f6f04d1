"""First values that are drawn on devices."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from mtf_moe.run.configured_model import ConfiguredModel  # noqa: E402
from mtf_moe.xla import configured as configured_lib  # noqa: E402
from mtf_moe.xla import devices  # noqa: E402
from mtf_moe.xla import exporting  # noqa: E402
from mtf_moe.xla import folder  # noqa: E402
from tests import gin_config  # noqa: E402
from tests.xla import export_test  # noqa: E402


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """(a folder without values, the first values as TensorFlow draws them)."""
  gin_config.parse(
      ["models/lm_tiny.gin", "meshes/cpu_2x2.gin", "data/bytes.gin"],
      [*export_test.TINY, "d_model = 64", "MoE2D.hidden_size = 64"])
  built = configured_lib.program(ConfiguredModel.from_gin(), seed=0)
  directory = str(tmp_path_factory.mktemp("drawn") / "program")
  exporting.save(directory, built)
  assert not folder.values(directory)
  return directory, configured_lib.initial_values(built)


def drawn(directory, seed):
  return devices.load(directory, jax.devices()[:4], seed).get()


def test_they_have_the_distributions_of_the_model(exported):
  directory, expected = exported
  values = drawn(directory, seed=1)
  assert len(values) > 10
  for name, value in values.items():
    other = expected[name]
    assert value.shape == other.shape
    if other.std() == 0:  # Ones and zeros.
      np.testing.assert_array_equal(value, other, name)
    else:
      bound = 6 / other.size ** 0.5  # Of errors of the mean and deviation.
      assert abs(value.std() / other.std() - 1) < bound, name
      assert abs(value.mean() - other.mean()) < bound * other.std(), name
      assert (value != other).mean() > 0.9, name


def test_they_follow_the_seed(exported):
  directory, _ = exported
  first, again, other = (drawn(directory, seed) for seed in (1, 1, 2))
  for name, value in first.items():
    np.testing.assert_array_equal(value, again[name])
    if value.std():
      assert (value != other[name]).mean() > 0.9
  kernels = [value for name, value in first.items()
             if name.endswith("/q") or name.endswith("/k")]
  assert len(kernels) > 1 and (kernels[0] != kernels[1]).mean() > 0.9


def test_experts_differ(exported):
  values = drawn(exported[0], seed=0)
  kernel, = (value for name, value in values.items()
             if name.endswith("wi/kernel"))  # [y, x, m, f]
  experts = kernel.reshape(-1, *kernel.shape[2:])
  assert len(experts) > 2
  assert all((one != experts[0]).mean() > 0.9 for one in experts[1:])
