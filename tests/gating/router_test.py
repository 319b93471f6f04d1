"""Routers of one's own: what is written, registered, returned and refused."""

import pathlib
import re

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe import gating
from mtf_moe import layer_records
from mtf_moe.gating import router as router_lib
from mtf_moe.gating import routing
from mtf_moe.plan import mixtures
from tests import harness

GROUP, EXPERTS, CAPACITY, DEPTH = (mtf.Dimension(*dim) for dim in (
    ("group", 4), ("experts", 3), ("capacity", 2), ("m", 3)))
BATCH = mtf.Dimension("batch", 1)
LOGITS = np.log([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1],
                 [0.1, 0.2, 0.7]])


@pytest.fixture(autouse=True)
def names_are_forgotten(monkeypatch):
  monkeypatch.setattr(
      router_lib, "_routers", dict(router_lib._routers))


def route(router, see, train=True, importance=None, **settings):
  """What `see` finds in the routing of four tokens that wish as LOGITS say."""
  arrays = {"inputs": (LOGITS[None], [BATCH, GROUP, DEPTH])}
  if importance is not None:
    arrays["importance"] = (np.array([importance]), [BATCH, GROUP])

  def build(tensors):
    return see(gating.route(
        router, tensors["inputs"], None, EXPERTS, CAPACITY,
        mtf_moe.Level(experts=3, **settings), train, harness.variable_dtype(),
        importance=tensors.get("importance")))

  return harness.evaluate(build, arrays, lambda name, shape: np.eye(3))


def combine(router, **kwargs):
  return route(
      router, lambda routed: routed.combine_tensor(tf.float32), **kwargs)[0]


def noisy_switch(scores):
  logits = scores.logits
  if scores.train:
    logits += mtf.random_uniform(logits.mesh, logits.shape)
  gate, expert = gating.top_1(
      mtf.softmax(logits, scores.experts_dim), scores.experts_dim)
  return gating.TokenChoice([expert], [gate])


def test_a_function():
  """Without noise it is the router "switch", by whatever it is given."""
  gating.register("noisy_switch")(noisy_switch)
  expected = combine("switch", train=False)
  assert (expected > 0).sum() == 3  # One finds its expert full.
  for given in (noisy_switch, "noisy_switch"):
    np.testing.assert_array_equal(combine(given, train=False), expected)
    assert gating.scope_name(given) == "noisy_switch_gating"
  assert gating.names()[-1] == "noisy_switch"
  assert (combine("noisy_switch") != expected).any()


def test_a_class():
  @gating.register("last")
  class Last(gating.Router):

    def prepare_inputs(self, inputs, settings, train):
      return inputs * (2.0 if train else 1.0)

    def prepare_logits(self, logits, settings, train):
      return -logits  # The unlikeliest is the likeliest.

    def choose(self, scores):
      gate, expert = gating.top_1(scores.gates, scores.experts_dim)
      return gating.TokenChoice([expert], [gate])

  gates = 1 / np.exp(LOGITS)
  for train, power in ((False, 1), (True, 2)):
    found = combine("last", train=train).sum(axis=-1)
    expected = gates ** power / (gates ** power).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        found[[0, 1, 3], [2, 2, 0]], expected[[0, 1, 3], [2, 2, 0]], rtol=1e-5)


def test_the_loss_of_first_choices_is_made_where_a_router_makes_none():
  loss = route(noisy_switch, lambda routed: routed.balance_loss, train=False,
               importance=[1.0, 1.0, 0.0, 1.0])
  mask = np.eye(3)[[0, 0, 0, 2]]
  mask[2] = 0
  gates = np.exp(LOGITS)
  gates[2] = 0
  assert loss == pytest.approx(
      (mask.mean(axis=0) * gates.mean(axis=0)).mean() * 9)


def take_first_two(scores):
  """Every expert takes the first two tokens of the group."""
  mesh, dims = scores.logits.mesh, [BATCH, EXPERTS, CAPACITY]
  numbers = mtf.range(mesh, CAPACITY, tf.int32)
  return gating.ExpertChoice(
      tokens=mtf.zeros(mesh, mtf.Shape(dims), tf.int32) + numbers,
      weights=mtf.zeros(mesh, mtf.Shape(dims)) + 0.25,
      balance_loss=mtf.zeros(mesh, []))


