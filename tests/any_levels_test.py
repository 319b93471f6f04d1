"""The layer of any number of levels: three, most of all."""

import collections
import functools

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import layer_records
from mtf_moe import levels
from mtf_moe import mesh_split
from tests import harness

DEPTH = mtf.Dimension("d_model", 6)
DIMS = [mtf.Dimension(*dim) for dim in (
    ("batch_3", 2), ("outer_batch", 2), ("batch", 4), ("length", 4))]
AXES = ["first", "second", "third"]
CANONICAL = ("batch_3:first,outer_batch:second,batch:third,"
             "expert_1:third,expert_2:second,expert_3:first")
# Slots for all, and groups of 4 tokens, so that the mesh makes no difference.
ROOM_FOR_ALL = {
    "moe_hidden_size": 8, "moe_group_size": 4, "moe_min_expert_capacity": 1,
    "moe_capacity_factor_train": 8.0, "moe_capacity_factor_second_level": 8.0,
    "moe_second_policy_train": "all"}


def mesh_impl(*sizes, layout=CANONICAL):
  shape = mtf.Shape([mtf.Dimension(*dim) for dim in zip(AXES, sizes)])
  return mtf.placement_mesh_impl.PlacementMeshImpl(
      shape, mtf.convert_to_layout_rules(layout), [""] * shape.size)


def weights(name, shape):
  return harness.random_weights(name, shape) * (
      1.0 if "gating" in name else shape[-2] ** -0.5)


def run(impl, level_list=(4, 2, 2), dims=None, **hparams):
  """Runs the layer in training on random inputs."""
  dims = dims or DIMS

  def layer(tensors):
    return mtf_moe.transformer_moe_layer(
        tensors["inputs"], DEPTH, {**ROOM_FOR_ALL, **hparams}, True,
        harness.variable_dtype(), layout=impl.layout_rules,
        mesh_shape=impl.shape, levels=level_list)

  shape = [dim.size for dim in [*dims, DEPTH]]
  inputs = np.random.default_rng(0).normal(size=shape)
  return harness.run_layers(
      {"layer": layer}, {"inputs": (inputs, [*dims, DEPTH])}, impl,
      weights)["layer"]


def test_names():
  assert levels.canonical_layout(3, AXES) == CANONICAL
  assert levels.canonical_layout(2, ["outer", "inner"]) == (
      "outer_batch:outer,batch:inner,expert_x:inner,expert_y:outer")
  assert levels.canonical_layout(1, ["all"]) == "batch:all,experts:all"
  variables = run(mesh_impl()).variables
  assert {name: dict(dims) for name, dims in variables.items()} == {
      "gating_1/kernel": {"d_model": 6, "expert_1_unsplit": 4},
      "gating_2/kernel": {"expert_1": 4, "d_model": 6, "expert_2_unsplit": 2},
      "gating_3/kernel": {"expert_2": 2, "expert_1": 4, "d_model": 6,
                          "expert_3_unsplit": 2},
      "wi/kernel": {"expert_3": 2, "expert_2": 2, "expert_1": 4, "d_model": 6,
                    "expert_hidden": 8},
      "wo/kernel": {"expert_3": 2, "expert_2": 2, "expert_1": 4,
                    "expert_hidden": 8, "d_model": 6}}


@functools.cache
def on_one_slice(dispatch):
  return run(mesh_impl(), moe_dispatch=dispatch)


@pytest.mark.parametrize("sizes, layout, dispatch", [
    ((2, 2, 2), CANONICAL, "index"),
    ((1, 2, 2), CANONICAL, "einsum"),
    ((2, 1, 1), CANONICAL, "einsum"),
    # Fewer axes than levels: one of them is split by the depth on its way.
    ((2, 2, 1), "outer_batch:first,batch:second,expert_1:second,"
                "expert_2:first", "index"),
    ((1, 2, 2), "batch:third,expert_1:third,d_model_split:second", "einsum"),
    ((1, 2, 2), "batch:third,expert_1:third,d_model_split:second", "index")],
                         ids=str)
