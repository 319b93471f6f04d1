"""Top-2 routing, computed by hand.

Routers get logits as their inputs and the identity as their weights, so the
gates of a case are what is written there.
"""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import gating as gating_lib
from tests import harness

NEVER = -1e9  # The logit of a gate of exactly 0.


def logits_of(gates):
  """Logits whose softmax gives the gates, each row of which sums to 1."""
  return np.log(np.maximum(gates, np.finfo(np.float64).tiny))


def gating(logits, capacity, importance=None, train=True, dtype=tf.float32,
           num_microbatches=None, **hparams):
  """Runs _top_2_gating on one group of tokens.

  Args:
    logits: [s, x].
    capacity: an integer.
    importance: an optional [s].
    train: a boolean.
    dtype: the type of the inputs.
    num_microbatches: an optional integer.
    **hparams: without their prefix moe_; by default policy "all".

  Returns:
    dispatch [s, x, c], combine [s, x, c], loss
  """
  logits = np.asarray(logits, np.float64)
  group, experts = (
      mtf.Dimension(name, size)
      for name, size in zip(("group", "experts"), logits.shape))
  batch, depth = mtf.Dimension("batch", 1), mtf.Dimension("depth", experts.size)
  arrays = {"inputs": (logits[None], [batch, group, depth])}
  if importance is not None:
    arrays["importance"] = (np.array([importance]), [batch, group])
  hparams = {"second_policy_train": "all", "second_policy_eval": "all",
             **hparams}

  def build(tensors):
    return mtf_moe._top_2_gating(
        tensors["inputs"], None, experts, mtf.Dimension("capacity", capacity),
        mtf_moe.MoeHparams(**{f"moe_{k}": v for k, v in hparams.items()}),
        train, harness.variable_dtype(dtype),
        importance=tensors.get("importance"),
        num_microbatches=num_microbatches)

  dispatch, combine, loss = harness.evaluate(
      build, arrays, lambda name, shape: np.eye(shape[0]), dtype=dtype)
  return dispatch[0], combine[0], loss


def nonzero(tensor):
  """{(token, expert, slot): value} of the entries that are not 0."""
  return {tuple(map(int, index)): pytest.approx(float(tensor[tuple(index)]),
                                                abs=1e-6)
          for index in np.argwhere(tensor)}


def test_weights_are_normalized_over_the_two_choices():
  dispatch, combine, _ = gating(logits_of([[0.6, 0.1, 0.3]]), capacity=1)
  assert nonzero(combine) == {(0, 0, 0): 0.6 / 0.9, (0, 2, 0): 0.3 / 0.9}
  assert nonzero(dispatch) == {(0, 0, 0): 1.0, (0, 2, 0): 1.0}


def test_ties_go_to_the_lowest_index():
  _, combine, _ = gating([[1.0, 2.0, 2.0, 2.0]], capacity=1)
  assert nonzero(combine) == {(0, 1, 0): 0.5, (0, 2, 0): 0.5}


@pytest.mark.parametrize("importance, expected", [
    (1.0, {(0, 0, 0): 0.6 / 0.9, (0, 1, 0): 0.3 / 0.9}),
    # Not a first choice: the likeliest expert is the second one, alone.
    (0.5, {(0, 0, 0): 1.0}),
    (0.0, {}),
])
def test_importance(importance, expected):
  _, combine, _ = gating(logits_of([[0.6, 0.3, 0.1]]), capacity=1,
                         importance=[importance])
  assert nonzero(combine) == expected


def test_slots_are_filled_by_first_choices_before_any_second():
  # Token 0 wants expert 1 second, tokens 1 and 2 want it first.
  logits = logits_of([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.0, 0.6, 0.4]])
  _, combine, _ = gating(logits, capacity=3)
  assert nonzero(combine) == {
      (0, 0, 0): 0.7, (0, 1, 2): 0.3,
      (1, 1, 0): 0.7, (1, 2, 0): 0.3,
      (2, 1, 1): 0.6, (2, 2, 1): 0.4}


def test_what_does_not_fit_is_dropped_and_weights_stay():
  logits = logits_of([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.0, 0.6, 0.4]])
  dispatch, combine, _ = gating(logits, capacity=1)
  assert nonzero(combine) == {
      (0, 0, 0): 0.7,  # Its second choice finds expert 1 full,
      (1, 1, 0): 0.7, (1, 2, 0): 0.3}  # and token 2 both of its experts.
  assert dispatch.sum() == 3


