"""Routers that mesh_tensorflow does not have, computed by hand."""

import math

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import gating
from tests import harness


def combine(router, gates, capacity, importance=None, **settings):
  """Runs a router on one group of tokens; returns combine [s, x, c], loss."""
  gates = np.asarray(gates, np.float64)
  group, experts = (
      mtf.Dimension(*dim) for dim in zip(("group", "experts"), gates.shape))
  batch, depth = mtf.Dimension("batch", 1), mtf.Dimension("m", experts.size)
  arrays = {"inputs": (
      np.log(np.maximum(gates, 1e-30))[None], [batch, group, depth])}
  if importance is not None:
    arrays["importance"] = (np.array([importance]), [batch, group])

  def build(tensors):
    routed = gating.route(
        router, tensors["inputs"], None, experts,
        mtf.Dimension("capacity", capacity),
        mtf_moe.Level(experts=experts.size, **settings), True,
        harness.variable_dtype(), importance=tensors.get("importance"))
    return routed.combine_tensor(tf.float32), routed.balance_loss

  combined, loss = harness.evaluate(
      build, arrays, lambda name, shape: np.eye(shape[0]))
  return combined[0], loss


# Four tokens, three experts.
GATES = [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.1, 0.4, 0.5]]


def test_expert_choice():
  combined, loss = combine("expert_choice", GATES, capacity=2)
  expected = np.zeros([4, 3, 2])
  # The two largest gates of every expert, the largest first.
  expected[0, 0, 0], expected[1, 0, 1] = 0.7, 0.6
  expected[3, 1, 0], expected[1, 1, 1] = 0.4, 0.3
  expected[3, 2, 0], expected[2, 2, 1] = 0.5, 0.4
  np.testing.assert_allclose(combined, expected, atol=1e-6)
  assert loss == 0


def test_expert_choice_takes_no_padding():
  combined, _ = combine(
      "expert_choice", GATES, capacity=2, importance=[1.0, 0.0, 0.0, 1.0])
  assert sorted(set(np.argwhere(combined)[:, 0].tolist())) == [0, 3]
  np.testing.assert_allclose(
      combined.sum(axis=(1, 2)), [1.0, 0, 0, 1.0], atol=1e-6)


# Six experts in three groups of two.
SIX = [
    [0.31, 0.00, 0.20, 0.20, 0.16, 0.13],  # Groups: 0.31, 0.40, 0.29.
    [0.05, 0.05, 0.45, 0.05, 0.30, 0.10],  # 0.10, 0.50, 0.40.
]


def test_group_limited_choice():
  """One group: the best one holds the best two experts, or it does not."""
  combined, _ = combine(
      "group_limited", SIX, capacity=2, limited_num_groups=3,
      limited_top_groups=1, limited_top_k=2)
  expected = np.zeros([2, 6])
  expected[0, [2, 3]] = 0.5  # And not expert 0, the likeliest of all.
  expected[1, [2, 3]] = [0.9, 0.1]
  np.testing.assert_allclose(combined.sum(axis=-1), expected, atol=1e-5)


def test_choice_of_two_groups():
  combined, _ = combine(
      "group_limited", SIX, capacity=3, limited_num_groups=3,
      limited_top_groups=2, limited_top_k=3)
  expected = np.zeros([2, 6])
  expected[0, [0, 2, 3]] = np.array([0.31, 0.2, 0.2]) / 0.71
  expected[1, [2, 4, 5]] = np.array([0.45, 0.3, 0.1]) / 0.85
  np.testing.assert_allclose(combined.sum(axis=-1), expected, atol=1e-5)


def test_one_choice_of_a_group_has_its_gate():
  """Normalized, it would always be 1, and the router would learn nothing."""
  combined, _ = combine(
      "group_limited", SIX, capacity=2, limited_num_groups=3,
      limited_top_groups=1, limited_top_k=1)
  expected = np.zeros([2, 6])
  expected[0, 2], expected[1, 2] = 0.2, 0.45
  np.testing.assert_allclose(combined.sum(axis=-1), expected, atol=1e-5)


def test_all_groups_are_top_n():
  settings = dict(limited_num_groups=3, limited_top_groups=3, limited_top_k=3)
  limited, loss = combine("group_limited", SIX, capacity=3, **settings)
  top_n, their_loss = combine("top_n", SIX, capacity=3,
                              second_policy_train="all")
  np.testing.assert_allclose(limited, top_n, atol=1e-6)
  assert loss == pytest.approx(their_loss)