def test_experts_that_choose():
  found = combine(take_first_two)  # [s, x, c]
  expected = np.zeros([4, 3, 2])
  expected[0, :, 0] = expected[1, :, 1] = 0.25
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("router", [
    take_first_two, "expert_selection", "switch_max", "top_n", "ntlb"],
                         ids=lambda r: getattr(r, "__name__", r))
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=str)
def test_both_views_are_of_the_same(router, dtype):
  """Dense tensors, and slots."""
  def see(routed):
    combined = routed.combine_tensor(dtype)
    table, weights = routed.slots(dtype)
    return {"combine": mtf.reduce_sum(
        combined, output_shape=routed.slot_dims), "weights": weights,
            "dispatch": routed.dispatch_tensor(combined),
            "tokens": table.tokens}

  found = route(router, see, ntlb_top_k=2,
                importance=[1.0, 1.0, 0.0, 1.0])
  np.testing.assert_array_equal(found["weights"], found["combine"])
  expected = np.full([3, 1, 2], -1)
  for _, s, x, c in np.argwhere(found["dispatch"]):
    expected[x, 0, c] = s
  np.testing.assert_array_equal(found["tokens"], expected)
  assert (expected >= 0).sum() >= 3


def test_what_a_choice_counts_below():
  def importance(router, below):
    def see(routed):
      weights = mtf.reduce_sum(
          routed.combine_tensor(tf.float32), output_shape=routed.slot_dims)
      return routed.slot_importance(weights, lambda other: mtf.reduce_sum(
          other.combine_tensor(tf.float32), output_shape=routed.slot_dims))

    found = route(router, see, importance_below=below,
                  second_policy_train="all")
    return sorted(found[found > 0].tolist())

  # First choices are 0, 0, 0 and 2, of which the third is dropped; second ones
  # 1, 1, 1 and 1, of which two are.
  assert importance("top_2", "weight") == [0.5] * 2 + [1.0] * 3
  assert importance("top_2", "choice") == [0.5] * 2 + [1.0] * 3
  assert importance("top_2", "full") == [1.0] * 5
  assert importance("switch", "weight") == [1.0] * 3
  # Of third ones, 2, 2, 2 and 0, one more.
  assert importance("top_n", "choice") == [0.5] * 3 + [1.0] * 3


def returning(**changed):
  """A router whose choice is wrong in something."""
  def wrong(scores):
    gate, expert = gating.top_1(scores.gates, scores.experts_dim)
    fields = {"experts": [expert], "weights": [gate],
              **{name: value(gate) if callable(value) else value
                 for name, value in changed.items()}}
    return gating.TokenChoice(**fields)
  return wrong


def returns_gates(scores):
  return scores.gates


def takes_gates(scores):
  return gating.ExpertChoice(
      scores.gates, scores.gates, mtf.reduce_sum(scores.gates))


@pytest.mark.parametrize("router, said", [
    (returns_gates, "(?s)returned .*: return a gating.TokenChoice or"),
    (returning(weights=[]), "returned 0 weights: return a list with a Tensor"),
    (returning(experts=[], weights=[]), "returned 0 experts: return a list"),
    (returning(weights=lambda gate: gate), "returned weights of .*: return a"),
    (returning(wanted=lambda gate: [gate, gate]), "returned 2 wanted: return"),
    (returning(experts=lambda gate: [gate]),
     r"returned experts of float32 .*where int32 Shape\[batch=1, group=4\]"),
    (returning(weights=[0.5]), "returned weights of 0.5, where float32"),
    (returning(balance_loss=lambda gate: gate),
     r"returned balance_loss of float32 Shape\[batch=1, group=4\], where flo"),
    (returning(gates=lambda gate: gate), "returned gates of float32"),
    (takes_gates,
     r"returned tokens of float32 .*int32 Shape\[batch=1, experts=3, capaci"),
])
def test_what_is_returned_is_checked(router, said):
  with pytest.raises(ValueError, match=said):
    combine(router)


def test_a_name_twice():
  with pytest.raises(ValueError, match="There is a router 'switch' already"):
    gating.register("switch")(noisy_switch)


@pytest.mark.parametrize("given", [3, mtf_moe.MoE2D, "top_2"], ids=str)
def test_what_is_no_router(given):
  with pytest.raises(ValueError, match="is no router: register a subclass of"):
    gating.register("mine")(given)


def test_a_name_that_nobody_registered():
  with pytest.raises(ValueError, match=(
      r"moe_gating = 'noisy' is not known\. Choose one of: .*'top_2'.*"
      r"--module_import")):
    gating.find("noisy")


