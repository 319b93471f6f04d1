"""Variables of routers that a rule moves, in a training step.

A router counts the tokens of each expert, and its rule adds up what it counted.
"""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import gating
from tests import harness
from tests.oracle import comparison

DIMS = [mtf.Dimension(*dim) for dim in (
    ("outer_batch", 2), ("batch", 2), ("length", 8), ("m", 4))]
TOKENS = np.random.default_rng(0).normal(size=[dim.size for dim in DIMS])
# All tokens find room, however they choose.
SETTINGS = {"moe_num_experts": (3, 2), "moe_hidden_size": 4,
            "moe_group_size": 16, "moe_min_expert_capacity": 64}


def counting(scores):
  """Top-1, and a variable that is the number of tokens so far."""
  seen = scores.variable("seen", lambda seen, counts: seen + counts)
  gate, expert = gating.top_1(scores.gates, scores.experts_dim)
  mask = mtf.one_hot(expert, scores.experts_dim) * scores.used
  counts = mtf.reduce_sum(
      mask, output_shape=[*scores.outer_expert_dims, scores.experts_dim])
  return gating.TokenChoice([expert], [gate + 0.0 * mtf.gather(
      seen, expert, scores.experts_dim)], updates={"seen": counts})


def plain(scores):
  """The same without the variable."""
  gate, expert = gating.top_1(scores.gates, scores.experts_dim)
  return gating.TokenChoice([expert], [gate])


def trained(router, steps=1, num_microbatches=1, recompute=False, mesh=(1, 1),
            optimizer=mtf.optimize.AdafactorOptimizer, **settings):
  """Trains the layer alone; returns the value of every variable, by name."""
  def loss_of(inputs):
    def outputs(inputs):
      return mtf_moe.transformer_moe_layer_v2(
          inputs, DIMS[-1], {**SETTINGS, "moe_gating": router, **settings},
          True, layout=impl.layout_rules, mesh_shape=impl.shape,
          num_microbatches=num_microbatches)[0]

    if recompute:
      result = mtf.recompute_grad(outputs, [inputs])
    else:
      result = outputs(inputs)
    return mtf.reduce_mean(mtf.square(result - inputs)) / num_microbatches

  impl = harness.mesh_impl(*mesh)
  # As Estimators have it: other variables could be read after their update.
  resources = tf.VariableScope(reuse=None, name="", use_resource=True)
  with (tf.Graph().as_default(), tf.variable_scope(resources),
        comparison.same_draws()):
    graph = mtf.Graph()
    inputs = mtf.import_fully_replicated(
        mtf.Mesh(graph, "mesh"), tf.constant(TOKENS, tf.float32),
        mtf.Shape(DIMS), "inputs")
    if num_microbatches > 1:
      gradients, _ = mtf.serialize_training_step(
          {"inputs": inputs}, lambda part: {"loss": loss_of(part["inputs"])},
          DIMS[1], num_microbatches)
    else:
      gradients = mtf.gradients(
          [loss_of(inputs)], [v.outputs[0] for v in graph.trainable_variables])
    assignments = optimizer(learning_rate=0.1).apply_grads(
        gradients, graph.trainable_variables)
    lowering = mtf.Lowering(graph, {inputs.mesh: impl})
    step = tf.group([lowering.lowered_operation(one) for one in assignments])
    with tf.Session(config=harness.graphs_as_built()) as session:
      session.run(tf.global_variables_initializer())
      for variable in tf.global_variables():
        name = variable.op.name
        if name.endswith("kernel"):
          variable.load(harness.random_weights(
              name, variable.shape.as_list()), session)
      session.run(lowering.copy_masters_to_slices())
      for _ in range(steps):
        session.run(step)
      session.run(lowering.copy_slices_to_masters())
      return {v.op.name: session.run(v) for v in tf.global_variables()
              if "slice" not in v.op.name}


def chosen_at_first():
  """How many tokens choose each expert, [3] and [3, 2], in NumPy."""
  tokens = TOKENS.reshape([-1, 4])
  outer = harness.random_weights("outer_gating/kernel", [4, 3])
  inner = harness.random_weights("inner_gating/kernel", [3, 4, 2])
  at_outer, at_inner = np.zeros(3), np.zeros([3, 2])
  for token in tokens:
    x = np.argmax(token @ outer)
    at_outer[x] += 1
    at_inner[x, np.argmax(token @ inner[x])] += 1
  return at_outer, at_inner


@pytest.mark.parametrize("how", [
    {}, {"num_microbatches": 2}, {"recompute": True}, {"mesh": (2, 1)}],
    ids=["plain", "microbatches", "recomputed", "mesh"])
def test_the_rule_moves_it(how):
  values = trained(counting, **how)
  at_outer, at_inner = chosen_at_first()
  np.testing.assert_array_equal(values["outer_gating/seen"], at_outer)
  np.testing.assert_array_equal(values["inner_gating/seen"], at_inner)


