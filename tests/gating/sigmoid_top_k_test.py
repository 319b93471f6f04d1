"""Sigmoid gates with a bias that no gradient moves, by hand and in training."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import gating
from mtf_moe import updates
from tests import harness
from tests.train import program

# Logits of sigmoid gates 0.8, 0.5, 0.2; 0.5, 0.4, 0.1; 0.6, 0.7, 0.3.
GATES = np.array([[0.8, 0.5, 0.2], [0.5, 0.4, 0.1], [0.6, 0.7, 0.3]])
LOGITS = np.log(GATES / (1.0 - GATES))


def routed(bias=(0.0, 0.0, 0.0), importance=None, **settings):
  """(each token's weights [s, x], the loss, the gradient that moves the bias,
  the gradient of all weights by the logits)."""
  group, experts = mtf.Dimension("group", 3), mtf.Dimension("experts", 3)
  arrays = {"inputs": (LOGITS, [group, mtf.Dimension("m", 3)])}
  if importance is not None:
    arrays["importance"] = (np.array(importance), [group])

  def build(tensors):
    result = gating.route(
        "sigmoid_top_k", tensors["inputs"], None, experts,
        mtf.Dimension("capacity", 3), mtf_moe.Level(experts=3, **settings),
        True, harness.variable_dtype(), importance=tensors.get("importance"))
    bias, = (v for v in result.gates.graph.trainable_variables
             if v.name.endswith("bias"))
    weights = mtf.reduce_sum(
        result.combine_tensor(tf.float32), reduced_dim=result.capacity_dim)
    # Of different importance, as otherwise normalized ones have no gradient.
    objective = mtf.reduce_sum(weights * mtf.range(
        weights.mesh, experts, tf.float32))
    moved_by, by_logits = mtf.gradients(
        [objective], [bias.outputs[0], tensors["inputs"]])
    moved_by = moved_by or mtf.zeros(weights.mesh, [experts])
    return (weights, result.balance_loss, moved_by / updates._SCALE,
            by_logits)

  return harness.evaluate(
      build, arrays, lambda name, shape: np.array(bias) if (
          name.endswith("bias")) else np.eye(*shape))


def test_two_of_three():
  weights, loss, counts, _ = routed()
  expected = [[0.8 / 1.3, 0.5 / 1.3, 0.0], [0.5 / 0.9, 0.4 / 0.9, 0.0],
              [0.6 / 1.3, 0.7 / 1.3, 0.0]]
  np.testing.assert_allclose(weights, expected, atol=1e-6)
  np.testing.assert_array_equal(counts, [3.0, 3.0, 0.0])
  assert loss == 0.0


def test_the_bias_chooses_and_does_not_weigh():
  weights, _, counts, _ = routed(bias=[-0.25, 0.0, 0.15])
  # 0.55, 0.5, 0.35; 0.25, 0.4, 0.25; 0.35, 0.7, 0.45: ties to the first.
  expected = [[0.8 / 1.3, 0.5 / 1.3, 0.0], [0.5 / 0.9, 0.4 / 0.9, 0.0],
              [0.0, 0.7, 0.3]]
  np.testing.assert_allclose(weights, expected, atol=1e-6)
  np.testing.assert_array_equal(counts, [2.0, 3.0, 1.0])


def test_one_choice_has_its_gate():
  """Else the router would learn nothing."""
  weights, _, counts, by_logits = routed(sigmoid_top_k=1)
  np.testing.assert_allclose(
      weights, [[0.8, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.7, 0.0]], atol=1e-6)
  np.testing.assert_array_equal(counts, [2.0, 1.0, 0.0])
  expected = np.zeros([3, 3])
  expected[2, 1] = 0.7 * 0.3  # The only one that the objective weighs.
  np.testing.assert_allclose(by_logits, expected, atol=1e-6)


def test_padding_is_not_counted():
  _, _, counts, _ = routed(importance=[1.0, 0.0, 0.5])
  np.testing.assert_array_equal(counts, [2.0, 2.0, 0.0])


def test_without_a_bias_there_is_a_loss():
  _, loss, moved_by, _ = routed(sigmoid_bias_rate=0)
  shares = GATES / GATES.sum(axis=1, keepdims=True)
  first = np.array([2, 1, 0]) / 3
  assert loss == pytest.approx(
      3 * (first * shares.mean(axis=0)).sum(), rel=1e-5)
  assert not moved_by.any()


def test_more_than_there_are():
  with pytest.raises(ValueError, match="sigmoid_top_k = 4 is more than the 3"):
    routed(sigmoid_top_k=4)


def test_training_moves_the_bias(tmp_path):
  """By the rate in every step, also in parts and computed again."""
  program.write_text(tmp_path)
  result = program.run(
      tmp_path, "MoE2D.moe_gating = 'sigmoid_top_k'",
      "MoE2D.sigmoid_top_k = 1", "MoE2D.sigmoid_bias_rate = 0.25",
      "run.train_steps = 3",
      "LayerStack.recompute_grads = True",
      "serialize_num_microbatches.tokens_per_microbatch_per_replica = 16")
  assert "step 3 of 3" in result.stdout
  reader = tf.train.load_checkpoint(str(tmp_path / "model"))
  biases = {name: reader.get_tensor(name)
            for name in reader.get_variable_to_shape_map()
            if "_gating/bias" in name}
  # And neither has a slot of the optimizer.
  assert {name.partition("MoE2D/")[2]: value.shape
          for name, value in biases.items()} == {
              "outer_gating/bias": (2,), "inner_gating/bias": (2, 2)}
  for value in biases.values():
    # Of two experts, one goes up and one down, three times.
    assert set(np.unique(np.abs(value))) <= {0.25, 0.75}
    np.testing.assert_array_equal(value.sum(axis=-1), 0.0)
