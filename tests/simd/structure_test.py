"""What the cores tell each other, and that XLA takes their program.

Meshes up to 16x16, at the sizes of a real model:

    scripts/test.sh -m slow tests/simd/structure_test.py
"""

import collections
import math

import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import simd
from mtf_moe.simd import collectives
from tests.simd import models
from tests.simd import parity_test

# Passes of the layer: the optimizer, whether the inputs are differentiated, and
# how often the tokens' depth (m) and the results' (n) travel at each level.
# Forward, tokens go and results come back. Backward, the gradients of results
# go the same way as tokens; only the inputs' gradient needs those of tokens to
# come back. The choice of experts needs none of them.
PASSES = {
    "forward": ("none", False, 1, 1),
    "training": ("sgd", False, 1, 2),
    "training, inputs too": ("sgd", True, 2, 2),
}
_KIB = 2**10


def layer_program(rows, columns, optimizer="sgd", input_gradient=True,
                  dispatch="einsum", **changed):
  case = models.case_on(rows, columns, **{"group_size": 8, **changed})
  return case, simd.build(
      models.layer_model(case, optimizer, input_gradient,
                         moe_dispatch=dispatch),
      models.mesh_shape(case), case.layout, models.layer_signature(case))


def expected_bytes(case, num_m, num_n):
  """What a core contributes to all-to-alls: 2 bytes for each element.

  By hand, for a case in which groups have the size asked for and the layout is
  the canonical one; SimdMeshImpl sends float32 as bfloat16.
  """
  (a, b, l), (rows, columns), (x, y) = case.shape, case.mesh, case.experts
  m, size = case.depth, case.group_size
  groups = b * l // size
  capacity = int(size * case.capacity_factors[0] / x)
  at_first = x * (a // rows) * (groups // columns) * capacity
  groups = a * groups * capacity // size
  capacity = int(size * case.capacity_factors[1] / y)
  at_second = (x // columns) * y * (groups // rows) * capacity
  importance = at_first
  return 2 * (importance + (num_m + num_n) * m * (at_first + at_second))


@pytest.mark.parametrize("dispatch", ["einsum", "index"])
@pytest.mark.parametrize("name", PASSES)
def test_all_to_alls_are_the_fewest_and_smallest(name, dispatch):
  optimizer, input_gradient, num_m, num_n = PASSES[name]
  case, program = layer_program(2, 2, optimizer, input_gradient, dispatch)
  found = simd.collectives_of(program)
  exchanges = [one for one in found if one.kind == collectives.ALL_TO_ALL]
  # Twice for the two levels, and the importance of slots once.
  assert len(exchanges) == 2 * (num_m + num_n) + 1
  assert {one.kind for one in found} == {
      collectives.ALL_TO_ALL, collectives.ALL_REDUCE}
  # 16 slots at the first level, 16 at the second, of depth 6, for each core.
  assert expected_bytes(case, 1, 1) == 2 * (16 + 2 * 6 * 32)
  assert sum(one.num_bytes for one in exchanges) == expected_bytes(
      case, num_m, num_n)


def _counted(program):
  """How many collectives of each kind and axes."""
  return {key: number for key, (number, _) in simd.totals(
      simd.collectives_of(program)).items()}


def test_number_does_not_grow_with_the_mesh():
  sizes = {"shape": (4, 8, 8), "experts": (8, 4)}
  _, small = layer_program(2, 2, "adafactor", **sizes)
  _, large = layer_program(4, 4, "adafactor", **sizes)
  assert _counted(small) == _counted(large)


def test_counters_of_mtf_agree():
  case, program = layer_program(2, 2)
  counted = sum(number for name, number in program.counters
                if name.startswith("alltoall"))
  # Elements over all cores.
  assert counted * 2 == math.prod(case.mesh) * sum(
      one.num_bytes for one in simd.collectives_of(program)
      if one.kind == collectives.ALL_TO_ALL)


@pytest.mark.parametrize("dispatch", ["einsum", "index"])
def test_compiles(dispatch):
  case, program = layer_program(2, 2, "adafactor", dispatch=dispatch)
  assert simd.dynamic_shapes(program) == []
  outputs, _ = simd.compile_and_run(program, models.layer_feeds(case))
  assert outputs["output"].shape == (1, 2, 8, 6)


def test_compiles_with_options():
  program = parity_test.layer_run(
      2, 2, "sgd", moe_fill_order="gate", moe_shared_hidden_size=8,
      moe_dispatch="index").build()
  assert simd.dynamic_shapes(program) == []
  simd.compile_and_run(program)


def test_compiles_with_microbatches():
  program = parity_test.layer_run(2, 2, "sgd", 2).build()
  assert simd.dynamic_shapes(program) == []
  simd.compile_and_run(program)


def test_transformer_has_no_all_concat_either():
  program = parity_test.transformer_run(2, 2, "sgd", summaries=False).build()
  kinds = collections.Counter(
      one.kind for one in simd.collectives_of(program))
  # Nine for each of the two layers, whose inputs are differentiated.
  assert kinds[collectives.ALL_TO_ALL] == 18
  assert kinds[collectives.ALL_CONCAT] == 0


def test_dynamic_shapes_are_found():
  def model(tensors):
    x = tensors["x"]
    return {"y": mtf.slicewise(
        lambda t: tf.reshape(tf.boolean_mask(t, t > 0), [8]), [x],
        splittable_dims=[])}, []

  program = simd.build(model, "all:1", "", {"x": (tf.float32, "length:8")})
  assert any("boolean_mask" in name for name in simd.dynamic_shapes(program))


def test_all_concat_and_its_axis_are_found():
  def model(tensors):
    x = tensors["x"]
    return {"y": mtf.reshape(x, [mtf.Dimension("whole", 8)])}, []

  program = simd.build(
      model, "rows:2,columns:4", "length:columns",
      {"x": (tf.float32, "length:8")}, logical_to_physical=range(7, -1, -1))
  (found,) = simd.collectives_of(program)
  assert (found.kind, found.axes, found.group_size) == (
      collectives.ALL_CONCAT, ("columns",), 4)
  # Each core adds its two elements, among zeros, to all eight.
  assert (found.shape, found.num_bytes, found.sent_bytes) == ((8,), 32, 48.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_large_meshes(size, name):
  optimizer, input_gradient, num_m, num_n = PASSES[name]
  case, program = layer_program(
      size, size, optimizer, input_gradient, dtype=tf.bfloat16,
      shape=(size, 8 * size, 1024), depth=1024, group_size=1024,
      experts=(2 * size, 2 * size), factors=(1.25, 2.0, 1.0),
      importance="ones")
  exchanges = [one for one in simd.collectives_of(program)
               if one.kind == collectives.ALL_TO_ALL]
  assert len(exchanges) == 2 * (num_m + num_n) + 1
  assert sum(one.num_bytes for one in exchanges) == expected_bytes(
      case, num_m, num_n)
  # Every core has 8192 tokens, whatever the mesh: 10240 slots of 1024 numbers
  # at each level, and as many of importance.
  assert expected_bytes(case, num_m, num_n) == (
      20 + (num_m + num_n) * 2 * 20 * _KIB) * _KIB
  assert simd.dynamic_shapes(program) == []