def test_all_of_mesh_tensorflow_are_there():
  assert set(gating.names()) >= {
      "top_2", "top_n", "switch", "switch_max", "ntlb", "expert_selection"}
  assert isinstance(gating.find("top_2"), gating.Router)
  assert issubclass(routing.TokenRouting, routing.Routing)


def test_the_documentation_has_all_of_the_package():
  page = pathlib.Path(__file__).parents[2] / "docs" / "routers.md"
  table = page.read_text().partition("\n\nThe first")[0]
  ours = {name for name in gating.names()
          if type(gating.find(name)).__module__.startswith("mtf_moe.gating.")
          and not hasattr(gating.find(name), "function")}
  assert ours == set(re.findall(r'^\| "(\w+)" \|', table, re.MULTILINE))


def test_the_order_of_dimensions_does_not_matter():
  def turned(scores):
    gate, expert = gating.top_1(scores.gates, scores.experts_dim)
    return gating.TokenChoice(*(
        [mtf.transpose(t, [GROUP, BATCH])] for t in (expert, gate)),
                              gates=mtf.transpose(
                                  scores.gates, [EXPERTS, GROUP, BATCH]))

  np.testing.assert_array_equal(
      combine(turned, train=False), combine("switch", train=False))


def test_padding_has_no_slot_whatever_a_router_says():
  def all_of_them(scores):
    gate, expert = gating.top_1(scores.gates, scores.experts_dim)
    return gating.TokenChoice([expert], [gate], [mtf.ones_like(gate)])

  found = combine(all_of_them, importance=[0.0, 1.0, 0.0, 1.0])
  assert (found > 0).any(axis=(1, 2)).tolist() == [False, True, False, True]


def test_experts_that_choose_among_nothing_but_padding():
  for router in ("expert_selection", "expert_choice", "switch_max"):
    assert not combine(router, importance=[0.0] * 4).any()


def biased(scores):
  """A router with a variable of its own."""
  bias = mtf.get_variable(
      scores.logits.mesh, "bias", mtf.Shape([scores.experts_dim]))
  gate, expert = gating.top_1(
      mtf.softmax(scores.logits + bias, scores.experts_dim),
      scores.experts_dim)
  return gating.TokenChoice([expert], [gate])


def test_variables_of_a_router_are_its_own():
  with tf.Graph().as_default():
    graph = mtf.Graph()
    dims = [mtf.Dimension(*dim) for dim in (
        ("batch", 2), ("length", 8), ("m", 4))]
    mtf_moe.transformer_moe_layer_v2(
        mtf.zeros(mtf.Mesh(graph, "mesh"), mtf.Shape(dims)), dims[-1],
        {"moe_num_experts": (4, 2), "moe_gating": biased}, True)
    record, = layer_records.of(graph)
  shapes = {v.name: v.shape.to_integer_list for v in graph.all_variables}
  assert shapes["outer_gating/bias"] == [4]
  assert shapes["inner_gating/bias"] == [2]
  balanced = mixtures.balanced(record.levels, record.hparams)
  assert 0 < balanced.experts_per_token <= 1


@pytest.mark.parametrize("name", ["my router/1", "", 3, biased], ids=[
    "slash", "empty", "number", "function"])
def test_what_is_no_name(name):
  with pytest.raises(ValueError, match="is no name for a router: use a string"):
    gating.register(name)


def test_an_instance_can_be_registered():
  class Late(gating.Router):

    def choose(self, scores):
      return noisy_switch(scores)

  late = gating.register("late")(Late())
  assert gating.find("late") is late


@pytest.mark.parametrize("router", ["expert_selection", "expert_choice"])
def test_experts_that_choose_keep_their_capacity(router):
  """With room for all, they would take all."""
  for given, slots in ((router, 4), ("top_2", 8)):
    with tf.Graph().as_default():
      graph = mtf.Graph()
      dims = [mtf.Dimension(*dim) for dim in (
          ("batch", 1), ("length", 8), ("m", 4))]
      mtf_moe.transformer_moe_layer_v1(
          mtf.zeros(mtf.Mesh(graph, "mesh"), mtf.Shape(dims)), dims[-1],
          {"moe_num_experts": 4, "moe_gating": given, "moe_group_size": 8,
           "moe_min_expert_capacity": 1, "moe_dropless_eval": True}, False)
      record, = layer_records.of(graph)
    assert record.levels[0].capacity.size == slots
