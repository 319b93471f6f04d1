"""Noisy top-k at several levels: losses of all experts among each other.

Equations 13 and 14 of Shazeer et al. 2017, in NumPy.
"""

import math

import mesh_tensorflow as mtf
import numpy as np
import pytest

import mtf_moe
from tests import harness

SIZES = (4, 3, 3)
DEPTH = 5
BATCH = ("batch_3", "outer_batch", "batch")
TOKENS = np.random.default_rng(0).normal(size=(12, DEPTH)) * 0.7


def names(num_levels):
  return {1: ["noisy_top_k_gating"], 2: ["outer_gating", "inner_gating"],
          3: ["gating_1", "gating_2", "gating_3"]}[num_levels]


def kernel(name, shape):
  return harness.random_weights(name, shape) * 0.5


def layer_loss(tokens, num_levels, ks, losses, dispatch="einsum", train=True):
  """The loss of a layer without noise, and its gradient by the tokens."""
  levels = [
      mtf_moe.Level(
          experts=experts, router="noisy_top_k", noisy_top_k=k, noisy_loss=loss,
          min_expert_capacity=256, group_size=1024)
      for experts, k, loss in zip(SIZES, ks, losses)]
  dims = [mtf.Dimension(name, 1) for name in BATCH[-num_levels:]] + [
      mtf.Dimension("length", len(tokens)), mtf.Dimension("m", DEPTH)]

  def build(tensors):
    _, loss = mtf_moe.transformer_moe_layer(
        tensors["inputs"], dims[-1],
        {"moe_hidden_size": 2, "moe_loss_coef": 1.0, "moe_dispatch": dispatch},
        train, levels=levels)
    gradient, = mtf.gradients([loss], [tensors["inputs"]])
    return loss, gradient

  def no_noise(mesh, shape, **unused_kwargs):
    return mtf.zeros(mesh, shape)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mtf, "random_normal", no_noise)
    loss, gradient = harness.evaluate(
        build, {"inputs": (tokens.reshape([dim.size for dim in dims]), dims)},
        kernel)
  return loss, gradient.reshape(tokens.shape)


def routed(tokens, kernels, k):
  """(weights [s, x], probabilities of being chosen [s, x]) of one router."""
  logits, deviation = tokens @ kernels[0], np.log1p(np.exp(tokens @ kernels[1]))
  weights, likely = np.zeros_like(logits), np.zeros_like(logits)
  for s, row in enumerate(logits):
    best = np.argsort(-row)[:k]
    weights[s, best] = np.exp(row[best]) / np.exp(row[best]).sum()
    for x, logit in enumerate(row):
      others = np.sort(np.delete(row, x))
      likely[s, x] = 0.5 * (1 + math.erf(
          (logit - others[-k]) / deviation[s, x] / math.sqrt(2)))
  return weights, likely


def importance_and_load(tokens, num_levels, ks, path=(), share=1.0, load=None):
  """Those of all experts of each level below a path, as lists of arrays.

  Args:
    tokens: [s, m], those that arrive.
    num_levels: an integer, levels in all.
    ks: how many experts a token uses at each level.
    path: the experts above.
    share: the product of each token's weights above.
    load: that of the expert above.
  """
  depth = len(path)
  name, x = names(num_levels)[depth], SIZES[depth]
  above = SIZES[:depth]
  kernels = [
      kernel(f"{name}/{part}kernel",
             [*reversed(above), DEPTH, x])[tuple(reversed(path))]
      for part in ("", "noise/")]
  weights, likely = routed(tokens, kernels, ks[depth])
  shares = weights * np.reshape(share, [-1, 1])
  loads = likely.sum(axis=0) * (1.0 if load is None else load / len(tokens))
  results = [[] for _ in range(num_levels)]
  results[depth].append((shares.sum(axis=0), loads))
  if depth + 1 < num_levels:
    for expert in range(x):
      here = weights[:, expert] > 0
      for level, found in enumerate(importance_and_load(
          tokens[here], num_levels, ks, (*path, expert), shares[here, expert],
          loads[expert])):
        results[level] += found
  return results


def squared_variation(sums):
  sums = np.concatenate(sums)
  return sums.var() / sums.mean() ** 2


def hierarchical(tokens, num_levels, ks):
  """The loss of each level."""
  return [sum(squared_variation(kind) for kind in zip(*found))
          for found in importance_and_load(tokens, num_levels, ks)]


@pytest.mark.parametrize("num_levels, ks, dispatch", [
    (1, (2,), "einsum"), (2, (2, 2), "einsum"), (2, (2, 2), "index"),
    (2, (1, 1), "einsum"), (3, (2, 2, 1), "index")])
def test_losses_and_gradients(num_levels, ks, dispatch):
  losses = ["hierarchical"] * num_levels
  loss, gradient = layer_loss(TOKENS, num_levels, ks, losses, dispatch)
  assert loss == pytest.approx(
      sum(hierarchical(TOKENS, num_levels, ks)), rel=1e-4)
  along = np.random.default_rng(1).normal(size=TOKENS.shape)
  step = 1e-5
  before, after = (
      sum(hierarchical(TOKENS + sign * step * along, num_levels, ks))
      for sign in (-1, 1))
  assert (gradient * along).sum() == pytest.approx(
      (after - before) / (2 * step), rel=1e-3)


def test_only_at_the_last_level_as_in_the_paper():
  """A level without a loss says nothing of load: then it is counted."""
  loss, _ = layer_loss(TOKENS, 2, (2, 2), ["none", "hierarchical"])
  (_, inner) = importance_and_load(TOKENS, 2, (2, 2))
  outer, _ = routed(TOKENS, [
      kernel(f"outer_gating/{part}kernel", [DEPTH, 4])
      for part in ("", "noise/")], 2)
  arrived = (outer > 0).sum(axis=0)
  smooth = importance_and_load(TOKENS, 2, (2, 2))[0][0][1]
  importance, load = zip(*inner)
  counted = [one * count / likely
             for one, count, likely in zip(load, arrived, smooth)]
  assert loss == pytest.approx(
      squared_variation(importance) + squared_variation(counted), rel=1e-4)


def test_outside_of_training_there_is_no_load():
  loss, _ = layer_loss(TOKENS, 2, (2, 2), ["hierarchical"] * 2, train=False)
  expected = sum(squared_variation([importance for importance, _ in found])
                 for found in importance_and_load(TOKENS, 2, (2, 2)))
  assert loss == pytest.approx(expected, rel=1e-4)


def test_one_that_is_not_known():
  with pytest.raises(ValueError, match="noisy_loss = 'all' is not known"):
    mtf_moe.Level(noisy_loss="all")
