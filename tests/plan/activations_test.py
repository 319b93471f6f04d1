"""What a core holds at its peak, by hand."""

import dataclasses

import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.plan import activations
from mtf_moe.plan import step
from tests.plan import plan_test


def peak_of(build, mesh_shape="", layout="", **changes):
  """Of a graph; build takes a function that makes variables."""
  with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    build(lambda name, *dims: mtf.get_variable(mesh, name, mtf.Shape(dims)))
    mesh_shape = mtf.convert_to_shape(mesh_shape)
    impl = mtf.placement_mesh_impl.PlacementMeshImpl(
        mesh_shape, mtf.convert_to_layout_rules(layout), [""] * mesh_shape.size)
  return activations.peak(dataclasses.replace(step.LoweredStep(
      plan_test.configured(), graph, impl, [], [], [], {}), **changes))


ROWS, COLUMNS, OTHERS = (
    mtf.Dimension(name, size) for name, size in
    [("rows", 8), ("columns", 4), ("others", 2)])


def assign(variable, value):
  mtf.assign(variable.operation, value)


def test_peak_of_products_that_are_needed_again():
  def build(variable):
    v, w, u = (variable("v", ROWS, COLUMNS), variable("w", COLUMNS, OTHERS),
               variable("u", ROWS, OTHERS))
    a = mtf.einsum([mtf.exp(v), w], [ROWS, OTHERS])  # 64 bytes.
    b = mtf.einsum([mtf.relu(a), w], [ROWS, COLUMNS])  # 128; relu is not held.
    mtf.einsum([a, w], [ROWS, COLUMNS])  # Nobody needs it.
    c = mtf.reduce_sum(b, output_shape=[ROWS])  # 32; b has no reader after it.
    assign(u, u - mtf.relu(a) * c)
  assert peak_of(build) == 64 + 128 + 32


def test_peak_of_what_only_products_read():
  def build(variable):
    v, w, u = (variable("v", ROWS, COLUMNS), variable("w", COLUMNS, OTHERS),
               variable("u", ROWS, COLUMNS))
    a = mtf.einsum([v, w], [ROWS, OTHERS])  # 64 bytes, 32 as bfloat16.
    b = mtf.einsum([2.0 * a, w], [ROWS, COLUMNS])  # 128.
    assign(u, u + b)
  assert peak_of(build) == 32 + 128


def test_peak_of_products_that_sum_nothing():
  def build(variable):
    v, w, u = (variable("v", ROWS, COLUMNS), variable("w", COLUMNS, OTHERS),
               variable("u", ROWS))
    a = mtf.einsum([v, w], [ROWS, OTHERS])  # 64 bytes.
    b = mtf.einsum([a, v], [ROWS, COLUMNS, OTHERS])  # Not held.
    assign(u, mtf.reduce_sum(b, output_shape=[ROWS]))  # 32.
  assert peak_of(build) == 64 + 32


@pytest.mark.parametrize("rows, columns, held", [
    ("rows", "renamed", 0), ("unsplit", "split", 64)])
def test_peak_of_reshapes(rows, columns, held):
  """One between cores has a result, of 8 * 4 / 2 numbers on one of two."""
  def build(variable):
    v, u = variable("v", ROWS, COLUMNS), variable("u")
    a = mtf.cumsum(v, COLUMNS)  # 64.
    b = mtf.reshape(a, [mtf.Dimension(rows, 8), mtf.Dimension(columns, 4)])
    assign(u, u + mtf.reduce_sum(mtf.exp(b)))  # The sum is another 4.
  peak = peak_of(build, "m:2", "rows:m;split:m")
  assert peak == (64 + held if held else 64 + 4)


def test_peak_of_one_hot_tensors():
  """Those of constants can be made at any time, those of choices are kept."""
  def build(of_choices):
    def graph(variable):
      v, w = variable("v", ROWS, COLUMNS), variable("w", COLUMNS, OTHERS)
      chosen = mtf.top_1(v, COLUMNS)[1] if of_choices else (
          mtf.range(v.mesh, ROWS, tf.int32) // 2)  # 32 bytes, or none.
      mask = mtf.one_hot(chosen, COLUMNS)
      a = mtf.einsum([mask, w], [ROWS, OTHERS])  # 64.
      b = mtf.einsum([a, mask], [COLUMNS, OTHERS])  # 32.
      assign(w, w - b)
    return graph
  # a and the mask, 128 bytes, are read by products only: half as many.
  assert peak_of(build(False)) == 32 + 32
  assert peak_of(build(True)) == 64 + 32 + 32


def test_microbatches_keep_sums_of_gradients():
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  gradient = mtf.zeros(mesh, mtf.Shape([ROWS, COLUMNS]), tf.bfloat16)
  model = dataclasses.replace(plan_test.configured(), num_microbatches=2)
  assert peak_of(lambda variable: None, configured=model,
                 gradients=[gradient]) == 8 * 4 * 2