def test_the_mesh_makes_no_difference(sizes, layout, dispatch):
  expected = on_one_slice(dispatch)
  actual = run(mesh_impl(*sizes, layout=layout), moe_dispatch=dispatch)
  assert np.abs(expected.output).max() > 0.1
  np.testing.assert_allclose(actual.output, expected.output, atol=1e-5)
  np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-5)
  for name, gradient in expected.gradients.items():
    np.testing.assert_allclose(
        actual.gradients[name], gradient, err_msg=name, rtol=0,
        atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("batch_dims, sizes", [(1, (1, 2, 2)), (2, (2, 1, 2))])
def test_batch_dimensions_that_are_not_there(batch_dims, sizes):
  """What the outermost levels lack is of size 1."""
  dims = [mtf.Dimension("outer_batch", 4), mtf.Dimension("batch", 4),
          mtf.Dimension("length", 4)]
  if batch_dims == 1:
    dims = [mtf.Dimension("batch", 16), dims[-1]]
  expected = on_one_slice("einsum")
  actual = run(mesh_impl(*sizes), dims=dims, moe_dispatch="einsum")
  np.testing.assert_allclose(
      actual.output.ravel(), expected.output.ravel(), atol=1e-5)


def shares(level_list, **hparams):
  """The share of each expert in each token, and the tokens, [n, m]."""
  number = int(np.prod(level_list))

  def experts(inputs, output_dim, expert_dims, *unused_args):
    # Numbered from the first level; `expert_dims` has the last level first.
    sizes = [dim.size for dim in expert_dims]
    numbers = np.eye(number).reshape([*reversed(sizes), number])
    order = [*reversed(range(len(sizes))), len(sizes)]
    table = mtf.import_fully_replicated(
        inputs.mesh, tf.constant(numbers.transpose(order), inputs.dtype),
        mtf.Shape([*expert_dims, output_dim]), "numbers")
    return table + mtf.zeros(
        inputs.mesh, mtf.Shape([*inputs.shape.dims[:-1], output_dim]),
        inputs.dtype)

  tokens = np.random.default_rng(0).normal(size=[4, 8, 6])
  dims = [mtf.Dimension("batch", 4), mtf.Dimension("length", 8), DEPTH]

  def build(tensors):
    outputs, _ = mtf_moe.transformer_moe_layer(
        tensors["inputs"], mtf.Dimension("number", number),
        {**ROOM_FOR_ALL, **hparams}, True, experts=experts, levels=level_list)
    return outputs

  found = harness.evaluate(build, {"inputs": (tokens, dims)}, weights)
  return found.reshape([-1, *level_list]), tokens.reshape([-1, 6])


def gates_of(tokens, level_list):
  """The gates of all routers: [n, x], [n, x, y], [n, x, y, z], ..."""
  found, above = [], []
  for number, size in enumerate(level_list, 1):
    kernel = weights(f"gating_{number}/kernel", [*reversed(above), 6, size])
    # The nearest level above is the first dimension.
    kernel = kernel.transpose(
        [*reversed(range(len(above))), len(above), len(above) + 1])
    logits = np.tensordot(tokens, kernel, [[1], [len(above)]])
    exponentials = np.exp(logits)
    found.append(exponentials / exponentials.sum(axis=-1, keepdims=True))
    above.append(size)
  return found


def largest(gates, rank=0):
  """The gates, with zeros for all but the one of this rank."""
  wanted = np.sort(gates, axis=-1)[..., -1 - rank, None]
  return gates * (gates == wanted)


@pytest.mark.parametrize("level_list", [(3, 2, 2), (2, 2, 2, 3)], ids=str)
def test_the_likeliest_expert_of_the_likeliest_group_of_the_likeliest(
    level_list):
  found, tokens = shares(
      level_list, moe_gating="switch", moe_switch_policy_train="argmax")
  expected = 1.0
  for gates in gates_of(tokens, level_list):
    expected = np.asarray(expected)[..., None] * largest(gates)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_two_choices_at_every_level():
  """Eight experts a token, where every choice counts in full below."""
  found, tokens = shares((3, 3, 3), moe_importance_below="full")
  expected = 1.0
  for gates in gates_of(tokens, (3, 3, 3)):
    both = largest(gates) + largest(gates, 1)
    both /= both.sum(axis=-1, keepdims=True)
    expected = np.asarray(expected)[..., None] * both
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert ((found > 0).sum(axis=(1, 2, 3)) == 8).all()


def test_a_level_of_one_expert_changes_nothing():
  """Above the two-level layer of the reference's names and dimensions."""
  level_list = [
      mtf_moe.Level(experts=1, router="switch", group_size=4,
                    switch_policy_train="argmax", capacity_factor_train=1.0,
                    min_expert_capacity=1),
      *(mtf_moe.Level(experts=experts, group_size=8, min_expert_capacity=1,
                      capacity_factor_train=1.0,
                      second_policy_train="threshold")
        for experts in (4, 2))]

  def three(tensors):
    return mtf_moe.transformer_moe_layer(
        tensors["inputs"], DEPTH, {"moe_hidden_size": 8}, True,
        levels=level_list)

  def two(tensors):
    dims = [DIMS[0], DIMS[1], mtf.Dimension("length", 16), DEPTH]
    outputs, loss = mtf_moe.transformer_moe_layer(
        mtf.reshape(tensors["inputs"], dims), DEPTH, {"moe_hidden_size": 8},
        True, levels=level_list[1:])
    return mtf.reshape(outputs, tensors["inputs"].shape), loss

  def same_weights(name, shape):
    for mine, theirs in (("gating_2", "outer_gating"),
                         ("gating_3", "inner_gating")):
      name = name.replace(mine, theirs)
    squeezed = [size for number, size in enumerate(shape)
                if not ("kernel" in name and size == 1 and number < 3)]
    return weights(name, squeezed).reshape(shape)

  results = harness.run_layers(
      {"three": three, "two": two},
      {"inputs": (np.random.default_rng(0).normal(size=(2, 2, 4, 4, 6)),
                  [*DIMS, DEPTH])}, mesh_impl(), same_weights)
  three, two = results["three"], results["two"]
  np.testing.assert_array_equal(three.output, two.output)
  assert (np.abs(two.output).max(axis=-1) == 0).any()  # Some are dropped.
  # One expert is perfectly balanced.
  assert three.loss == pytest.approx(two.loss + 1e-2, rel=1e-5)


@pytest.mark.parametrize("with_inputs", [False, True])
@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_all_to_alls_of_a_training_step(num_levels, with_inputs):
  """Rows there and back at every level, and the importance to all below.

  Gradients go back as rows do; where the inputs need none, those of results
  only.
  """
  axes = AXES[:num_levels]
  layout = levels.canonical_layout(num_levels, axes)
  mesh_shape = ",".join(f"{axis}:2" for axis in axes)

  def layer(tensors):
    return mtf_moe.transformer_moe_layer(
        tensors["inputs"], DEPTH, {**ROOM_FOR_ALL, "moe_summaries": False},
        True, layout=layout, mesh_shape=mesh_shape, levels=[2] * num_levels)

  dims = [mtf.Dimension(name, 2) for name in levels.batch_names(num_levels)]
  counted = collections.Counter(kind for kind, _ in harness.communication(
      layer, [*dims, mtf.Dimension("length", 8), DEPTH], mesh_shape, layout,
      with_inputs))
  forward = 2 * num_levels + (num_levels - 1)
  backward = (2 if with_inputs else 1) * num_levels
  assert counted["alltoall"] == forward + backward
  assert "allconcat" not in counted


def test_settings_of_each_level():
  impl = mesh_impl()
  coarse = mtf_moe.Level(experts=4, router="top_2", group_size=16,
                         capacity_factor_train=2.0)
  fine = mtf_moe.Level(experts=2, router="switch", group_size=8,
                       min_expert_capacity=3)
  with tf.Graph().as_default():
    graph = mtf.Graph()
    tokens = mtf.zeros(mtf.Mesh(graph, "mesh"), mtf.Shape([*DIMS[1:], DEPTH]))
    mtf_moe.transformer_moe_layer(
        tokens, DEPTH, {"moe_hidden_size": 8}, True, levels=[coarse, fine],
        layout=impl.layout_rules, mesh_shape=impl.shape)
    record, = layer_records.of(graph)
  first, second = record.levels
  assert (first.group_size.size, first.capacity.size) == (16, 8)
  assert (second.group_size.size, second.capacity.size) == (8, 5)
  assert [level.settings.router for level in record.levels] == [
      "top_2", "switch"]
  assert record.called is None and record.scope == ""


@pytest.mark.parametrize("level_list, hparams, said", [
    ((4, 0), {}, r"moe_num_experts\[1\] = 0 must be a positive integer"),
    ((), {}, r"moe_num_experts = \(\) must be a positive integer"),
    ((4, 2, 2), {"moe_gating": ["top_2", "switch"]},
     "moe_gating = .* must be one router, or one for each of the 3 levels"),
    ((4, 2, 2), {"moe_gating": "topp_2"}, "moe_gating = 'topp_2' is not known"),
    ((4, 2), {"moe_gating": "ntlb"},
     "moe_ntlb_top_k = 4 is more than the 2 experts of a level"),
    ((4, 2), {"moe_gating": ("top_2", "top_n")},
     "num_experts_per_token = 3 is more than the 2 experts"),
    ([mtf_moe.Level(), 4], {}, "must be a list of one Level or more"),
    (3, {}, "levels = 3 must be a list with the number of experts of each"),
])
def test_mistakes(level_list, hparams, said):
  with pytest.raises(ValueError, match=said):
    number = len(level_list) if isinstance(level_list, list | tuple) else 3
    run(mesh_impl(), level_list, DIMS[-1 - max(1, number):], **hparams)


def test_a_mistake_of_a_level_names_the_level():
  level_list = [mtf_moe.Level(), mtf_moe.Level(router="top_n", experts=2)]
  with tf.Graph().as_default(), pytest.raises(ValueError, match=(
      r"moe_levels\[1\].top_n_num_experts_per_token = 3 is more than the 2")):
    mtf_moe.transformer_moe_layer(
        mtf.zeros(mtf.Mesh(mtf.Graph(), "mesh"), [*DIMS[1:], DEPTH]), DEPTH, {},
        True, levels=level_list)


def test_what_a_mesh_does_not_allow():
  with pytest.raises(ValueError, match=(
      r"splits both 'expert_2' and 'expert_1' over mesh dimension 'third'.*"
      r"as in batch_3:outer,outer_batch:middle_1,batch:inner,expert_1:inner")):
    run(mesh_impl(1, 1, 2, layout="batch:third,expert_2:third,expert_1:third"))
  with pytest.raises(ValueError, match=(
      r"moe_num_experts\[0\] = 3 gives dimension 'expert_1' the size 3")):
    run(mesh_impl(2, 2, 2), (3, 2, 2))


@pytest.mark.parametrize("dim", [
    "group_size_x", "group_size_y", "expert_capacity_x", "expert_y_unsplit",
    "batch_unsplit"])
def test_what_a_layout_cannot_split(dim):
  with pytest.raises(ValueError, match=(
      f"run.layout_rules splits '{dim}' over mesh dimension 'a', .*: remove "
      f"the rule {dim}:a.")):
    levels.size(
        [mtf.Dimension("outer_batch", 2), mtf.Dimension("batch", 2)],
        mtf.Dimension("length", 8), mtf_moe.MoeHparams(), True,
        mesh_split.MeshSplit(f"{dim}:a", "a:2"))
