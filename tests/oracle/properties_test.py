"""What holds for every configuration, in ours and in the plain loops.
"""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import gating
from tests import harness
from tests.oracle import comparison
from tests.oracle import loops
from tests.oracle import strategies

ONE_SLICE = [(1, 1)]
# mtf divides by multiplying with the reciprocal: a gate over itself may be one
# unit in the last place above 1.
ONE = 1.0 + 2.0 ** -23


def shares(case):
  """The share of every expert in every token's output, [*shape, x, y]."""
  x, y = case.experts
  number = mtf.Dimension("number", x * y)

  def build(tensors):
    outputs, _ = mtf_moe.transformer_moe_layer_v2(
        tensors["inputs"], number, case.hparams(), case.train,
        harness.variable_dtype(case.dtype),
        nonpadding=tensors.get("nonpadding"),
        num_microbatches=case.num_microbatches,
        experts=harness.numbered_experts(x, y))
    return outputs

  with comparison.shared_draws(case):
    weights = harness.evaluate(
        build, comparison.arrays(case), case.weights, dtype=case.dtype)
  return weights.reshape(*case.shape, x, y)


@hypothesis.given(strategies.cases(ONE_SLICE))
def test_weights_and_the_experts_that_a_token_reaches(case):
  weights = shares(case)
  slack = 0.0 if case.dtype == tf.float32 else 2.0 ** -7
  assert weights.min() >= 0.0
  assert weights.sum(axis=(-2, -1)).max() <= 1.0 + slack + 1e-6
  assert np.count_nonzero(weights, axis=(-2, -1)).max() <= 3
  expected = comparison.run_loops(case)
  if not expected.undecided:
    # Nothing for the dropped ones, exactly, and for the padding.
    np.testing.assert_array_equal(
        weights != 0, expected.weights.reshape(weights.shape) != 0)
    np.testing.assert_allclose(
        weights, expected.weights.reshape(weights.shape), rtol=0,
        atol=1e-6 + slack)


@hypothesis.given(strategies.cases(ONE_SLICE))
def test_slots(case):
  """In the plain loops, at both levels."""
  result = comparison.run_loops(case)
  for groups, slots in zip(result.levels, result.capacities):
    for group in groups:
      check_slots(group.sent, slots)
      # None is left out: a choice of weight 0 is listed here as well.
      for expert in range(max(case.experts)):
        taken = [place.slot for places in group.sent for place in places
                 if place.expert == expert]
        assert sorted(taken) == list(range(len(taken)))


def check_slots(sent, slots):
  """No slot twice, none too many, first choices before second ones.

  Args:
    sent: for each token, its `loops.Sent`.
    slots: the capacity.
  """
  buffers = {}
  for token, places in enumerate(sent):
    assert [place.rank for place in places] in ([], [0], [1], [0, 1])
    for place in places:
      assert 0.0 <= place.weight <= ONE
      buffers.setdefault(place.expert, []).append(
          (place.slot, place.rank, token))
  for taken in buffers.values():
    # In the order of the ranks, and then of the tokens.
    ordered = [slot for slot, _, _ in sorted(taken, key=lambda t: t[1:])]
    assert ordered == sorted(set(ordered))
    assert len(ordered) <= slots and ordered[-1] < slots


@hypothesis.given(
    st.integers(0, 2 ** 32 - 1), st.integers(1, 12), st.integers(1, 5),
    st.integers(1, 12), st.sampled_from(["all", "none", "threshold"]))
def test_slots_of_our_router(seed, num_tokens, num_experts, slots, policy):
  """The same of `Routing`, and of the dense view of it."""
  rng = np.random.default_rng(seed)
  logits = rng.integers(-2, 3, size=(2, num_tokens, num_experts))
  importance = rng.choice([0.0, 0.5, 1.0], size=logits.shape[:2])
  batch, group, depth = (
      mtf.Dimension(*dim) for dim in zip(("b", "s", "m"), logits.shape))
  experts = mtf.Dimension("x", num_experts)

  def build(tensors):
    routed = gating.route(
        "top_2", tensors["logits"], None, experts, mtf.Dimension("c", slots),
        mtf_moe.Level(second_policy_train=policy), True,
        harness.variable_dtype(), importance=tensors["importance"])
    return routed.combine_tensor(tf.float32), [
        (choice.expert, choice.position, choice.weight)
        for choice in routed.choices]

  combine, choices = harness.evaluate(
      build, {"logits": (logits, [batch, group, depth]),
              "importance": (importance, [batch, group])},
      lambda name, shape: np.eye(num_experts))
  assert np.count_nonzero(combine, axis=1).max() <= 1  # [b, x, c]
  for b in range(2):
    sent = [
        [loops.Sent(rank, int(expert[b, s]), int(position[b, s]),
                    float(weight[b, s]))
         for rank, (expert, position, weight) in enumerate(choices)
         if weight[b, s] > 0]
        for s in range(num_tokens)]
    check_slots(sent, slots)
    for s, places in enumerate(sent):
      expected = np.zeros([num_experts, slots])
      for place in places:
        expected[place.expert, place.slot] = place.weight
      np.testing.assert_array_equal(combine[b, s], expected)


