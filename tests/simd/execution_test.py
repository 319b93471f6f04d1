"""Variables, slices and mistakes of whoever runs a program."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import simd
from mtf_moe.simd.slicing import Slicing


def _model(tensors):
  """Two variables of one shape, which autostack joins; both grow by x."""
  x = tensors["x"]
  names = ("first", "second")
  variables = [
      mtf.get_variable(x.mesh, name, x.shape) for name in names]
  # Autostack joins what is assigned together.
  return {"sum": mtf.add_n(variables)}, [mtf.Assign(
      [variable.operation for variable in variables], [x, x],
      assign_fn=mtf.assign_add_slice)]


def _program(**options):
  return simd.build(
      _model, "rows:2,columns:2", "i:columns", {"x": (tf.float32, "i:4,j:3")},
      **options)


@pytest.fixture(scope="module", name="program")
def _shared_program():
  return _program()


@pytest.mark.parametrize("autostack", [False, True])
def test_variables_are_whole_whatever_the_cores_hold(autostack):
  weights = {name: np.random.default_rng(seed).normal(size=[4, 3]).astype(
      np.float32) for seed, name in enumerate(["first", "second"])}
  x = np.ones([4, 3], np.float32)
  with simd.Cores(_program(autostack=autostack)) as cores:
    cores.load(weights)
    np.testing.assert_array_equal(
        cores.step({"x": x})["sum"].value, weights["first"] + weights["second"])
    cores.load({"second": np.zeros([4, 3])})  # The first keeps its update.
    variables = cores.variables()
    np.testing.assert_array_equal(variables["first"], weights["first"] + x)
    np.testing.assert_array_equal(variables["second"], 0 * x)
    slices = cores.slices()
  assert slices.keys() == ({"stacked/first"} if autostack
                           else {"first", "second"})
  assert {gathered.spread for gathered in slices.values()} == {0.0}


@pytest.mark.parametrize("feeds,message", [
    ({}, "no input 'x' among"),
    ({"x": np.zeros([4, 3]), "y": 0}, "no input 'y' among: x"),
    ({"x": np.zeros([2, 3])}, r"\[2, 3\] where .*whole tensor"),
])
def test_wrong_feeds(program, feeds, message):
  with simd.Cores(program) as cores, pytest.raises(ValueError, match=message):
    cores.step(feeds)


def test_unknown_variable(program):
  with (simd.Cores(program) as cores,
        pytest.raises(ValueError, match="no variable 'third' among: first")):
    cores.load({"third": 0})


def test_no_permutation():
  with pytest.raises(ValueError, match=r"\[0, 0, 1, 2\].*from 0 to 3 once"):
    _program(logical_to_physical=[0, 0, 1, 2])


def test_control_flow_v2_is_refused():
  tf.enable_control_flow_v2()
  try:
    with pytest.raises(ValueError, match="disable_v2_behavior"):
      _program()
  finally:
    tf.disable_control_flow_v2()


def test_slices_and_their_spread():
  slicing = Slicing.of("rows:2,columns:2", "i:columns", [2, 3, 0, 1])
  shape = mtf.convert_to_shape("i:4")
  # Core 2 is at (0, 0), core 3 at (0, 1), and so on: the odd ones have the
  # second half.
  slices = slicing.cut([0, 1, 2, 3], shape)
  np.testing.assert_array_equal(slices, [[0, 1], [2, 3], [0, 1], [2, 3]])
  assert slicing.coordinates(3) == [0, 1]
  np.testing.assert_array_equal(slicing.join(slices, shape), [0, 1, 2, 3])
  assert slicing.spread(slices, shape) == 0.0
  changed = [np.array(part, np.float32) for part in slices]
  changed[3][0] += 0.5
  assert slicing.spread(changed, shape) == 0.5
  changed[0][0] = np.nan
  assert np.isnan(slicing.spread(changed, shape))
