"""Each collective does on the cores what it means, on tensors of integers."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import simd

_PERMUTED = (3, 0, 5, 1, 7, 2, 6, 4)


def run(model, shape, layout, mesh="rows:2,columns:4", array=None, **options):
  """The Gathered output "y" of a model of "x"; x counts from zero."""
  shape = mtf.convert_to_shape(shape)
  if array is None:
    array = np.arange(shape.size, dtype=np.float32)
  program = simd.build(
      model, mesh, layout, {"x": (tf.float32, shape)},
      logical_to_physical=_PERMUTED, **options)
  with simd.Cores(program) as cores:
    return cores.step({"x": array.reshape(shape.to_integer_list)})["y"]


def renamed(old_and_new):
  def model(tensors):
    x = tensors["x"]
    for old, new in old_and_new:
      x = mtf.rename_dimension(x, old, new)
    return {"y": x}, []
  return model


def test_all_to_all_moves_slices_and_changes_nothing():
  # Split by i, then by j: the second renaming exchanges. 257 and more are no
  # numbers of bfloat16.
  def model(tensors):
    x = tensors["x"]
    return {"y": mtf.reshape(x, mtf.convert_to_shape("whole:8,j:64"))}, []

  shape = mtf.convert_to_shape("i:8,k:64")
  y = run(model, shape, "i:columns,j:columns")
  np.testing.assert_array_equal(
      y.value, np.arange(512).reshape([8, 64]))
  assert y.spread == 0.0
  # The core at (row, column) has a quarter of the columns.
  for logical, physical in enumerate(_PERMUTED):
    column = logical % 4
    np.testing.assert_array_equal(
        y.slices[physical], y.value[:, 16 * column:16 * (column + 1)])


def test_all_to_all_as_it_is_rounds_to_bfloat16():
  def model(tensors):
    return {"y": mtf.reshape(
        tensors["x"], mtf.convert_to_shape("whole:8,j:64"))}, []

  program = simd.build(
      model, "all:4", "i:all,j:all", {"x": (tf.float32, "i:8,k:64")})
  x = np.full([8, 64], 257.0)  # Halfway between 256 and 258.
  for float32_alltoall, expected in ((True, 257.0), (False, 256.0)):
    with simd.Cores(program, float32_alltoall) as cores:
      y = cores.step({"x": x})["y"]
    np.testing.assert_array_equal(y.value, np.full([8, 64], expected))


def test_all_reduce_adds_up_over_its_axis():
  def model(tensors):
    return {"y": mtf.reduce_sum(
        tensors["x"], reduced_dim=mtf.Dimension("i", 8))}, []

  y = run(model, "i:8,j:4", "i:columns,j:rows")
  np.testing.assert_array_equal(
      y.value, np.arange(32).reshape([8, 4]).sum(axis=0))
  assert y.spread == 0.0


def test_all_concat():
  y = run(renamed([("i", "whole")]), "i:8,j:3", "i:columns")
  np.testing.assert_array_equal(y.value, np.arange(24).reshape([8, 3]))
  np.testing.assert_array_equal(y.slices[5], y.value)
  assert y.spread == 0.0


@pytest.mark.parametrize("wrap", [False, True])
def test_permutation(wrap):
  def model(tensors):
    x = tensors["x"]
    return {"y": mtf.shift(x, 3, x.shape.dims[0], wrap)}, []

  y = run(model, "i:8", "i:columns")
  expected = [5, 6, 7, 0, 1, 2, 3, 4] if wrap else [0, 0, 0, 0, 1, 2, 3, 4]
  np.testing.assert_array_equal(y.value, expected)


def test_collectives_in_a_loop_take_the_same_turn():
  def model(tensors):
    x = tensors["x"]
    i, j = x.shape.dims

    def turn(count, x):
      # Everyone's first column becomes the sum of all.
      total = mtf.reduce_sum(x, reduced_dim=i)
      return [count + 1, x + total]

    _, y = mtf.while_loop(
        lambda count, _: mtf.less(count, 3), turn,
        [mtf.constant(x.mesh, 0, dtype=tf.int32), x])
    del j
    return {"y": y}, []

  x = np.arange(16.0).reshape([8, 2])
  expected = x
  for _ in range(3):
    expected = expected + expected.sum(axis=0)
  y = run(model, "i:8,j:2", "i:rows", array=x.astype(np.float32))
  np.testing.assert_array_equal(y.value, expected)


def test_outputs_are_from_before_the_update():
  def model(tensors):
    x = tensors["x"]
    variable = mtf.get_variable(
        x.mesh, "v", x.shape, initializer=tf.zeros_initializer())
    value = variable
    for _ in range(50):  # Reads that come late, if nothing makes them wait.
      value = value * 1.0
    late = mtf.ReadVariable(variable.operation).outputs[0]
    return {"y": value + late}, [mtf.assign(variable, x + late)]

  program = simd.build(
      model, "all:2", "i:all", {"x": (tf.float32, "i:4")})
  x = np.arange(4.0)
  with simd.Cores(program) as cores:
    for step in range(5):
      np.testing.assert_array_equal(
          cores.step({"x": x})["y"].value, 2 * step * x)
    # Only to look changes nothing.
    for _ in range(2):
      np.testing.assert_array_equal(
          cores.step({"x": x}, update=False)["y"].value, 10 * x)
    assert cores.variables()["global_step"] == 5


def test_only_replicated_graphs():
  with pytest.raises(ValueError, match=r"0 replicated computations.*Program"):
    simd.expand(tf.GraphDef())