@pytest.mark.parametrize("settings, said", [
    (dict(limited_num_groups=4), "limited_num_groups = 4 does not divide the"),
    (dict(limited_num_groups=3, limited_top_groups=4),
     "limited_top_groups = 4 is more than limited_num_groups = 3"),
    (dict(limited_num_groups=3, limited_top_groups=1, limited_top_k=3),
     "limited_top_k = 3 is more than the 2 experts of limited_top_groups = 1"),
])
def test_mistakes(settings, said):
  with pytest.raises(ValueError, match=said):
    combine("group_limited", SIX, capacity=2, **settings)


@pytest.mark.parametrize("router, loss_if_used", [
    ("top_2", 1.0), ("switch", 1.0), ("switch_max", 1.0), ("top_n", 1.0),
    ("ntlb", 1.0)])
def test_balance_over_the_tokens_that_count(router, loss_if_used):
  """Three of six tokens, each with an expert of its own, and certain of it."""
  gates = np.maximum(np.eye(3)[[0, 1, 2, 0, 0, 0]], 1e-30)
  importance = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
  settings = dict(capacity=6, importance=importance, ntlb_top_k=1,
                  top_n_num_experts_per_token=1,
                  switch_policy_train="argmax")
  _, loss = combine(router, gates, **settings)
  assert loss == pytest.approx(0.25, rel=1e-5)
  _, loss = combine(router, gates, balance_over_used=True, **settings)
  assert loss == pytest.approx(loss_if_used, rel=1e-5)


def test_balance_where_no_token_counts():
  _, loss = combine("top_2", GATES, capacity=2, importance=[0.0] * 4,
                    balance_over_used=True)
  assert loss == 0.0


def noisy(logits, kernel, train, drawn=None, k=2, importance=None):
  """Noisy top-k of logits, whose noise has deviations softplus(kernel).

  Returns:
    combine summed over slots [s, x], the loss, and the gradient of the loss by
    the logits [s, x]
  """
  logits = np.asarray(logits, np.float64)
  group, experts = (
      mtf.Dimension(*dim) for dim in zip(("group", "experts"), logits.shape))
  depth = mtf.Dimension("m", experts.size + 1)
  inputs = np.concatenate([logits, np.ones([group.size, 1])], axis=1)
  arrays = {"inputs": (inputs, [group, depth])}
  if importance is not None:
    arrays["importance"] = (np.array(importance), [group])

  def weights(name, shape):
    if name.endswith("noise/kernel"):
      return np.concatenate([np.zeros([experts.size] * 2), [kernel]])
    return np.eye(*shape)

  def build(tensors):
    routed = gating.route(
        "noisy_top_k", tensors["inputs"], None, experts,
        mtf.Dimension("capacity", group.size),
        mtf_moe.Level(experts=experts.size, noisy_top_k=k), train,
        harness.variable_dtype(), importance=tensors.get("importance"))
    gradient, = mtf.gradients([routed.balance_loss], [tensors["inputs"]])
    return routed.combine_tensor(tf.float32), routed.balance_loss, gradient

  def draw(mesh, shape, **unused_kwargs):
    return mtf.import_fully_replicated(
        mesh, tf.constant(drawn, tf.float32), shape, "drawn")

  with pytest.MonkeyPatch.context() as patch:
    if drawn is not None:
      patch.setattr(mtf, "random_normal", draw)
    combined, loss, gradient = harness.evaluate(build, arrays, weights)
  return combined.sum(axis=-1), loss, gradient[:, :experts.size]


def squared_variation(per_token):
  sums = per_token.sum(axis=0)
  return sums.var() / sums.mean() ** 2


LOGITS = np.array([[2.0, 1.0, 0.0, -1.0], [0.5, 2.5, 0.0, 0.4],
                   [0.0, 0.2, 0.1, 3.0], [1.0, -1.0, 2.0, 0.0],
                   [0.3, 0.2, 0.1, 0.0]])