def test_what_moves_it_is_nothing_to_who_looks_at_all_gradients():
  """Such as a program that clips them by their norm."""
  with tf.Graph().as_default():
    graph = mtf.Graph()
    inputs = mtf.import_fully_replicated(
        mtf.Mesh(graph, "mesh"), tf.constant(TOKENS, tf.float32),
        mtf.Shape(DIMS), "inputs")
    outputs, _ = mtf_moe.transformer_moe_layer_v2(
        inputs, DIMS[-1], {**SETTINGS, "moe_gating": counting}, True)
    seen, = (v for v in graph.trainable_variables
             if v.name == "outer_gating/seen")
    gradient, = mtf.gradients([mtf.reduce_sum(outputs)], [seen.outputs[0]])
    lowering = mtf.Lowering(graph, {inputs.mesh: harness.mesh_impl()})
    with tf.Session(config=harness.graphs_as_built()) as session:
      session.run(tf.global_variables_initializer())
      session.run(lowering.copy_masters_to_slices())
      value = session.run(lowering.export_to_tf_tensor(gradient))
  assert 0 < value.sum() < 1e-9


def test_every_step_moves_it():
  values = trained(counting, steps=3)
  num_tokens = TOKENS.size / 4
  assert values["outer_gating/seen"].sum() == 3 * num_tokens
  assert values["inner_gating/seen"].sum() == 3 * num_tokens


def test_sigmoid_gates_have_a_bias_against_what_was_chosen():
  values = trained("sigmoid_top_k", moe_sigmoid_top_k=1,
                   moe_sigmoid_bias_rate=0.25)
  for name, counts in zip(("outer", "inner"), chosen_at_first()):
    np.testing.assert_array_equal(
        values[f"{name}_gating/bias"],
        0.25 * np.sign(counts.mean(axis=-1, keepdims=True) - counts))


def test_the_optimizer_keeps_nothing_of_it():
  with_it, without = trained(counting), trained(plain)
  assert any("slot" in name for name in without)
  assert {name for name in with_it if name not in without} == {
      "outer_gating/seen", "inner_gating/seen"}


def test_others_are_the_optimizers():
  # Not Adafactor: where a gradient is rounding, its steps are as long as
  # anywhere.
  with_it, without = (
      trained(router, optimizer=mtf.optimize.SgdOptimizer)
      for router in (counting, plain))
  for name, value in without.items():
    np.testing.assert_allclose(
        with_it[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_outside_of_a_step_it_stays():
  """Where no gradients are built, nothing moves it."""
  with tf.Graph().as_default():
    graph = mtf.Graph()
    inputs = mtf.zeros(mtf.Mesh(graph, "mesh"), mtf.Shape(DIMS))
    mtf_moe.transformer_moe_layer_v2(
        inputs, DIMS[-1], {**SETTINGS, "moe_gating": counting}, False)
    assert {v.name for v in graph.all_variables} >= {
        "outer_gating/seen", "inner_gating/seen"}
    assert not any(isinstance(op, mtf.Assign) for op in graph.operations)


@pytest.mark.parametrize("updates, said", [
    (lambda counts: {"sene": counts},
     r"returned an update of 'sene', and its variables are \['seen'\]"),
    (lambda counts: {"seen": mtf.reduce_sum(counts)},
     r"returned the update of 'seen' of float32 Shape\[\], where float32 S"),
    (lambda counts: [("seen", counts)], "returned updates of \\[.*a dict from"),
    (lambda counts: {"seen": 1.0},
     "returned the update of 'seen' of 1.0, where float32 Shape"),
])
def test_what_is_no_update(updates, said):
  def router(scores):
    choice = counting(scores)
    return gating.TokenChoice(
        choice.experts, choice.weights,
        updates=updates(choice.updates["seen"]))

  with pytest.raises(ValueError, match=f"moe_gating = 'router' {said}"):
    trained(router)


@pytest.mark.parametrize("rules", [[3], [max, max]], ids=["number", "twice"])
def test_what_is_no_rule(rules):
  def router(scores):
    for rule in rules:
      scores.variable("seen", rule)
    return plain(scores)

  with pytest.raises(ValueError, match="makes the variable 'seen' twice, or"):
    trained(router)


def test_experts_that_choose_may_have_one():
  def router(scores):
    choice = gating.find("expert_choice").choose(scores)
    seen = scores.variable("seen", lambda seen, counts: seen + counts)
    return gating.ExpertChoice(
        choice.tokens, choice.weights, choice.balance_loss,
        updates={"seen": 0.0 * seen + 1.0})

  values = trained(router, steps=2)
  np.testing.assert_array_equal(values["outer_gating/seen"], [2.0] * 3)
