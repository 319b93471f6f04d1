"""mtf_moe.moe in the place of mesh_tensorflow.transformer.moe."""

import inspect

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe as theirs
import numpy as np
import pytest

from mtf_moe import moe as ours
from tests import harness
from tests.oracle import comparison

NAMES = [name for name, value in vars(theirs).items()
         if getattr(value, "__module__", None) == theirs.__name__]


def parameters(function):
  if inspect.isclass(function):
    function = function.__init__
  return inspect.signature(function).parameters


def test_it_has_every_name():
  assert len(NAMES) == 16
  assert not [name for name in NAMES if not hasattr(ours, name)]


@pytest.mark.parametrize("name", [
    name for name in NAMES if name not in ("HParams", "MoE2D")])
def test_parameters_are_the_same(name):
  """In the same order; new ones come last."""
  mine, reference = (
      list(parameters(getattr(module, name))) for module in (ours, theirs))
  if name in ("transformer_moe_layer_v2", "_split_into_groups"):
    # v2 has two more that theirs lacks, where v1 has them.
    reference = [one for one in reference if one in mine]
  assert mine[:len(reference)] == reference


def test_hparams():
  for module in (ours, theirs):
    hparams = module.HParams(moe_hidden_size=8)
    module.set_default_moe_hparams(hparams)
    hparams.add_hparam("moe_gating", "switch")
    assert hparams.moe_gating == "switch"
    if module is ours:
      mine = vars(hparams)
  assert mine == {**vars(hparams), "moe_second_policy_eval": "threshold"}


GROUP, EXPERTS, DEPTH = (mtf.Dimension(*dim) for dim in (
    ("group", 16), ("experts", 4), ("m", 3)))


def both(call, **arrays):
  """What a function of a module and of tensors gives with each module."""
  with comparison.same_draws():
    return harness.evaluate(
        lambda tensors: [call(module, **tensors) for module in (ours, theirs)],
        arrays, None)


LOGITS = np.random.default_rng(0).normal(size=[16, 4]), [GROUP, EXPERTS]


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_second_place(temperature):
  hparams = theirs.HParams(
      moe_use_second_place_expert_prob=0.5,
      moe_use_second_place_expert_prob_temp=temperature)
  mine, reference = both(
      lambda module, logits: module._stochastically_use_non_top_expert(
          logits, EXPERTS, hparams), logits=LOGITS)
  np.testing.assert_array_equal(mine, reference)
  assert 0 < (mine < -1e8).any(axis=-1).sum() < 16


def test_z_loss():
  importance = np.arange(16) % 3 / 2, [GROUP]
  mine, reference = both(
      lambda module, logits, importance: module._router_z_loss(
          logits, EXPERTS, 2, importance), logits=LOGITS, importance=importance)
  assert mine == pytest.approx(reference, rel=1e-6) and mine > 0


@pytest.mark.parametrize("mode", ["concat", "add", "embed_only"])
def test_word_embeddings(mode):
  rng = np.random.default_rng(0)
  inputs, words = (
      (rng.normal(size=[16, 3]), [GROUP, DEPTH]) for _ in range(2))
  mine, reference = both(
      lambda module, inputs, words: module._add_token_emb_to_gate_inputs(
          inputs, words, mode), inputs=inputs, words=words)
  np.testing.assert_array_equal(mine, reference)


def test_what_only_expert_selection_has():
  def call(**changed):
    return lambda module, inputs: module._expert_selection_gating(**{
        "inputs": inputs, "outer_expert_dims": None, "experts_dim": EXPERTS,
        "group_size_dim": GROUP,
        "expert_capacity_dim": mtf.Dimension("capacity", 2),
        "hparams": ours.HParams(), "train": False,
        "variable_dtype": harness.variable_dtype(), **changed})[1]

  arrays = {"inputs": (np.zeros([16, 3]), [GROUP, DEPTH])}
  for changed, said in (
      ({"group_size_dim": DEPTH}, "group_size_dim = .* is not the dimension"),
      ({"normalize_by_num_experts_routed": False}, "is not supported")):
    with pytest.raises(ValueError, match=said):
      harness.evaluate(
          lambda tensors, changed=changed: call(**changed)(ours, **tensors),
          arrays, None)


def test_a_call_that_states_little():
  """As gpt-neo's: it states none of what later releases ask for."""
  hparams = ours.HParams()
  ours.set_default_moe_hparams(hparams)
  hparams.moe_num_experts = 4
  hparams.moe_hidden_size = 8
  complete = theirs.HParams(**{
      **vars(hparams), "moe_min_expert_capacity": 4, "moe_dropout_rate": 0.0,
      "moe_word_embed_mode": None, "moe_z_loss": None,
      "moe_use_experts_attention": False})
  batch, length = mtf.Dimension("batch", 2), mtf.Dimension("sequence", 8)

  def layer(module, hparams):
    def call(tensors):
      x = tensors["inputs"]
      return module.transformer_moe_layer_v1(
          x, DEPTH, hparams, train=True,
          variable_dtype=harness.variable_dtype(), layout="batch:all",
          mesh_shape="all:1", activation=mtf.relu,
          nonpadding=mtf.ones(x.mesh, mtf.Shape([batch, length])),
          num_microbatches=1)
    return call

  inputs = np.random.default_rng(0).normal(size=[2, 8, 3])
  with comparison.same_draws():
    results = harness.run_layers(
        {"ours": layer(ours, hparams), "theirs": layer(theirs, complete)},
        {"inputs": (inputs, [batch, length, DEPTH])}, harness.mesh_impl(),
        harness.random_weights)
  np.testing.assert_array_equal(
      results["ours"].output, results["theirs"].output)
  assert results["ours"].variables == results["theirs"].variables
