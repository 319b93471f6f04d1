"""Mistakes in the program's collectives that the comparison must notice."""

import dataclasses

import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.simd import collectives
from tests.simd import comparison
from tests.simd import parity_test


@pytest.fixture(scope="module", name="compared")
def _compared():
  """A run on 2x2, its program, and what a placement mesh makes of it."""
  run = dataclasses.replace(parity_test.layer_run(2, 2, "sgd"), steps=1)
  return run, run.build(), run.on_placement_mesh()


def _with_groups(program, change):
  """The program with other groups of cores for its all-to-alls."""
  def edit(node, nodes):
    if node.op == "AllToAll":
      table = nodes[node.input[1]].attr["value"].tensor
      table.CopyFrom(tf.make_tensor_proto(
          change(tf.make_ndarray(table).tolist()), tf.int32))
  return _edited(program, edit)


def _edited(program, edit):
  graph_def = tf.GraphDef()
  graph_def.CopyFrom(program.graph_def)
  nodes = {node.name: node for node in graph_def.node}
  for node in graph_def.node:
    edit(node, nodes)
  return dataclasses.replace(program, graph_def=graph_def)


def test_the_program_as_it_is(compared):
  run, program, expected = compared
  actual = run.on_cores(program)
  assert max(comparison.errors(actual, expected).values()) < 1e-6
  assert actual[2] == 0.0


@pytest.mark.parametrize("change", [
    lambda groups: [group[::-1] for group in groups],
    lambda groups: [list(group) for group in zip(*groups)],
], ids=["reversed group", "other mesh axis"])
def test_wrong_groups_of_all_to_alls(compared, change):
  run, program, expected = compared
  errors = comparison.errors(
      run.on_cores(_with_groups(program, change)), expected)
  assert errors["output"] > 0.1


def test_missing_all_reduce_of_a_weights_gradient(compared):
  run, program, expected = compared
  # That of inner_gating/kernel [x1, m, y], each core's groups of experts: it
  # is added up over the axis that splits the second level's tokens.
  (skipped,) = [
      one.name for one in collectives.collectives_of(program)
      if one.kind == collectives.ALL_REDUCE and one.axes == ("outer",)]

  def edit(node, unused_nodes):
    if node.name == skipped:
      node.op = "Identity"
      del node.input[1]

  actual = run.on_cores(_edited(program, edit))
  errors = comparison.errors(actual, expected)
  assert errors["output"] == 0.0
  assert errors["loss"] < 1e-6
  assert errors["gradient"] > 0.1
  assert errors["variable"] > 1e-3
  assert actual[2] > 1e-3  # The spread.
