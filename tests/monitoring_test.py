"""What is recorded of a level, counted by hand."""

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import utils
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import gating
from mtf_moe import monitoring
from tests import gin_config
from tests import harness

# One group of six tokens that choose among three experts.
GATES = np.array([
    [0.6, 0.3, 0.1],  # 0, then 1: dropped, since that buffer is full.
    [0.7, 0.2, 0.1],  # 0: dropped, since it has one slot; then 1: refused.
    [0.1, 0.8, 0.1],  # 1, then 0: refused.
    [0.0, 0.1, 0.9],  # Partial: 2 as its second choice.
    [0.9, 0.1, 0.0],  # Padding.
    [0.2, 0.2, 0.6],  # 2, which leaves no slot for the partial one.
])
IMPORTANCE = np.array([1.0, 1.0, 1.0, 0.5, 0.0, 1.0])


def recorded(router, importance=IMPORTANCE, z_loss=None):
  """The metrics of a router with one slot for each of the three experts."""
  batch, group, depth = (
      mtf.Dimension(*dim) for dim in (("batch", 1), ("group", 6), ("m", 3)))
  experts, capacity = mtf.Dimension("x", 3), mtf.Dimension("c", 1)
  logits = np.log(np.maximum(GATES, 1e-12))
  arrays = {"inputs": (logits[None], [batch, group, depth])}
  if importance is not None:
    arrays["importance"] = importance[None], [batch, group]

  def build(tensors):
    routed = gating.route(
        router, tensors["inputs"], None, experts, capacity,
        mtf_moe.Level(
            second_policy_train="threshold", second_threshold_train=0.3,
            z_loss=z_loss, switch_policy_train="argmax"),
        True, harness.variable_dtype(),
        importance=tensors.get("importance"))
    return monitoring.metrics(routed, [experts])

  return harness.evaluate(build, arrays, lambda name, shape: np.eye(shape[0]))


def test_top_2():
  found = recorded("top_2")
  assert {name: value for name, value in found.items()
          if name.startswith(("tokens", "choices", "slots"))} == {
      "tokens": 6, "tokens/padding": 1, "tokens/full": 4, "tokens/partial": 1,
      "tokens/lost": 2,  # The second, and the partial one.
      "choices_1/kept": 3, "choices_1/dropped": 1,
      # Wanted by the first (a third of 0.9) and by the partial one.
      "choices_2/kept": 0, "choices_2/dropped": 2, "choices_2/refused": 3,
      "slots": 3, "slots/empty": 0}
  # Wanted: 0 twice; 1 once, and once as a second choice; 2 once, and once.
  for expert in range(3):
    assert found[f"load/expert_{expert}"] == pytest.approx(2 / 6)
  assert found["load/max_over_mean"] == pytest.approx(1.0)
  assert found["load/coefficient_of_variation"] == pytest.approx(0, abs=1e-6)
  used = GATES[IMPORTANCE > 0]
  assert found["router/confidence"] == pytest.approx(used.max(axis=1).mean())
  assert found["router/entropy"] == pytest.approx(
      -(used * np.log(np.maximum(used, 1e-12))).sum() / 5, rel=1e-5)
  first = np.array([2, 1, 1]) / 6
  gates = GATES[IMPORTANCE == 1].sum(axis=0) / 6
  assert found["loss/balance"] == pytest.approx(
      9 * (first * gates).mean(), rel=1e-5)
  assert "loss/z" not in found


def test_switch():
  found = recorded("switch", z_loss=0.5)
  assert {name: value for name, value in found.items()
          if name.startswith(("tokens", "choices", "slots"))} == {
      "tokens": 6, "tokens/padding": 1, "tokens/full": 4, "tokens/partial": 1,
      "tokens/lost": 2,
      # The partial token has its choice, too, and comes before the last one.
      "choices_1/kept": 3, "choices_1/dropped": 2,
      "slots": 3, "slots/empty": 0}
  assert [found[f"load/expert_{i}"] for i in range(3)] == pytest.approx(
      [0.4, 0.2, 0.4])
  assert found["load/max_over_mean"] == pytest.approx(1.2)
  assert found["load/coefficient_of_variation"] == pytest.approx(
      np.std([0.4, 0.2, 0.4]) * 3, rel=1e-5)
  # The logits are logarithms of gates that sum to 1.
  assert found["loss/z"] == pytest.approx(0, abs=1e-6)


def test_without_importance_all_tokens_count():
  found = recorded("top_2", importance=None)
  assert found == recorded("top_2", importance=np.ones(6))
  assert found["tokens/full"] == 6


def test_only_padding_makes_no_nan():
  found = recorded("top_2", importance=np.zeros(6))
  assert found["tokens/padding"] == 6 and found["slots/empty"] == 3
  assert np.isfinite(list(found.values())).all()
  assert found["router/entropy"] == 0 and found["load/max_over_mean"] == 0


def graph_of_two_layers(mode, bindings=()):
  """The mtf graph of a language model with mixtures of 4 times 2 experts."""
  gin_config.parse(["models/lm_tiny.gin"], [
      "num_layers = 2", "d_model = 16", "d_kv = 8", "MoE2D.expert_x = 4",
      "MoE2D.expert_y = 2", "MoE2D.hidden_size = 8", *bindings])
  model = utils.build_model("lm", 32, 32, layout_rules="", mesh_shape="all:1")
  with tf.Graph().as_default():
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    ids = mtf.zeros(
        mesh, [mtf.Dimension("batch", 4), mtf.Dimension("length", 8)], tf.int32)
    model.call_simple(
        inputs=ids, targets=ids, compute_loss=True, mode=mode,
        variable_dtype=harness.variable_dtype())
  return graph


def test_every_layer_and_level_has_tags_of_its_own():
  names = set(harness.summaries(graph_of_two_layers("train")))
  tag = "moe/transformer/block_{:03}/layer_001/MoE2D/{}/{}"
  for layer in range(2):
    for level, last in (("outer", "expert_3"), ("inner", "expert_3_1")):
      assert tag.format(layer, level, "tokens/lost") in names
      assert tag.format(layer, level, f"load/{last}") in names
  of_layers = [{name.partition(f"block_{layer:03}/")[2] for name in names}
               for layer in range(2)]
  assert len(of_layers[0]) > 40 and of_layers[0] == of_layers[1]


@pytest.mark.parametrize("mode, binding", [
    ("eval", ""), ("train", "MoE2D.summaries = False")])
def test_nothing_is_recorded(mode, binding):
  assert not harness.summaries(graph_of_two_layers(mode, [binding]))


def test_nothing_is_recorded_inside_the_loop_over_microbatches():
  """Its tensors cannot be fetched."""
  def summaries(num_microbatches):
    with tf.Graph().as_default():
      graph = mtf.Graph()
      tokens = mtf.zeros(mtf.Mesh(graph, "mesh"), [
          mtf.Dimension("batch", 2), mtf.Dimension("length", 4),
          mtf.Dimension("d_model", 4)])
      mtf_moe.transformer_moe_layer_v2(
          tokens, tokens.shape.dims[-1],
          mtf_moe.MoeHparams(moe_num_experts=(2, 2), moe_hidden_size=4), True,
          harness.variable_dtype(), num_microbatches=num_microbatches)
    return harness.summaries(graph)

  assert summaries(1) and not summaries(2)
