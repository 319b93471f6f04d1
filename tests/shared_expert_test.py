"""The shared expert: what it adds, to whom, and what it leaves as it was."""

import collections

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import transformer
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import layer_records
from mtf_moe import levels
from mtf_moe.plan import mixtures
from tests import harness
from tests.transformer_layers_test import run_model
from tests.transformer_layers_test import some_ids

DEPTH = mtf.Dimension("d_model", 6)
HIDDEN = 5  # Of the shared expert.
# One slot for each expert in groups of 8 tokens: many are dropped.
LITTLE_ROOM = {
    "moe_hidden_size": 8, "moe_group_size": 8, "moe_min_expert_capacity": 1,
    "moe_capacity_factor_train": 0.5, "moe_capacity_factor_second_level": 0.5,
    "moe_second_policy_train": "all"}
# So that the mesh makes no difference.
ROOM_FOR_ALL = {
    **LITTLE_ROOM, "moe_capacity_factor_train": 4.0,
    "moe_capacity_factor_second_level": 4.0}
KERNELS = ["shared_expert/wi/kernel", "shared_expert/wo/kernel"]


def weights(name, shape):
  return harness.random_weights(name, shape) * (
      1.0 if "gating" in name else shape[-2] ** -0.5)


def dims_of(num_levels):
  return [*(mtf.Dimension(name, 4) for name in levels.batch_names(num_levels)),
          mtf.Dimension("length", 8)]


def some_inputs(dims):
  return np.random.default_rng(0).normal(size=[dim.size for dim in dims] + [6])


def run(num_levels, shared, inputs=None, nonpadding=None, impl=None,
        sees=lambda outputs: outputs, **hparams):
  """Runs the layer in training.

  Args:
    num_levels: how many levels of experts it has.
    shared: a dict from names to moe_shared_hidden_size, of layers with the same
      weights.
    inputs: of depth 6, or None for random ones.
    nonpadding: ones and zeros, or None.
    impl: a mesh implementation, or None for one of one slice.
    sees: a function from the layer's outputs to the one to look at.
    **hparams: that differ from LITTLE_ROOM.

  Returns:
    a `harness.Result` for each name
  """
  dims, impl = dims_of(num_levels), impl or harness.mesh_impl()

  def layer(size):
    def call(tensors):
      outputs, loss = mtf_moe.transformer_moe_layer(
          tensors["inputs"], DEPTH,
          {**LITTLE_ROOM, "moe_shared_hidden_size": size, **hparams}, True,
          harness.variable_dtype(), layout=impl.layout_rules,
          mesh_shape=impl.shape, levels=[4, 2, 2][:num_levels],
          nonpadding=tensors.get("nonpadding"))
      return sees(outputs), loss
    return call

  arrays = {"inputs": (some_inputs(dims) if inputs is None else inputs,
                       [*dims, DEPTH])}
  if nonpadding is not None:
    arrays["nonpadding"] = nonpadding, dims
  return harness.run_layers(
      {name: layer(size) for name, size in shared.items()}, arrays, impl,
      weights)


BOTH = {"with": HIDDEN, "without": None}


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_its_output_is_added(num_levels):
  """With its gradients, by hand; those of all else are as they were."""
  results = run(num_levels, BOTH)
  found, without = results["with"], results["without"]
  inputs = some_inputs(dims_of(num_levels))
  wi, wo = (weights(name, shape) for name, shape in zip(
      KERNELS, [(6, HIDDEN), (HIDDEN, 6)]))
  before = inputs @ wi
  hidden = np.maximum(before, 0)
  np.testing.assert_allclose(
      found.output, without.output + hidden @ wo, atol=1e-5)
  assert (np.abs(without.output).max(axis=-1) == 0).any()  # Some are dropped.
  assert found.loss == without.loss
  direction = harness.output_direction(0, inputs.shape)
  of_hidden = direction @ wo.T * (before > 0)
  np.testing.assert_allclose(
      found.input_gradient - without.input_gradient, of_hidden @ wi.T,
      atol=1e-4)
  expected = dict(without.gradients)
  for name, x, gradient in zip(
      KERNELS, (inputs, hidden), (of_hidden, direction)):
    expected[name] = (x.reshape([-1, x.shape[-1]]).T
                      @ gradient.reshape([-1, gradient.shape[-1]]))
  assert found.gradients.keys() == expected.keys()
  for name, gradient in expected.items():
    np.testing.assert_allclose(
        found.gradients[name], gradient, err_msg=name, rtol=0,
        atol=1e-5 * np.abs(gradient).max())


