"""The router that looks at ids only."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import token_ids
from mtf_moe.gating import hash_router
from tests import harness

NUM_EXPERTS = (4, 4)
IDS = np.random.default_rng(0).integers(0, 2 ** 31, size=(2, 2, 16))
IDS[0, 0, :4] = [0, 1, 255, 2 ** 31 - 1]
DIMS = [mtf.Dimension(*dim) for dim in (
    ("outer_batch", 2), ("batch", 2), ("length", 16))]
DEPTH = mtf.Dimension("m", 16)


def hashed(number, seed):
  """The hash in plain integers."""
  mask = 2 ** 31 - 1
  number = (number + seed) & mask
  for shift, factor in ((16, 0x05ebca6b), (13, 0x42b2ae35)):
    number = ((number ^ (number >> shift)) * factor) & mask
  return number ^ (number >> 16)


def shares(mesh=(1, 1), dtype=tf.float32, ids=IDS, **settings):
  """The share of each of 16 experts in each token's result [2, 2, 16, 16]."""
  impl = harness.mesh_impl(*mesh)

  def build(tensors):
    given = mtf.import_fully_replicated(
        tensors["inputs"].mesh, tf.constant(ids, tf.int32), mtf.Shape(DIMS),
        "ids")
    return mtf_moe.transformer_moe_layer_v2(
        tensors["inputs"], DEPTH,
        {"moe_num_experts": NUM_EXPERTS, "moe_gating": "hash",
         "moe_min_expert_capacity": 64, **settings}, True,
        layout=impl.layout_rules, mesh_shape=impl.shape, token_ids=given,
        experts=harness.numbered_experts(*NUM_EXPERTS))[0]

  inputs = np.random.default_rng(0).normal(size=(*IDS.shape, DEPTH.size))
  return harness.evaluate(
      build, {"inputs": (inputs, [*DIMS, DEPTH])}, None, impl, dtype)


@pytest.mark.parametrize("how", [
    {}, {"mesh": (2, 2)}, {"dtype": tf.bfloat16}, {"moe_dispatch": "index"},
    {"moe_hash_seed": 7}], ids=["plain", "mesh", "bfloat16", "index", "seed"])
def test_the_hash_chooses_at_both_levels(how):
  seed = how.get("moe_hash_seed", 1)
  expected = np.zeros([*IDS.shape, 16])
  for place, number in np.ndenumerate(IDS):
    x = hashed(int(number), seed) % 4
    y = hashed(int(number), (seed + 0x1e3779b9) & (2 ** 31 - 1)) % 4
    expected[(*place, 4 * x + y)] = 1.0
  np.testing.assert_array_equal(shares(**how), expected)
  assert (expected.sum(axis=(0, 1, 2)) > 0).all()  # Of 64 ids.


def test_it_spreads_usual_ids():
  """As chance would: 32,000 ids, 16 experts, 2,000 each give or take 150."""
  for seed in (1, 2, 1 + 0x1e3779b9):
    with tf.Graph().as_default(), tf.Session() as session:
      numbers = session.run(hash_router.hashed(
          tf.range(32_000, dtype=tf.int64), seed))
    np.testing.assert_allclose(
        np.bincount(numbers % 16, minlength=16), 2_000, atol=150)


def test_rows_are_exact_in_bfloat16():
  dim = mtf.Dimension("ids", 5)
  ids = [0, 1, 255, 256 * 255 + 3, 2 ** 31 - 1]

  def build(tensors):
    given = mtf.import_fully_replicated(
        tensors["any"].mesh, tf.constant(ids), mtf.Shape([dim]), "ids")
    found = token_ids.of_rows(token_ids.as_rows(given, tf.bfloat16))
    return mtf.to_float(mtf.equal(found, given))

  np.testing.assert_array_equal(
      harness.evaluate(build, {"any": ([0.0], [mtf.Dimension("one", 1)])},
                       None), [1.0] * 5)


def test_nothing_is_learned():
  with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    mtf_moe.transformer_moe_layer_v1(
        mtf.zeros(mesh, [*DIMS[1:], DEPTH]), DEPTH, {"moe_gating": "hash"},
        True, token_ids=mtf.zeros(mesh, DIMS[1:], tf.int32))
  assert {v.name for v in graph.all_variables} == {"wi/kernel", "wo/kernel"}


@pytest.mark.parametrize("given, said", [
    (None, "moe_gating = 'hash' chooses by the ids of tokens, and the layer is "
     "given none: pass token_ids"),
    (mtf.Dimension("batch", 2), "token_ids = Dimension.* is no integer"),
])
def test_without_ids(given, said):
  with tf.Graph().as_default(), pytest.raises(ValueError, match=said):
    mtf_moe.transformer_moe_layer_v1(
        mtf.zeros(mtf.Mesh(mtf.Graph(), "mesh"), [*DIMS[1:], DEPTH]), DEPTH,
        {"moe_gating": "hash"}, True, token_ids=given)
