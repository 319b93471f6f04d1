"""Whose choices get slots first: by position, and by gate, by hand."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import gating
from mtf_moe.gating import fill_order
from tests import gin_config
from tests import harness
from tests.gating.choices_test import combine
from tests.transformer_layers_test import run_model
from tests.transformer_layers_test import some_ids

# The last token is surest, and all want the first expert.
GATES = [[0.5, 0.4, 0.1], [0.6, 0.3, 0.1], [0.55, 0.05, 0.4], [0.9, 0.07, 0.03]]


def slots_of(router, gates, capacity, **settings):
  """The slot of each choice that has one: {(token, expert): slot}."""
  combined, _ = combine(router, gates, capacity, **settings)
  return {(s, x): c for s, x, c in np.argwhere(combined).tolist()}


def switch(gates, capacity, **settings):
  return slots_of("switch", gates, capacity, switch_policy_train="argmax",
                  **settings)


def test_the_surest_tokens_come_first():
  assert switch(GATES, 2) == {(0, 0): 0, (1, 0): 1}
  assert switch(GATES, 2, fill_order="gate") == {(3, 0): 0, (1, 0): 1}


def test_weights_stay_as_they_are():
  combined, loss = combine("switch", GATES, 2, fill_order="gate",
                           switch_policy_train="argmax")
  np.testing.assert_allclose(
      combined.sum(axis=-1), [[0, 0, 0], [0.6, 0, 0], [0, 0, 0], [0.9, 0, 0]],
      atol=1e-6)
  _, by_position = combine("switch", GATES, 2, switch_policy_train="argmax")
  assert loss == by_position


def test_all_first_choices_come_before_any_second_one():
  """Though the second choice of the last token is of the surest token."""
  gates = [[0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.01, 0.39, 0.6],
           [0.1, 0.85, 0.05], [0.9, 0.08, 0.02]]
  settings = {"second_policy_train": "all", "fill_order": "gate"}
  # The surest first: 4, 3, 1, 2, 0. Of first choices, 4 gets expert 0; 3 and
  # 0 expert 1; 1 and 2 expert 2. Of second ones, 3 gets expert 0; the others,
  # 4, 1, 2 for expert 1 and 0 for expert 2, find buffers full.
  assert slots_of("top_2", gates, 2, **settings) == {
      (4, 0): 0, (3, 1): 0, (0, 1): 1, (1, 2): 0, (2, 2): 1, (3, 0): 1}
  # With one slot more, the second choices of 4 and 0; 1 and 2 find it taken.
  assert slots_of("top_2", gates, 3, **settings) == {
      (4, 0): 0, (3, 1): 0, (0, 1): 1, (1, 2): 0, (2, 2): 1, (3, 0): 1,
      (4, 1): 2, (0, 2): 2}
  assert (1, 1) in slots_of("top_2", gates, 3, second_policy_train="all")


def test_of_equal_tokens_the_first_come_first():
  """Also with many of them, which a sort might turn around."""
  equal = [[0.75, 0.25]] * 50 + [[0.9, 0.1]] + [[0.75, 0.25]] * 49
  expected = {(50, 0): 0} | {(s, 0): s + 1 for s in range(30)}
  assert switch(equal, 31, fill_order="gate") == expected


@pytest.mark.parametrize("importance, expected", [
    # The surest is padding.
    ([1.0, 1.0, 1.0, 0.0], {(1, 0): 0, (2, 0): 1}),
    ([1.0, 0.0, 0.0, 0.0], {(0, 0): 0}), ([0.0] * 4, {})])
def test_padding_has_no_slot(importance, expected):
  assert switch(
      GATES, 2, fill_order="gate", importance=importance) == expected


def test_a_second_choice_of_the_level_above_comes_after_first_ones():
  """Its likeliest expert is a second choice here, however sure it is."""
  assert slots_of("top_2", GATES, 2, fill_order="gate",
                  second_policy_train="none",
                  importance=[1.0, 1.0, 1.0, 0.5]) == {(1, 0): 0, (2, 0): 1}


def only_choices(gates, capacity):
  """The fields of what the router "switch" chooses, by name."""
  group, experts = (mtf.Dimension(*dim) for dim in zip(
      ("group", "experts"), np.shape(gates)))

  def build(tensors):
    routed = gating.route(
        "switch", tensors["inputs"], None, experts,
        mtf.Dimension("c", capacity),
        mtf_moe.Level(experts=3, fill_order="gate",
                      switch_policy_train="argmax"), True,
        harness.variable_dtype())
    choice, = routed.choices
    return {name: getattr(choice, name)
            for name in ("expert", "position", "demand", "load")}

  return harness.evaluate(
      build, {"inputs": (np.log(gates), [group, mtf.Dimension("m", 3)])},
      lambda name, shape: np.eye(3))


def test_counts_are_of_all_tokens():
  found = only_choices(GATES, capacity=2)
  assert found["demand"].tolist() == [4, 0, 0]
  assert found["load"].tolist() == [2, 0, 0]


@pytest.mark.parametrize("router", ["expert_choice", "expert_selection"])
def test_experts_that_choose_are_let_alone(router):
  for found, expected in zip(
      *(combine(router, GATES, 2, fill_order=order,
                switch_policy_train="argmax")
        for order in ("gate", "position"))):
    np.testing.assert_array_equal(found, expected)


def test_gates_of_nan_leave_every_slot_to_one_token():
  rng = np.random.default_rng(0)
  gates = rng.dirichlet([1.0] * 3, size=500)
  gates[rng.random(500) < 0.3] = np.nan
  found = only_choices(gates, capacity=500)
  slots = list(zip(found["expert"].tolist(), found["position"].tolist()))
  assert len(set(slots)) == 500 and found["load"].sum() == 500


def test_tokens_with_nan_come_last_and_leave_others_in_order():
  given = np.random.default_rng(0).random([2, 500]).astype(np.float32)
  given[given < 0.3] = np.nan
  with tf.Graph().as_default(), tf.Session() as session:
    in_order, back = fill_order.orders(tf.constant(given))
    found, again = session.run([in_order(given), back(in_order(given))])
  np.testing.assert_array_equal(again, given)
  # NumPy has NaN at the end, too.
  np.testing.assert_array_equal(found, -np.sort(-given, axis=-1))


DEPTH = mtf.Dimension("d_model", 6)
DIMS = [mtf.Dimension("outer_batch", 2), mtf.Dimension("batch", 4),
        mtf.Dimension("length", 8)]


def run(dispatch="index", mesh=(1, 1), **hparams):
  """The layer of two levels in training, where slots are few."""
  impl = harness.mesh_impl(*mesh)

  def layer(tensors):
    return mtf_moe.transformer_moe_layer(
        tensors["inputs"], DEPTH,
        {"moe_hidden_size": 8, "moe_dispatch": dispatch, **hparams}, True,
        harness.variable_dtype(), layout=impl.layout_rules,
        mesh_shape=impl.shape)

  shape = [dim.size for dim in [*DIMS, DEPTH]]
  return harness.run_layers(
      {"layer": layer},
      {"inputs": (np.random.default_rng(0).normal(size=shape),
                  [*DIMS, DEPTH])}, impl, harness.random_weights)["layer"]


def levels(outer, inner):
  # 12 slots of 64 tokens come to each expert of the first level.
  return [mtf_moe.Level(
      experts=experts, fill_order=order, group_size=size, min_expert_capacity=1,
      capacity_factor_train=0.75, second_policy_train="all")
          for experts, order, size in ((4, outer, 16), (2, inner, 6))]


@pytest.mark.parametrize("outer, inner", [
    ("gate", "gate"), ("gate", "position"), ("position", "gate")])
def test_both_dispatches_agree(outer, inner):
  """And each level has its own order, which makes a difference."""
  einsum, index = (run(way, moe_levels=levels(outer, inner))
                   for way in ("einsum", "index"))
  assert index.loss == einsum.loss
  for found, expected in [
      (index.output, einsum.output),
      (index.input_gradient, einsum.input_gradient),
      *((index.gradients[name], gradient)
        for name, gradient in einsum.gradients.items())]:
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max()))
  others = {"position", "gate"}
  for changed in ((*(others - {outer}), inner), (outer, *(others - {inner}))):
    other = run(moe_levels=levels(*changed))
    assert np.abs(other.output - index.output).max() > 1e-2


def test_the_mesh_makes_no_difference():
  """Groups are the same, and each is filled on one core."""
  expected, found = (
      run(mesh=mesh, moe_levels=levels("gate", "gate"))
      for mesh in ((1, 1), (2, 2)))
  np.testing.assert_allclose(
      found.output, expected.output, rtol=0,
      atol=2e-6 * np.abs(expected.output).max())


def test_with_room_for_all_the_order_changes_nothing():
  room = {"moe_num_experts": (4, 2), "moe_group_size": 16,
          "moe_second_policy_train": "all", "moe_capacity_factor_train": 4.0,
          "moe_capacity_factor_second_level": 2.0}
  found, expected = (run(moe_fill_order=order, **room)
                     for order in ("gate", "position"))
  for name, gradient in expected.gradients.items():
    np.testing.assert_allclose(
        found.gradients[name], gradient, rtol=0,
        atol=1e-5 * np.abs(gradient).max())


def test_in_gin():
  gin_config.parse([], [
      "MoE.levels = [@coarse/Level(), @fine/Level()]",
      "fine/Level.fill_order = 'gate'", "MoE2D.fill_order = 'gate'"])
  assert [level.fill_order for level in mtf_moe.MoE().hparams.levels] == [
      "position", "gate"]
  assert [level.fill_order for level in mtf_moe.MoE2D().hparams.levels] == [
      "gate", "gate"]
  with pytest.raises(ValueError, match=(
      r"MoE1D\.fill_order = 'largest' is not known.*'position', 'gate'")):
    mtf_moe.MoE1D(fill_order="largest")


@pytest.mark.parametrize("mode, bindings, told", [
    ("train", ["MoE2D.fill_order = 'gate'"], True), ("train", [], False),
    ("eval", ["MoE2D.fill_order = 'gate'"], False),
    # This has a warning of its own.
    ("train", ["MoE2D.fill_order = 'gate'",
               "MoE2D.moe_gating = 'expert_choice'"], False)])
def test_models_that_predict_the_next_token_are_warned(
    mode, bindings, told, caplog):
  def use(model, tensors):
    logits, _ = model.call_simple(
        inputs=tensors["targets"], targets=tensors["targets"],
        compute_loss=True, mode=mode, variable_dtype=harness.variable_dtype())
    return logits

  run_model("models/lm_tiny.gin", (1, 1), {"targets": some_ids(2)}, use,
            bindings)
  assert ('MoE2D.fill_order = "gate" lets later tokens decide' in caplog.text
          ) == told


def test_decoding_is_as_ever():
  """Nothing is dropped there, in whatever order slots are filled."""
  prompt = some_ids(4)
  prompt[:, 3:] = 0

  def decode(model, tensors):
    return model.sample_autoregressive(
        tensors["targets"], variable_dtype=harness.variable_dtype())

  by_gate, by_position = (
      run_model("models/lm_tiny.gin", (1, 1), {"targets": prompt}, decode,
                [f"MoE2D.fill_order = '{order}'"])
      for order in ("gate", "position"))
  np.testing.assert_array_equal(by_gate, by_position)