def test_a_gate_of_zero_holds_a_slot_but_is_not_dispatched():
  logits = [[0.0, NEVER], [NEVER, 0.0], [np.log(0.4), np.log(0.6)]]
  dispatch, combine, _ = gating(logits, capacity=4)
  # With no gate left, the second choice of tokens 0 and 1 is expert 0: there
  # they wait behind its one first choice, and ahead of token 2.
  assert nonzero(combine) == {
      (0, 0, 0): 1.0, (1, 1, 0): 1.0, (2, 0, 3): 0.4, (2, 1, 1): 0.6}
  np.testing.assert_array_equal(dispatch, combine != 0)


def test_what_rounds_to_zero_in_the_type_of_the_inputs_is_not_dispatched():
  logits = [[0.0, -18.0]]  # A gate of 1.5e-8; float16 ends at 6e-8.
  dispatch, _, _ = gating(logits, capacity=1)
  assert dispatch.sum() == 2
  dispatch, combine, _ = gating(logits, capacity=1, dtype=tf.float16)
  assert nonzero(combine) == nonzero(dispatch) == {(0, 0, 0): 1.0}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("policy, threshold, used", [
    ("all", 0.9, [1, 1, 1]),
    ("none", 0.0, [0, 0, 0]),
    ("threshold", 0.35, [1, 1, 0]),
    ("threshold", 0.5, [0, 0, 0]),  # The gate 0.5 is not above 0.5.
    ("threshold", 0.0, [1, 1, 1]),
])
def test_second_policy(policy, threshold, used, train):
  logits = [[0.0, 0.0], [np.log(0.6), np.log(0.4)], [np.log(0.8), np.log(0.2)]]
  chosen, other = ("train", "eval") if train else ("eval", "train")
  _, combine, _ = gating(
      logits, capacity=3, train=train, **{
          f"second_policy_{chosen}": policy,
          f"second_threshold_{chosen}": threshold,
          f"second_policy_{other}": "none",
          f"second_threshold_{other}": 0.7})
  np.testing.assert_array_equal(combine[:, 1].any(axis=-1), used)


@pytest.mark.parametrize("drawn, threshold, used", [
    (0.49, 1.0, True),  # 0.49 < 0.5 / 1.0
    (0.5, 1.0, False),  # Not below.
    (0.99, 0.5, True),  # A gate at the threshold is always used,
    (0.99, 0.0, True),  # and with no threshold every gate is.
])
def test_random_policy(monkeypatch, drawn, threshold, used):
  shapes = []

  def draw(mesh, shape, **unused_kwargs):
    shapes.append(shape.to_integer_list)
    return mtf.zeros(mesh, shape) + drawn

  monkeypatch.setattr(mtf, "random_uniform", draw)
  _, combine, _ = gating(
      [[0.0, 0.0], [0.0, NEVER]], capacity=2, second_policy_train="random",
      second_threshold_train=threshold)
  assert shapes == [[1, 2]]  # One number a token, in a single draw.
  assert bool(combine[0, 1].any()) == used


GATES = np.array([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1],
                  [0.3, 0.3, 0.4]])


def test_balance_loss():
  # First choices 0, 0, 1, 2; capacity and policy do not matter.
  _, _, loss = gating(
      logits_of(GATES), capacity=1, second_policy_train="none")
  density = np.array([2, 1, 1]) / 4
  assert loss == pytest.approx(
      9 * np.mean(density * GATES.mean(axis=0)), rel=1e-6)


def test_balance_loss_counts_unimportant_tokens_in_the_denominator_only():
  _, _, loss = gating(
      logits_of(GATES), capacity=4, importance=[1.0, 0.5, 1.0, 0.0])
  density = np.array([1, 1, 0]) / 4
  proxy = (GATES[0] + GATES[2]) / 4
  assert loss == pytest.approx(9 * np.mean(density * proxy), rel=1e-6)


