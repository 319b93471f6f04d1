"""What a whole layer records of its tokens, against what it returns."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from tests import any_levels_test
from tests import harness

ROOM = {**any_levels_test.ROOM_FOR_ALL, "moe_capacity_factor_train": 16.0,
        "moe_capacity_factor_second_level": 16.0}
LITTLE_ROOM = {**ROOM, "moe_capacity_factor_train": 0.8,
               "moe_capacity_factor_second_level": 0.6}
# Of 32 tokens, these are padding.
PADDING = [3, 4, 17]
DIMS = [mtf.Dimension("outer_batch", 2), mtf.Dimension("batch", 2),
        mtf.Dimension("length", 8)]


def run(level_list, hparams, sizes=(1, 1)):
  """How many experts each token reaches, [n], and what the layer records."""
  number = int(np.prod(level_list))
  impl = harness.mesh_impl(*sizes)

  def experts(inputs, output_dim, expert_dims, *unused_args):
    """A one at the number of the expert."""
    found = 0
    for dim in expert_dims:
      found = found * dim.size + mtf.range(inputs.mesh, dim, tf.int32)
    ones = mtf.one_hot(found, output_dim, dtype=inputs.dtype)
    return mtf.broadcast(
        ones, mtf.Shape([*inputs.shape.dims[:-1], output_dim]))

  def build(tensors):
    outputs, _ = mtf_moe.transformer_moe_layer(
        tensors["inputs"], mtf.Dimension("number", number), hparams, True,
        nonpadding=tensors["nonpadding"], experts=experts, levels=level_list,
        layout=impl.layout_rules, mesh_shape=impl.shape)
    recorded = harness.summaries(outputs.graph)
    return {"outputs": outputs} | {
        name.removeprefix("moe/layer/"): tensor
        for name, tensor in recorded.items() if "/layer/tokens/" in name}

  nonpadding = np.ones(32)
  nonpadding[PADDING] = 0
  depth = any_levels_test.DEPTH
  found = harness.evaluate(build, {
      "inputs": (np.random.default_rng(1).normal(size=[2, 2, 8, 6]),
                 [*DIMS, depth]),
      "nonpadding": (nonpadding.reshape([2, 2, 8]), DIMS)},
      any_levels_test.weights, impl)
  outputs = found.pop("outputs").reshape([32, -1])
  return (outputs != 0).sum(axis=-1), found


@pytest.mark.parametrize("hparams", [
    {"moe_dispatch": "einsum"}, {"moe_dispatch": "index"},
    {"moe_gating": "switch", "moe_switch_policy_train": "argmax"},
    {"moe_importance_below": "full"}], ids=str)
@pytest.mark.parametrize("level_list", [(4,), (4, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (2, 2)], ids=str)
def test_which_experts_tokens_reach(level_list, hparams, sizes):
  if sizes != (1, 1) and len(level_list) == 3:
    pytest.skip("The layout is that of two levels.")
  # With room for all, a token reaches what it chose.
  chosen, found = run(level_list, ROOM | hparams, sizes)
  used = np.delete(np.arange(32), PADDING)
  assert not chosen[PADDING].any() and (chosen[used] > 0).all()
  assert found == {
      "tokens/not_finite": 0, "tokens/used": 29, "tokens/no_expert": 0,
      "tokens/fewer_experts": 0,
      "tokens/experts_each": pytest.approx(chosen.sum() / 29)}
  reached, found = run(level_list, LITTLE_ROOM | hparams, sizes)
  none = reached[used] == 0
  fewer = ~none & (reached < chosen)[used]
  assert none.any() and (fewer.any() or "moe_gating" in hparams)
  assert found == {
      "tokens/not_finite": 0, "tokens/used": 29,
      "tokens/no_expert": none.sum(), "tokens/fewer_experts": fewer.sum(),
      "tokens/experts_each": pytest.approx(reached.sum() / 29)}


def test_a_token_that_tries_again_lost_nothing():
  """It wants one expert, and has one, or none."""
  reached, found = run((4,), LITTLE_ROOM | {
      "moe_gating": "ntlb", "moe_ntlb_top_k": 2,
      "moe_switch_policy_train": "argmax"})
  none = np.delete(reached, PADDING) == 0
  assert set(reached) == {0, 1}
  assert found["tokens/no_expert"] == none.sum() > 0
  assert found["tokens/fewer_experts"] == 0


def test_experts_that_choose():
  reached, found = run((4,), LITTLE_ROOM | {"moe_gating": "expert_choice"})
  assert found["tokens/no_expert"] == (np.delete(reached, PADDING) == 0).sum()
  assert found["tokens/experts_each"] == pytest.approx(reached.sum() / 29)
