"""Rows that move by index, against loops over tokens and slots."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import slots
from tests import harness

K, A, G, S, X, C, M = 3, 2, 2, 5, 3, 4, 6
CHOICES, OUTER, GROUPS, GROUP, EXPERTS, CAPACITY, DEPTH = (
    mtf.Dimension(name, size) for name, size in [
        ("choices", K), ("outer_batch", A), ("batch", G), ("group", S),
        ("expert_x_unsplit", X), ("capacity", C), ("d_model", M)])
BATCH = [OUTER, GROUPS]
RNG = np.random.default_rng(0)


def some_choices():
  """(experts, positions, used) [k, a, g, s], no two in the same slot."""
  experts, positions = np.zeros([2, K, A, G, S], np.int32)
  used = np.zeros([K, A, G, S], bool)
  for a in range(A):
    for g in range(G):
      taken = RNG.permutation(X * C)  # Fewer than the choices.
      places = RNG.permutation(K * S)[:9]
      for slot, place in zip(taken, places):
        index = (place // S, a, g, place % S)
        experts[index], positions[index] = divmod(slot, C)
        used[index] = True
  return experts, positions, used


EXPERT, POSITION, USED = some_choices()
TOKENS = RNG.normal(size=(A, G, S, M))
ROWS = RNG.normal(size=(X, A, G, C, M))
WEIGHTS = RNG.normal(size=(K, A, G, S)) * USED
TO_SLOTS = RNG.normal(size=(X, A, G, C, M))  # The gradients that come back.
TO_TOKENS = RNG.normal(size=(A, G, S, M))


def used_places():
  """(k, a, g, s), and the slot (x, a, g, c), of every choice in use."""
  for k, a, g, s in np.argwhere(USED):
    yield (k, a, g, s), (
        EXPERT[k, a, g, s], a, g, POSITION[k, a, g, s])


def expected():
  filled, weight_in_slot = np.zeros_like(TO_SLOTS), np.zeros([X, A, G, C])
  total = np.zeros_like(TOKENS)
  of_tokens, of_rows = np.zeros_like(TOKENS), np.zeros_like(ROWS)
  of_weights = np.zeros_like(WEIGHTS)
  for choice, slot in used_places():
    token = choice[1:]
    filled[slot] = TOKENS[token]
    weight_in_slot[slot] = WEIGHTS[choice]
    total[token] += WEIGHTS[choice] * ROWS[slot]
    of_tokens[token] += TO_SLOTS[slot]
    of_rows[slot] = WEIGHTS[choice] * TO_TOKENS[token]
    of_weights[choice] = ROWS[slot] @ TO_TOKENS[token]
  return filled, weight_in_slot, total, of_tokens, of_rows, of_weights


@pytest.mark.parametrize("mesh, layout", [
    ((1, 1), ""), ((2, 2), "outer_batch:outer,batch:batch"),
    ((2, 2), "batch:outer,d_model:batch")], ids=str)
def test_against_loops(mesh, layout):
  impl = harness.mesh_impl(*mesh, layout=layout)
  arrays = {
      "tokens": (TOKENS, [*BATCH, GROUP, DEPTH]),
      "rows": (ROWS, [EXPERTS, *BATCH, CAPACITY, DEPTH]),
      "weights": (WEIGHTS, [CHOICES, *BATCH, GROUP]),
      "to_slots": (TO_SLOTS, [EXPERTS, *BATCH, CAPACITY, DEPTH]),
      "to_tokens": (TO_TOKENS, [*BATCH, GROUP, DEPTH]),
      "expert": (EXPERT, [CHOICES, *BATCH, GROUP]),
      "position": (POSITION, [CHOICES, *BATCH, GROUP])}

  def build(t):
    def choices(name):
      return [mtf.cast(one, tf.int32) for one in mtf.unstack(t[name], CHOICES)]

    table = slots.SlotTable.of(
        choices("expert"), choices("position"), t["weights"], EXPERTS, CAPACITY)
    filled = slots.fill_slots(table, t["tokens"])
    weights = slots.weights_in_slots(table, t["weights"])
    total = slots.sum_of_slots(table, t["rows"], weights)
    gradients = mtf.gradients(
        [filled, total], [t["tokens"], t["rows"], t["weights"]],
        [t["to_slots"], t["to_tokens"]])
    return [filled, weights, total, *gradients]

  actual = harness.evaluate(build, arrays, None, impl)
  for a, b in zip(actual, expected(), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_no_gradient_leads_through_the_table():
  graph = mtf.Graph()
  weights = mtf.ones(
      mtf.Mesh(graph, "mesh"), mtf.Shape([CHOICES, *BATCH, GROUP]))
  zeros = [mtf.cast(one, tf.int32) for one in mtf.unstack(weights, CHOICES)]
  table = slots.SlotTable.of(zeros, zeros, weights, EXPERTS, CAPACITY)
  assert not table.choices.operation.has_gradient


def test_rows_of_empty_slots_may_be_anything():
  """As experts that diverged make them, of zeros, too."""
  zero, far = mtf.Dimension("group", 2), mtf.Dimension("capacity", 2)
  choices, experts, depth = (mtf.Dimension(name, 1) for name in "kxm")

  def build(t):
    ids = [mtf.cast(t["numbers"], tf.int32)]
    table = slots.SlotTable.of(
        [mtf.zeros_like(ids[0])], ids, t["weights"], experts, far)
    weights = slots.weights_in_slots(table, t["weights"])
    total = slots.sum_of_slots(table, t["rows"], weights)
    return total, *mtf.gradients([total], [t["rows"], t["weights"]])

  total, of_rows, of_weights = harness.evaluate(build, {
      "numbers": (np.array([1, 0]), [zero]),
      "weights": (np.array([[2.0, 0.0]]), [choices, zero]),
      "rows": (np.array([[[np.nan], [3.0]]]), [experts, far, depth])}, None)
  np.testing.assert_array_equal(total, [[6.0], [0.0]])
  np.testing.assert_array_equal(of_rows, [[[0.0], [2.0]]])
  assert of_weights[0, 0] == 3.0