@pytest.mark.parametrize("importance", [None, [1.0, 0.5, 1.0, 0.0]])
def test_second_place_loss(importance):
  arguments = dict(capacity=4, importance=importance)
  _, _, first = gating(logits_of(GATES), **arguments)
  _, _, both = gating(
      logits_of(GATES), use_second_place_loss=True, **arguments)
  if importance is None:
    left = np.array([[0, 0.3, 0.1], [0, 0.1, 0.4], [0.2, 0, 0.1],
                     [0.3, 0.3, 0]])
    density = np.array([2, 1, 1]) / 4  # Second choices 1, 2, 0, 0.
  else:
    # Tokens 1 and 3 have no first choice to leave out; the likeliest expert of
    # token 1 is its second choice, and token 3 has none.
    left = np.array([[0, 0.3, 0.1], [0.5, 0.1, 0.4], [0.2, 0, 0.1],
                     [0.3, 0.3, 0.4]])
    density = np.array([2, 1, 0]) / 4
  proxy = (left / left.sum(axis=1, keepdims=True)).mean(axis=0)
  assert both - first == pytest.approx(
      0.5 * 9 * np.mean(density * proxy), rel=1e-5)


def test_microbatches_divide_the_losses():
  arguments = dict(capacity=4, use_second_place_loss=True)
  _, _, whole = gating(logits_of(GATES), **arguments)
  for num_microbatches in (None, 1, 4):
    _, _, part = gating(
        logits_of(GATES), num_microbatches=num_microbatches, **arguments)
    assert part == pytest.approx(whole / (num_microbatches or 1), rel=1e-6)


@pytest.mark.parametrize("importance, counting", [
    (None, [0, 1, 2, 3]), ([1.0, 0.5, 1.0, 0.0], [0, 2]), ([0.5] * 4, [])])
def test_z_loss(importance, counting):
  logits = np.array([[1.0, 2, 3], [0, 0, 0], [5, 0, 0], [-1, 1, 0]])
  arguments = dict(capacity=4, importance=importance)
  _, _, without = gating(logits, **arguments)
  _, _, loss = gating(logits, z_loss=0.1, **arguments)
  squares = np.log(np.exp(logits).sum(axis=1)) ** 2
  expected = 0.1 * squares[counting].mean() if counting else 0.0
  assert loss - without == pytest.approx(expected, rel=1e-5, abs=1e-7)
  _, _, evaluated = gating(logits, z_loss=0.1, train=False, **arguments)
  assert evaluated == pytest.approx(without)


def test_no_gradient_flows_through_dispatch():
  group, experts, capacity, depth = (
      mtf.Dimension(name, 3) for name in ("g", "x", "c", "m"))

  def gradients(tensors):
    dispatch, combine, _ = mtf_moe._top_2_gating(
        tensors["inputs"], None, experts, capacity, mtf_moe.MoeHparams(), True,
        harness.variable_dtype())
    assert mtf.gradients(
        [mtf.reduce_sum(dispatch)], [tensors["inputs"]]) == [None]
    return mtf.gradients(
        [mtf.reduce_sum(mtf.square(combine))], [tensors["inputs"]])

  gradient, = harness.evaluate(
      gradients, {"inputs": (GATES[:3], [group, depth])},
      lambda name, shape: np.eye(3))
  assert np.abs(gradient).max() > 0.01


def test_routing_counts_what_experts_were_asked_and_what_they_took():
  logits = logits_of([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.0, 0.6, 0.4]])
  group, experts, depth = (mtf.Dimension(name, 3) for name in ("g", "x", "m"))

  def build(tensors):
    routed = gating_lib.route(
        "top_2", tensors["inputs"], None, experts, mtf.Dimension("c", 1),
        mtf_moe.Level(second_policy_train="all"), True,
        harness.variable_dtype())
    return [(c.expert, c.weight, c.demand, c.load) for c in routed.choices]

  first, second = harness.evaluate(
      build, {"inputs": (logits, [group, depth])},
      lambda name, shape: np.eye(3))
  for choice, expected in zip((first, second), (
      ([0, 1, 1], [0.7, 0.7, 0], [1, 2, 0], [1, 1, 0]),
      ([1, 2, 2], [0, 0.3, 0], [0, 1, 2], [0, 0, 1]))):
    for actual, values in zip(choice, expected):
      np.testing.assert_allclose(actual, values, atol=1e-6)