def test_its_variables():
  variables = run(2, BOTH)["with"].variables
  assert {name: dims for name, dims in variables.items()
          if "shared" in name} == dict(zip(KERNELS, [
              (("d_model", 6), ("shared_hidden", HIDDEN)),
              (("shared_hidden", HIDDEN), ("d_model", 6))]))
  assert dict(variables["wi/kernel"])["expert_hidden"] == 8


def test_it_is_of_the_same_kind_as_the_others():
  results = run(2, BOTH, moe_activation=["sigmoid", "linear"])
  inputs = some_inputs(dims_of(2))
  gate, linear = (
      inputs @ weights(f"shared_expert/wi_{number}/kernel", (6, HIDDEN))
      for number in (0, 1))
  np.testing.assert_allclose(
      results["with"].output - results["without"].output,
      linear / (1 + np.exp(-gate)) @ weights(KERNELS[1], (HIDDEN, 6)),
      atol=1e-5)


def test_several_outputs():
  results = run(1, BOTH, moe_use_experts_attention=True,
                sees=lambda outputs: outputs[0] - 3 * outputs[1])
  hidden = np.maximum(
      some_inputs(dims_of(1)) @ weights(KERNELS[0], (6, HIDDEN)), 0)
  queries, keys = (
      hidden @ weights(f"shared_expert/{name}_wo/kernel", (HIDDEN, 6))
      for name in ("q", "k"))
  np.testing.assert_allclose(
      results["with"].output - results["without"].output, queries - 3 * keys,
      atol=1e-5)


def test_its_hidden_units_are_dropped_in_training(monkeypatch):
  sizes = []

  def dropout(x, train, **unused_kwargs):
    sizes.append(x.shape.dims[-1].size)
    return x

  monkeypatch.setattr(mtf, "dropout", dropout)
  run(2, {"with": HIDDEN}, moe_dropout_rate=0.5)
  assert sizes == [8, HIDDEN]


def test_padding_and_tokens_that_are_not_finite_get_nothing():
  """Though a sigmoid makes something of zeros; and no other token notices."""
  settings = {**ROOM_FOR_ALL, "moe_activation": "sigmoid"}
  inputs = some_inputs(dims_of(2))
  usual = run(2, BOTH, inputs, np.ones(inputs.shape[:-1]), **settings)["with"]
  nonpadding = np.ones(inputs.shape[:-1])
  padding, bad = (0, 1, 2), (3, 2, 5)
  nonpadding[padding] = 0
  inputs[bad] = np.nan
  found = run(2, BOTH, inputs, nonpadding, **settings)["with"]
  zero = np.zeros(inputs.shape[:-1], bool)
  zero[padding] = zero[bad] = True
  assert not found.output[zero].any()
  np.testing.assert_allclose(
      found.output[~zero], usual.output[~zero], atol=1e-5)
  for gradient in (found.input_gradient, *found.gradients.values()):
    assert np.isfinite(gradient).all()
  direction = harness.output_direction(0, inputs.shape)
  hidden = 1 / (1 + np.exp(
      -inputs[~zero] @ weights(KERNELS[0], (6, HIDDEN))))
  np.testing.assert_allclose(
      found.gradients[KERNELS[1]], hidden.T @ direction[~zero], atol=1e-4)


@pytest.mark.parametrize("layout", [
    harness.CANONICAL_LAYOUT,
    # Its hidden units over cores that all have the same tokens.
    "batch:batch,expert_x:batch,shared_hidden:outer",
    # Those of the others over the axis of the outer batch, which its tokens
    # still have.
    "outer_batch:outer,batch:batch,expert_x:batch,expert_hidden:outer"])
def test_the_mesh_makes_no_difference(layout):
  settings = {**ROOM_FOR_ALL, "moe_shared_hidden_size": 4}
  expected, actual = (
      run(2, {"with": 4}, impl=impl, **settings)["with"] for impl in (
          harness.mesh_impl(), harness.mesh_impl(2, 2, layout)))
  np.testing.assert_allclose(actual.output, expected.output, atol=1e-5)
  for name, gradient in expected.gradients.items():
    np.testing.assert_allclose(
        actual.gradients[name], gradient, err_msg=name, rtol=0,
        atol=1e-5 * np.abs(gradient).max())