def top_softmax(logits, k):
  exponentials = np.exp(logits) * (
      logits >= np.sort(logits, axis=-1)[:, -k, None])
  return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_noisy_top_k_without_noise(k):
  found, loss, _ = noisy(LOGITS, [1.0] * 4, train=False, k=k)
  expected = top_softmax(LOGITS, k)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert loss == pytest.approx(squared_variation(expected), rel=1e-5)


def noisy_in_numpy(logits, kernel, drawn, k):
  """(weights, loss), equations 3 to 5 and 8 to 11 of the paper."""
  deviation = np.log1p(np.exp(kernel))
  with_noise = logits + drawn * deviation
  weights = top_softmax(with_noise, k)
  likely = np.zeros_like(logits)
  for s, x in np.ndindex(*logits.shape):
    others = np.sort(np.delete(with_noise[s], x))
    likely[s, x] = 0.5 * (1 + math.erf(
        (logits[s, x] - others[-k]) / deviation[x] / math.sqrt(2)))
  return weights, squared_variation(weights) + squared_variation(likely)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_noisy_top_k(k):
  kernel = np.array([0.5, -0.5, 1.0, 0.0])
  drawn = np.random.default_rng(0).normal(size=LOGITS.shape)
  found, loss, gradient = noisy(LOGITS, kernel, True, drawn, k)
  weights, expected = noisy_in_numpy(LOGITS, kernel, drawn, k)
  np.testing.assert_allclose(found, weights, atol=1e-6)
  assert loss == pytest.approx(expected, rel=1e-5)
  step = 1e-5
  along = np.random.default_rng(1).normal(size=LOGITS.shape)
  before, after = (noisy_in_numpy(
      LOGITS + sign * step * along, kernel, drawn, k)[1] for sign in (-1, 1))
  assert (gradient * along).sum() == pytest.approx(
      (after - before) / (2 * step), rel=1e-3, abs=1e-5)


def test_noisy_top_k_counts_no_padding():
  kernel, drawn = np.zeros(4), np.random.default_rng(0).normal(size=(5, 4))
  found, loss, _ = noisy(LOGITS, kernel, True, drawn, 2, [1, 1, 0, 1, 0])
  used = [0, 1, 3]
  weights, expected = noisy_in_numpy(LOGITS[used], kernel, drawn[used], 2)
  np.testing.assert_allclose(found[used], weights, atol=1e-6)
  assert not found[[2, 4]].any()
  assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_noise_has_a_variable_of_its_own(train):
  """Also where there is no noise: checkpoints of training are read there."""
  with tf.Graph().as_default():
    graph = mtf.Graph()
    dims = [mtf.Dimension(*dim) for dim in (
        ("batch", 2), ("length", 8), ("m", 4))]
    mtf_moe.transformer_moe_layer_v2(
        mtf.zeros(mtf.Mesh(graph, "mesh"), mtf.Shape(dims)), dims[-1],
        {"moe_num_experts": (4, 2), "moe_gating": "noisy_top_k",
         "moe_noisy_top_k": 1}, train)
  shapes = {v.name: v.shape.to_integer_list for v in graph.all_variables}
  assert shapes["outer_gating/noise/kernel"] == [4, 4]
  assert shapes["inner_gating/noise/kernel"] == [4, 4, 2]


@pytest.mark.parametrize("loss", ["level", "hierarchical", "none"])
@pytest.mark.parametrize("train", [True, False])
def test_noisy_top_k_is_differentiated_without_its_loss(loss, train):
  with tf.Graph().as_default():
    graph = mtf.Graph()
    dims = [mtf.Dimension(*dim) for dim in (
        ("batch", 2), ("length", 8), ("m", 4))]
    outputs, _ = mtf_moe.transformer_moe_layer_v2(
        mtf.zeros(mtf.Mesh(graph, "mesh"), mtf.Shape(dims)), dims[-1],
        {"moe_num_experts": (4, 3), "moe_gating": "noisy_top_k",
         "moe_noisy_loss": loss}, train)
    gradients = mtf.gradients(
        [mtf.reduce_sum(outputs)],
        [v.outputs[0] for v in graph.trainable_variables])
  assert len(gradients) == 6  # Of four routers' variables and of the experts.
  assert None not in gradients


def test_noisy_top_k_of_more_experts_than_there_are():
  with pytest.raises(ValueError, match="noisy_top_k = 5 is more than the 4 ex"):
    noisy(LOGITS, [0.0] * 4, False, k=5)
