"""Arguments in all usual ways, and what is said of others."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import arguments

F32, BF16 = tf.float32, tf.bfloat16
BATCH, LENGTH, DEPTH = (
    mtf.Dimension(*dim) for dim in (("batch", 4), ("length", 8), ("d", 6)))


@pytest.mark.parametrize("given, parts, expected", [
    # mtf takes one type for all three.
    (F32, {}, (F32, F32, F32)),
    ("bfloat16", {}, (BF16, BF16, BF16)),
    (np.float32, {}, (F32, F32, F32)),
    (mtf.VariableDType(BF16, F32, BF16), {}, (BF16, F32, BF16)),
    # Without any, it takes float32, and the type of what is multiplied.
    (None, {}, (F32, F32, BF16)),
    (None, {"master_dtype": BF16, "slice_dtype": F32}, (BF16, F32, BF16)),
    (None, {"master_dtype": "bfloat16"}, (BF16, BF16, BF16)),
    (None, {"slice_dtype": BF16}, (F32, BF16, BF16)),
    (None, {"activation_dtype": F32}, (F32, F32, F32)),
])
def test_types_of_variables(given, parts, expected):
  parts = {"master_dtype": None, "slice_dtype": None, "activation_dtype": None,
           **parts}
  found = arguments.variable_dtype(given, **parts, inputs_dtype=BF16)
  assert (found.master_dtype, found.slice_dtype,
          found.activation_dtype) == expected


@pytest.mark.parametrize("arguments_given, said", [
    ((tf.int32, None, None, None), "variable_dtype = tf.int32 is no type"),
    (("float", "f", None, None), "'float' already says what master_dtype says"),
    ((3.5, None, None, None), "variable_dtype = 3.5 is no type.*VariableDType"),
    ((None, "flaot", None, None), "master_dtype = 'flaot' is no type"),
    ((None, F32, tf.bool, None), "slice_dtype = tf.bool is no type"),
    ((None, None, None, int), "activation_dtype = <class 'int'> is no type"),
    ((mtf.VariableDType(F32), F32, BF16, None),
     "already says what master_dtype, slice_dtype says: pass one"),
])
def test_mistaken_types(arguments_given, said):
  with pytest.raises(ValueError, match=said):
    arguments.variable_dtype(*arguments_given, inputs_dtype=F32)


LAYOUT = [("batch", "inner"), ("expert_x", "outer")]
MESH = [("outer", 2), ("inner", 4)]


@pytest.mark.parametrize("given", [
    LAYOUT, [list(pair) for pair in LAYOUT], tuple(LAYOUT), set(LAYOUT),
    dict(LAYOUT), "batch:inner,expert_x:outer", "batch:inner;expert_x:outer",
    mtf.LayoutRules(LAYOUT)])
def test_layouts(given):
  assert arguments.layout_rules(given)._pairs == set(LAYOUT)


@pytest.mark.parametrize("given", [
    MESH, [list(pair) for pair in MESH], dict(MESH), "outer:2,inner:4",
    [("outer", np.int64(2)), ("inner", np.int32(4))],
    [mtf.Dimension(*pair) for pair in MESH],
    mtf.Shape([mtf.Dimension(*pair) for pair in MESH])])
def test_mesh_shapes(given):
  found = arguments.mesh_shape(given)
  assert [(dim.name, dim.size) for dim in found.dims] == MESH


def test_without_layout_nothing_is_split():
  assert arguments.layout_rules(None)._pairs == set()
  assert arguments.mesh_shape(None).size == 1
  assert arguments.layout_rules("")._pairs == set()


@pytest.mark.parametrize("convert, given, said", [
    (arguments.layout_rules, "batch=inner", "layout = 'batch=inner' is not"),
    (arguments.layout_rules, [("batch", "inner", "x")], "layout = .*not und"),
    (arguments.layout_rules, 3, "layout = 3 is not understood: pass \"batch:"),
    (arguments.layout_rules, ["batch:inner"], "layout = .*not understood"),
    (arguments.layout_rules, [("batch", None)], "layout = .*not understood"),
    (arguments.mesh_shape, "outer:two", "mesh_shape = 'outer:two' is not"),
    (arguments.mesh_shape, 8, "mesh_shape = 8 is not understood: pass \"outer"),
    (arguments.mesh_shape, [2, 4], "mesh_shape = .2, 4. is not understood"),
    (arguments.mesh_shape, {"outer": "2"}, "mesh_shape = .*not understood"),
    (arguments.mesh_shape, [("outer", True)], "mesh_shape = .*not understood"),
])
def test_mistaken_layouts_and_meshes(convert, given, said):
  with pytest.raises(ValueError, match=said):
    convert(given)


def test_padding_that_does_not_fit():
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  inputs = mtf.zeros(mesh, mtf.Shape([BATCH, LENGTH, DEPTH]))
  longer = mtf.Dimension("length", 9)
  for given in (
      mtf.zeros(mesh, mtf.Shape([BATCH, longer])), np.ones(4), "ones", [1],
      mtf.zeros(mesh, mtf.Shape([BATCH, LENGTH, DEPTH]))):
    with pytest.raises(ValueError, match=r"nonpadding = .* is neither a num"):
      arguments.nonpadding(given, inputs)
