"""What mtf asks of operations: of their gradients, and of tensors' names."""

import collections
import dataclasses
import functools
import types

import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import operations
from mtf_moe.hparams import DISPATCHES
from tests import harness

DEPTH = mtf.Dimension("d_model", 6)
DIMS = [mtf.Dimension("batch", 4), mtf.Dimension("length", 8), DEPTH]

GATINGS = ("top_2", "top_n", "switch", "switch_max", "ntlb", "expert_selection",
           "group_limited")


def graph_of_layer(with_gradients=True, **hparams):
  """The mtf graph of a layer in training, with all its parts."""
  with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    inputs = mtf.import_tf_tensor(
        mesh, tf.zeros([dim.size for dim in DIMS]), mtf.Shape(DIMS))
    outputs, loss = mtf_moe.transformer_moe_layer_v2(
        inputs, DEPTH, mtf_moe.MoeHparams(**{
            "moe_num_experts": (2, 2), "moe_hidden_size": 8,
            "moe_z_loss": 0.1, "moe_use_second_place_loss": True,
            "moe_word_embed_mode": "add", "moe_dropout_rate": 0.5,
            "moe_top_n_num_experts_per_token": 2, "moe_ntlb_top_k": 2,
            "moe_limited_num_groups": 2, **hparams}),
        True, harness.variable_dtype(), token_embeddings=inputs,
        nonpadding=mtf.ones(mesh, inputs.shape[:-1]))
    if with_gradients:
      mtf.gradients(
          [mtf.reduce_sum(outputs) + loss],
          [inputs, *(v.outputs[0] for v in graph.trainable_variables)])
  return graph


def held_by(value):
  """The mtf Tensors that a function, or any other value, holds."""
  if isinstance(value, mtf.Tensor):
    return [value]
  if isinstance(value, functools.partial):
    parts = [value.func, *value.args, *value.keywords.values()]
  elif isinstance(value, types.MethodType):
    parts = [value.__self__, value.__func__]
  elif isinstance(value, types.FunctionType):
    parts = [cell.cell_contents for cell in value.__closure__ or ()]
    parts += value.__defaults__ or ()
  elif isinstance(value, collections.abc.Mapping):
    parts = value.values()
  elif isinstance(value, (list, tuple, set)):
    parts = value
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    parts = vars(value).values()
  else:
    parts = []
  return [tensor for part in parts for tensor in held_by(part)]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("gating", [*GATINGS, ("top_2", "switch")], ids=str)
@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_no_gradient_holds_a_tensor(dispatch, gating, activation):
  """A copy of the operation would use the tensor of the original."""
  graph = graph_of_layer(moe_dispatch=dispatch, moe_gating=gating,
                         moe_activation=activation)
  gradients = [op for op in graph.operations
               if callable(getattr(op, "_grad_function", None))]
  assert len(gradients) > 10
  assert not {op.name: found for op in gradients
              if (found := held_by(op._grad_function))}


def test_what_holds_a_tensor_is_found():
  @dataclasses.dataclass
  class Table:
    numbers: mtf.Tensor

  x = mtf.zeros(mtf.Mesh(mtf.Graph(), "mesh"), mtf.Shape([]))
  table = Table(x)

  def outer():
    return table

  for value in (lambda op, grad: x, lambda op, grad, x=x: x, lambda: outer,
                functools.partial(max, x), [{"table": table}]):
    assert held_by(value) == [x]
  assert not held_by(graph_of_layer)


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_every_tensor_has_a_name_of_its_own(dispatch, gating, with_gradients):
  graph = graph_of_layer(
      with_gradients, moe_dispatch=dispatch, moe_gating=gating)
  names = collections.Counter(
      tensor.name for op in graph.operations for tensor in op.outputs)
  assert not {name for name, count in names.items() if count > 1}


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_auto_mtf_finds_a_layout(dispatch):
  """Its estimate of memory frees tensors by their names, each of them once."""
  auto_mtf = pytest.importorskip(
      "mesh_tensorflow.auto_mtf", reason="it needs ortools")
  graph = graph_of_layer(moe_dispatch=dispatch)
  assert auto_mtf.layout(graph, "all:2", [graph.operations[-1].outputs[0]])


def test_tied_tensors_get_a_gradient():
  dims = mtf.Shape([mtf.Dimension("x", 3)])

  def build(tensors):
    y = operations.with_zero_gradients(
        tensors["x"], [tensors["other"], mtf.cast(tensors["other"], tf.int32)])
    return [y, *mtf.gradients([y], [tensors["x"], tensors["other"]])]

  y, of_x, of_other = harness.evaluate(
      build, {"x": ([1, 2, 3], dims.dims), "other": ([4, 5, 6], dims.dims)},
      None)
  assert y.tolist() == [1, 2, 3]
  assert of_x.tolist() == [1, 1, 1] and of_other.tolist() == [0, 0, 0]
