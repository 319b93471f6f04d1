"""Ways in which programs call the layer, against the reference's usual way."""

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from tests import harness
from tests.oracle import comparison
from tests.oracle.case import Case

CASE = Case(shape=(4, 8), experts=(2, 2))
OUTER, BATCH, LENGTH = (
    mtf.Dimension(*dim)
    for dim in (("outer_batch", 2), ("batch", 4), ("length", 8)))
LEFT_OUT = object()
DEPTH = comparison.output_dim(CASE)


def run(ours, theirs, inputs=None, dtype=tf.float32, mesh=(1, 1)):
  """Runs our layer and the reference's, and sees that they are equal.

  Args:
    ours: arguments of our layer that differ from the usual, or a function from
      the inputs to them. With "inputs", other ones.
    theirs: those of the reference's.
    inputs: the Dimensions of the inputs without their depth, by default those
      of CASE.
    dtype: the type of the inputs.
    mesh: the size of the mesh.
  """
  impl = harness.mesh_impl(*mesh)
  dims = inputs or [BATCH, LENGTH]

  def layer(function, arguments):
    def call(tensors):
      x = tensors["inputs"]
      given = arguments(x) if callable(arguments) else arguments
      usual = {
          "inputs": x, "output_dim": DEPTH, "hparams": CASE.hparams(),
          "train": True, "variable_dtype": harness.variable_dtype(dtype),
          "layout": impl.layout_rules, "mesh_shape": impl.shape,
          "nonpadding": mtf.ones(x.mesh, x.shape[:-1], dtype)}
      y, loss = function(**{
          name: value for name, value in {**usual, **given}.items()
          if value is not LEFT_OUT})
      return mtf.reshape(y, [*x.shape.dims[:-1], DEPTH]), loss
    return call

  values = np.random.default_rng(0).integers(
      -9, 9, size=[*(dim.size for dim in dims), CASE.depth]) / 8
  results = harness.run_layers(
      {"ours": layer(mtf_moe.transformer_moe_layer_v2, ours),
       "theirs": layer(moe.transformer_moe_layer_v2, theirs)},
      {"inputs": (values, [*dims, DEPTH])}, impl, CASE.weights, dtype)
  ours, theirs = results["ours"], results["theirs"]
  assert ours.variables == theirs.variables
  for name in ("output", "loss", "input_gradient"):
    np.testing.assert_array_equal(
        getattr(ours, name), getattr(theirs, name), err_msg=name)
  for name, gradient in theirs.gradients.items():
    np.testing.assert_array_equal(ours.gradients[name], gradient, err_msg=name)


@pytest.mark.parametrize("dtype", [tf.float32, None], ids=str)
def test_types_of_variables(dtype):
  """GPTSAN and gpt-neo pass one type; the reference takes None, too."""
  run({"variable_dtype": LEFT_OUT if dtype is None else dtype},
      {"variable_dtype": dtype}, dtype=tf.bfloat16)


def test_parts_of_the_types_of_variables():
  """tensor2tensor's way: each weight is in the type of what it multiplies.

  As its layer passed them to mtf.layers.dense.
  """
  parts = {"master_dtype": tf.bfloat16, "slice_dtype": tf.float32}
  with pytest.MonkeyPatch.context() as patch:
    dense = mtf.layers.dense
    patch.setattr(moe.mtf.layers, "dense", lambda *args, **kwargs: dense(
        *args, **{**kwargs, **(
            parts if kwargs["variable_dtype"] is None else {})}))
    run({"variable_dtype": LEFT_OUT, **parts}, {"variable_dtype": None},
        dtype=tf.bfloat16)


@pytest.mark.parametrize("activation", ["relu", mtf.relu])
def test_activation(activation):
  run({"activation": activation,
       "hparams": CASE.hparams(moe_activation="gelu")}, {})


def test_gated_activation():
  """The reference has none in two levels."""
  with tf.Graph().as_default():
    graph = mtf.Graph()
    x = mtf.zeros(mtf.Mesh(graph, "mesh"), mtf.Shape([BATCH, LENGTH, DEPTH]))
    mtf_moe.transformer_moe_layer_v2(
        x, DEPTH, CASE.hparams(), True, activation=["gelu", "linear"])
  assert {v.name for v in graph.trainable_variables} >= {
      "wi_0/kernel", "wi_1/kernel"}


@pytest.mark.parametrize("dims", [[BATCH], [OUTER, BATCH]], ids=str)
def test_single_positions(dims):
  one = mtf.Dimension("length", 1)
  run({}, lambda x: {
      "inputs": mtf.reshape(x, [*dims, one, DEPTH]),
      "nonpadding": mtf.ones(x.mesh, mtf.Shape([*dims, one]))}, inputs=dims)


@pytest.mark.parametrize("ours", [
    {"nonpadding": 1},
    lambda x: {"nonpadding": mtf.ones(x.mesh, mtf.Shape([LENGTH]), tf.int32)},
    lambda x: {"nonpadding": mtf.cast(
        mtf.ones(x.mesh, mtf.Shape([LENGTH, BATCH])), tf.bool)}])
def test_padding(ours):
  run(ours, {"nonpadding": 1})


def test_all_is_padding():
  run({"nonpadding": 0}, {"nonpadding": 0})


def test_hyperparameters_in_a_mapping():
  run({"hparams": vars(CASE.hparams())}, {})


def test_layouts():
  run({"layout": [rule.split(":") for rule in
                  harness.CANONICAL_LAYOUT.split(",")],
       "mesh_shape": {"outer": 1, "batch": 2}}, {}, mesh=(1, 2))


def test_dense_gating_takes_a_mapping():
  dims = [mtf.Dimension(name, size) for name, size in (
      ("experts", 2), ("capacity", 3))]

  def build(tensors):
    x = tensors["inputs"]
    return [function(
        x, None, *dims, hparams, True, tf.float32, name="gating",
        importance=mtf.ones(x.mesh, x.shape[:-1])) for function, hparams in (
            (mtf_moe._top_2_gating, vars(CASE.hparams())),
            (moe._top_2_gating, CASE.hparams()))]

  inputs = np.random.default_rng(0).normal(size=(4, 8, CASE.depth))
  ours, theirs = harness.evaluate(
      build, {"inputs": (inputs, [BATCH, LENGTH, DEPTH])}, CASE.weights)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(a, b)