@hypothesis.settings(max_examples=8)
@hypothesis.given(strategies.cases(ONE_SLICE))
def test_padding_costs_nothing(case):
  """Whatever stands at the padding, all others get the same."""
  case = dataclasses.replace(
      case, importance="padding", importance_dims=(True, True, True))
  importance, _ = case.importances()
  others = 3 * case.rng("others").normal(size=(*case.shape, case.depth))
  inputs = case.inputs()
  changed = np.where(importance[..., None] == 0, others, inputs)
  # The proxy of the second-place loss is the one that counts padding.
  case = dataclasses.replace(case, second_place_loss=False)
  before = comparison.run(case, "ours")["ours"]
  after = comparison.run(case, "ours", inputs=changed)["ours"]
  np.testing.assert_array_equal(before.output, after.output)
  np.testing.assert_array_equal(before.loss, after.loss)
  assert not before.output[importance == 0].any()


@st.composite
def whole_groups(draw):
  """Cases with groups of l tokens at both levels, one a sequence at the first.

  At level one every outer entry has x groups, which send l / x slots each to
  an expert: l slots, one group at level two.
  """
  x = draw(st.sampled_from([2, 4]))
  length = x * draw(st.integers(1, 3))
  base = draw(strategies.cases(ONE_SLICE))
  return dataclasses.replace(
      base, shape=(2, x, length), experts=(x, 2), group_size=length,
      factors=(1.0, 1.0, base.factors[2]), min_capacity=1, policy="threshold")


@hypothesis.settings(max_examples=8)
@hypothesis.given(whole_groups())
def test_permuting_whole_groups_permutes_the_result(case):
  case = dataclasses.replace(case, importance="ones")
  result = comparison.run(case, "ours")["ours"]
  swapped = comparison.run(case, "ours", inputs=case.inputs()[::-1])["ours"]
  rounding = 1e-6 if case.dtype == tf.float32 else 2.0 ** -8
  # A matrix product may sum the rows of another block in another order.
  np.testing.assert_allclose(
      swapped.output, result.output[::-1], rtol=0,
      atol=rounding * max(1.0, np.abs(result.output).max()))
  # A mean over the groups, summed in another order.
  np.testing.assert_allclose(
      swapped.loss, result.loss,
      rtol=1e-6 if case.dtype == tf.float32 else 2.0 ** -7)


@hypothesis.settings(max_examples=6)
@hypothesis.given(whole_groups(), st.sampled_from([(1, 2), (2, 1), (2, 2)]))
def test_the_mesh_changes_nothing_where_the_groups_agree(case, mesh):
  case = dataclasses.replace(case, dtype=tf.float32)
  expected = comparison.run(case, "ours")["ours"]
  actual = comparison.run(
      dataclasses.replace(case, mesh=mesh), "ours")["ours"]
  scale = max(1.0, np.abs(expected.output).max())
  np.testing.assert_allclose(
      actual.output, expected.output, rtol=0, atol=1e-5 * scale)
  np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-5)
  for name, gradient in expected.gradients.items():
    np.testing.assert_allclose(
        actual.gradients[name], gradient, rtol=0,
        atol=1e-5 * max(1.0, np.abs(gradient).max()))


@hypothesis.settings(max_examples=12)
@hypothesis.given(strategies.cases(ONE_SLICE))
def test_the_ledger_adds_up(case):
  """All counts of both levels, on their own and against the plain loops."""
  case = dataclasses.replace(case, train=True, num_microbatches=None)

  def build(tensors):
    outputs, _ = mtf_moe.transformer_moe_layer_v2(
        tensors["inputs"], tensors["inputs"].shape.dims[-1],
        case.hparams(moe_summaries=True), True,
        harness.variable_dtype(case.dtype),
        nonpadding=tensors.get("nonpadding"))
    return harness.summaries(outputs.graph)

  with comparison.shared_draws(case):
    recorded = harness.evaluate(
        build, comparison.arrays(case), case.weights, dtype=case.dtype)
  outer, inner = (
      {name.removeprefix(f"moe/{level}/"): value
       for name, value in recorded.items() if f"/{level}/" in name}
      for level in ("outer", "inner"))
  of_the_layer = [name for name in recorded if "/layer/" in name]
  assert len(outer) + len(inner) + len(of_the_layer) == len(recorded)
  for level in (outer, inner):
    used = level["tokens/full"] + level["tokens/partial"]
    assert level["tokens"] == used + level["tokens/padding"]
    assert level["tokens/full"] == (
        level["choices_1/kept"] + level["choices_1/dropped"])
    assert used == (
        level["choices_2/kept"] + level["choices_2/dropped"]
        + level["choices_2/refused"])
    assert level["slots"] == (
        level["choices_1/kept"] + level["choices_2/kept"]
        + level["slots/empty"])
    assert min(value for name, value in level.items()
               if name.startswith(("tokens", "choices", "slots"))) >= 0
  assert inner["tokens"] == outer["slots"]
  assert outer["tokens"] == np.prod(case.shape)

  expected = comparison.run_loops(case)
  if expected.undecided:
    return
  for level, groups in zip((outer, inner), expected.levels):
    sent = [places for group in groups for places in group.sent]
    for rank in (0, 1):
      assert level[f"choices_{rank + 1}/kept"] == sum(
          place.rank == rank for places in sent for place in places)
    assert level["tokens/padding"] + level["tokens/lost"] == sum(
        not any(place.weight for place in places) for places in sent)
  # What was sent to a group of experts is a token there.
  assert inner["tokens/full"] + inner["tokens/partial"] == sum(
      place.weight > 0 for group in expected.levels[0]
      for places in group.sent for place in places)