def collectives(size):
  """What communicates in a training step on a 2x2 mesh: elements, by kind."""
  def layer(tensors):
    return mtf_moe.transformer_moe_layer_v2(
        tensors["inputs"], DEPTH,
        {**ROOM_FOR_ALL, "moe_num_experts": (4, 2), "moe_summaries": False,
         "moe_shared_hidden_size": size}, True,
        layout=harness.CANONICAL_LAYOUT, mesh_shape="outer:2,batch:2")

  counted = collections.Counter()
  for kind, value in harness.communication(
      layer, [*dims_of(2), DEPTH], "outer:2,batch:2", harness.CANONICAL_LAYOUT):
    counted[kind] += value
  return counted


def test_nothing_travels_but_the_gradients_of_its_variables():
  more = collectives(HIDDEN)
  more.subtract(collectives(None))
  # Those of two kernels, added up once over the four cores.
  assert {kind: value for kind, value in more.items() if value} == {
      "allreduce": 4 * 2 * 6 * HIDDEN}


def record_of(size):
  """The record of a layer."""
  with tf.Graph().as_default():
    graph = mtf.Graph()
    tokens = mtf.zeros(
        mtf.Mesh(graph, "mesh"), mtf.Shape([*dims_of(2), DEPTH]))
    mtf_moe.transformer_moe_layer(
        tokens, DEPTH, {**LITTLE_ROOM, "moe_shared_hidden_size": size}, True,
        levels=[4, 2])
    return layer_records.of(graph)[0]


def test_tokens_that_no_other_expert_takes_are_lost():
  """In the records of training, and in the plan."""
  def recorded(size):
    dims, names = dims_of(2), []

    def build(tensors):
      mtf_moe.transformer_moe_layer_v2(
          tensors["inputs"], DEPTH,
          {**LITTLE_ROOM, "moe_num_experts": (4, 2),
           "moe_shared_hidden_size": size}, True, harness.variable_dtype())
      summaries = harness.summaries(tensors["inputs"].graph)
      names.extend(summaries)
      return list(summaries.values())

    values = harness.evaluate(
        build, {"inputs": (some_inputs(dims), [*dims, DEPTH])}, weights)
    return dict(zip(names, map(float, values)))

  expected, actual = recorded(None), recorded(HIDDEN)
  changed = {name for name, value in actual.items() if value != expected[name]}
  assert {name.rpartition("/layer/")[2] for name in changed} == {"outputs/rms"}
  lost, = (value for name, value in actual.items()
           if name.endswith("outer/tokens/lost"))
  assert lost > 0
  without, with_it = (
      mixtures.balanced(record.levels, record.hparams)
      for record in (record_of(None), record_of(HIDDEN)))
  assert with_it == without and with_it.lost_tokens > 0


def test_in_gin():
  """A parameter of the layer: it trains in a model, and decodes as it scores.
  """
  prompt = some_ids(4)
  prompt[:, 3:] = 0
  names = []

  def decode(model, tensors):
    ids = model.sample_autoregressive(
        tensors["targets"], variable_dtype=harness.variable_dtype())
    names.extend(v.name for v in ids.graph.trainable_variables)
    return ids

  def likeliest(model, tensors):
    logits, _ = model.call_simple(
        inputs=transformer.autoregressive_inputs(tensors["targets"]),
        targets=tensors["targets"], compute_loss=False, mode="eval",
        variable_dtype=harness.variable_dtype())
    return mtf.argmax(logits, logits.shape.dims[-1])

  bindings = ["MoE2D.shared_hidden_size = 24"]
  ids = run_model(
      "models/lm_tiny.gin", (2, 2), {"targets": prompt}, decode, bindings)
  assert [name.rpartition("MoE2D/")[2] for name in names
          if "shared" in name] == KERNELS
  after = run_model("models/lm_tiny.gin", (1, 1), {"targets": ids.astype(int)},
                    likeliest, bindings)
  np.testing.assert_array_equal(ids[:, 3:], after[:, 3:])
