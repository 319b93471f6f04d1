"""What does not work in mesh_tensorflow's two-level layer, and does in ours.

Each test shows both on the same input: what the reference does, so that it is
known when another release of it does otherwise, and what ours does instead.
"""

import dataclasses

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
from mesh_tensorflow.transformer import transformer
from mesh_tensorflow.transformer import utils
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from mtf_moe.hparams import WORD_EMBED_MODES
from tests import gin_config
from tests import harness
from tests.oracle import comparison
from tests.oracle import reference
from tests.oracle.case import Case

assert reference  # Gin finds it by its name.
gin.external_configurable(moe.MoE2D, "ReleasedMoE2D", module="tests")

OURS, THEIRS = mtf_moe.transformer_moe_layer_v2, moe.transformer_moe_layer_v2
VOCAB_SIZE = 32


def run(function, case=Case(), dims=None, impl=None, **arguments):  # noqa: B008
  """Builds and runs a layer.

  Args:
    function: the layer.
    case: the Case of its hyperparameters; train, nonpadding and microbatches.
    dims: other dimensions for the inputs' than the case's, without their depth.
    impl: the mesh implementation, by default of one slice.
    **arguments: of the layer, in place of the usual ones.

  Returns:
    (outputs, loss)
  """
  impl = impl or harness.mesh_impl()
  depth = mtf.Dimension("d_model", case.depth)
  arrays = comparison.arrays(case)
  if dims is not None:
    arrays["inputs"] = case.inputs(), [*dims, depth]

  def build(tensors):
    return function(**{
        "inputs": tensors["inputs"], "output_dim": depth,
        "hparams": case.hparams(), "train": case.train,
        "variable_dtype": harness.variable_dtype(),
        "layout": impl.layout_rules, "mesh_shape": impl.shape,
        "nonpadding": tensors.get("nonpadding"),
        "num_microbatches": case.num_microbatches, **arguments})

  def weights(name, shape):
    return case.weights("/".join(name.split("/")[-2:]), shape)

  return harness.evaluate(build, arrays, weights, impl)


def language_model(moe_layer, mode="eval", bindings=()):
  """(logits, loss) of a transformer with a mixture, on some text."""
  gin_config.parse(["models/lm_tiny.gin"], [
      "num_layers = 1", "d_model = 16", "d_kv = 8",
      f"make_layer_stack.layers = [@SelfAttention, @{moe_layer}]",
      f"{moe_layer}.expert_x = 2", f"{moe_layer}.expert_y = 2",
      f"{moe_layer}.hidden_size = 8", *bindings])
  impl = harness.mesh_impl()
  model = utils.build_model(
      "lm", VOCAB_SIZE, VOCAB_SIZE, layout_rules=impl.layout_rules,
      mesh_shape=impl.shape)
  ids = np.random.default_rng(0).integers(3, VOCAB_SIZE, size=(4, 8))

  def build(tensors):
    targets = mtf.cast(tensors["ids"], tf.int32)
    return model.call_simple(
        inputs=transformer.autoregressive_inputs(targets), targets=targets,
        compute_loss=True, mode=mode, variable_dtype=harness.variable_dtype())

  dims = [mtf.Dimension("batch", 4), mtf.Dimension("length", 8)]
  return harness.evaluate(
      build, {"ids": (ids, dims)}, harness.random_weights, impl)


def test_moe2d_is_not_gin_configurable():
  gin.parse_config("mtf_moe.MoE2D.expert_x = 3")
  assert mtf_moe.MoE2D()._hparams.moe_num_experts == (3, 8)
  with pytest.raises(ValueError, match="No configurable matching"):
    gin.parse_config("mesh_tensorflow.transformer.moe.MoE2D.expert_x = 3")


def test_moe2d_lacks_hyperparameters():
  with pytest.raises(AttributeError, match="moe_min_expert_capacity"):
    language_model("tests.ReleasedMoE2D")
  logits, loss = language_model("mtf_moe.MoE2D")
  assert np.isfinite(logits).all() and np.isfinite(loss)


def test_moe2d_cannot_train_without_padding_information():
  """Unpacked text has none, so a repaired class still fails in training."""
  with pytest.raises(AttributeError, match="NoneType"):
    language_model("tests.ReferenceMoE2D", mode="train")
  _, loss = language_model("mtf_moe.MoE2D", mode="train")
  assert np.isfinite(loss)


def test_losses_cannot_leave_what_is_recomputed():
  recomputed = ["LayerStack.recompute_grads = True"]
  with pytest.raises(ValueError, match="unusable input"):
    language_model("tests.ReferenceMoE2D", "eval", recomputed)
  _, loss = language_model("mtf_moe.MoE2D", "eval", recomputed)
  assert loss == language_model("mtf_moe.MoE2D", "eval")[1]


def test_importance_none_in_training_crashes():
  case = Case(importance="absent")
  with pytest.raises(AttributeError, match="NoneType"):
    run(THEIRS, case)
  ours = run(OURS, case)
  ones = run(OURS, dataclasses.replace(case, importance="ones"))
  np.testing.assert_array_equal(ours[0], ones[0])
  np.testing.assert_array_equal(ours[1], ones[1])


def test_beams_on_a_split_batch():
  """[batch, beam, depth] has two batch dimensions, of which one is no batch."""
  beams = [mtf.Dimension("batch", 4), mtf.Dimension("beam", 2),
           mtf.Dimension("length", 1)]
  impl = harness.mesh_impl(1, 2)
  case = Case(shape=(4, 2, 1), importance="absent", train=False)

  # As the reference's class passes it on, with a length of 1.
  with pytest.raises(ValueError, match="may not map to the same"):
    run(THEIRS, case, beams, impl)
  # tests/transformer_layers_test.py has beam search on all meshes; the shape is
  # what our class makes of it.
  outputs, _ = run(OURS, dataclasses.replace(case, shape=(4, 2)), impl=impl)
  assert outputs.any()
  with pytest.raises(ValueError, match=r"splits both 'batch' and 'expert_x'"):
    run(OURS, case, beams, impl)


def test_3d_inputs_where_the_layout_splits_outer_batch():
  case = Case(shape=(4, 8), importance_dims=(False, True, True))
  impl = harness.mesh_impl(2, 1)
  with pytest.raises(ValueError, match="not divisible"):
    run(THEIRS, case, impl=impl)
  # Every slice routes all tokens, which makes the groups those of one slice.
  np.testing.assert_allclose(
      run(OURS, case, impl=impl)[0], run(OURS, case)[0], atol=1e-5)


def test_layout_and_mesh_shape_none():
  nothing = {"layout": None, "mesh_shape": None}
  with pytest.raises(TypeError):
    run(THEIRS, **nothing)
  np.testing.assert_array_equal(run(OURS, **nothing)[0], run(OURS)[0])


@pytest.mark.parametrize("mode", WORD_EMBED_MODES)
def test_word_embeddings_never_arrive(mode):
  """The layer cannot be given any; the router of both is the same with them."""
  case = Case()
  hparams = case.hparams(moe_word_embed_mode=mode)
  with pytest.raises(AttributeError, match="NoneType"):
    run(THEIRS, hparams=hparams)
  batch, group, depth = (mtf.Dimension(*dim) for dim in zip("bsm", (2, 8, 6)))
  experts, capacity = mtf.Dimension("x", 4), mtf.Dimension("c", 3)
  rng = case.rng("embeddings")

  def gate(function, scope, tensors):
    with tf.variable_scope(scope):
      gated = function(
          tensors["inputs"], None, experts, capacity, hparams, False,
          harness.variable_dtype(), token_embeddings=tensors["embeddings"])
    objective = mtf.reduce_sum(mtf.square(gated[1])) + gated[2]
    gradient, = mtf.gradients([objective], [tensors["embeddings"]])
    return [*gated, mtf.zeros_like(gated[2]) if gradient is None else gradient]

  def build(tensors):
    return (gate(mtf_moe._top_2_gating, "ours", tensors),
            gate(moe._top_2_gating, "theirs", tensors))

  arrays = {name: (rng.normal(size=(2, 8, 6)), [batch, group, depth])
            for name in ("inputs", "embeddings")}
  ours, theirs = harness.evaluate(
      build, arrays, lambda name, shape: case.weights(
          "gating" + name.partition("/")[2], shape))
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(a, b)
  # Without a gradient to the embeddings where the mode says so.
  assert ours[-1].any() == ("stop_grad" not in mode)


def test_word_embeddings_reach_both_levels():
  """"embed_only" routes by the embeddings, wherever the tokens went."""
  case = Case(importance="ones", factors=(4.0, 4.0, 4.0), policy="all")
  tokens = case.token_dims()
  depth = mtf.Dimension("d_model", case.depth)
  values = case.rng("embeddings").normal(size=(*case.shape, case.depth))

  def by_embeddings(**arguments):
    mesh = arguments["inputs"].mesh
    embeddings = mtf.import_fully_replicated(
        mesh, tf.constant(values, tf.float32), mtf.Shape([*tokens, depth]), "e")
    shares = []
    for inputs, mode in ((arguments["inputs"], "embed_only"),
                         (embeddings, None)):
      arguments.update(
          inputs=inputs, token_embeddings=embeddings,
          hparams=case.hparams(moe_word_embed_mode=mode),
          experts=lambda x, *unused_args: mtf.ones_like(x))
      with tf.variable_scope("a" if mode else "b"):
        shares.append(OURS(**arguments))
    return shares

  # Experts that return ones show the weights; the losses show the gates.
  (with_mode, loss), (as_inputs, expected_loss) = run(by_embeddings, case)
  np.testing.assert_allclose(with_mode, as_inputs, atol=1e-6)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)


def test_z_loss_without_importance_or_microbatches_crashes():
  absent = Case(z_loss=0.1, importance="absent", num_microbatches=1)
  with pytest.raises(ValueError, match="at least one of x1 and x2"):
    run(THEIRS, absent)
  whole = Case(z_loss=0.1, num_microbatches=None)
  with pytest.raises(ValueError, match="None values not supported"):
    run(THEIRS, whole)
  assert run(OURS, absent)[1] == run(
      OURS, dataclasses.replace(absent, importance="ones"))[1]
  assert run(OURS, whole)[1] == run(
      OURS, dataclasses.replace(whole, num_microbatches=1))[1]


def test_z_loss_without_a_token_of_importance_1_is_nan():
  case = Case(z_loss=0.1, importance="zeros", num_microbatches=1)
  assert np.isnan(run(THEIRS, case)[1])
  assert run(OURS, case)[1] == 0.0


def test_z_loss_is_multiplied_by_the_loss_coefficient():
  def z_loss(function, coefficient):
    with_it, without = (
        run(function, Case(loss_coef=coefficient, z_loss=weight,
                           num_microbatches=1))[1]
        for weight in (0.1, None))
    return with_it - without

  assert z_loss(THEIRS, 0.5) == pytest.approx(
      0.5 * z_loss(OURS, 0.5), rel=1e-4)
  assert z_loss(OURS, 0.5) == pytest.approx(z_loss(OURS, 0.01), rel=1e-4)


def test_minimum_capacity_above_the_group():
  """Both make buffers that cannot be filled; the tokens do not notice."""
  case = Case(factors=(4.0, 4.0, 4.0), train=True)
  large = dataclasses.replace(case, min_capacity=40)
  # More slots make more empty tokens at level two, in other groups.
  comparison.compare(large)
  np.testing.assert_allclose(run(OURS, large)[0], run(OURS, case)[0], atol=1e-5)


def test_the_default_policy_evaluates_differently_every_time():
  losses = {
      name: {float(language_model(
          name, bindings=[f"{name}.second_threshold_eval = 1.0"])[1])
             for _ in range(3)}
      for name in ("tests.ReferenceMoE2D", "mtf_moe.MoE2D")}
  assert len(losses["tests.ReferenceMoE2D"]) > 1
  assert len(losses["mtf_moe.MoE2D"]) == 1


def test_experts_that_no_layout_rule_splits(caplog):
  """The default layout knows another layer's experts; ours says what it costs.
  """
  default = "batch:batch,d_ff:batch,heads:batch,vocab:batch,experts:batch"

  def products(function, layout):
    """Multiplications of the whole layer, on both slices together."""
    impl = harness.mesh_impl(1, 2, layout=layout)
    with tf.Graph().as_default():
      graph = mtf.Graph()
      mesh = mtf.Mesh(graph, "mesh")
      case = Case()
      tokens = mtf.zeros(mesh, mtf.Shape(
          [*case.token_dims(), mtf.Dimension("d_model", case.depth)]))
      function(tokens, tokens.shape.dims[-1], case.hparams(), False,
               harness.variable_dtype(), layout=impl.layout_rules,
               mesh_shape=impl.shape)
      lowering = mtf.Lowering(graph, {mesh: impl}, autostack=False)
      return sum(count for name, count in lowering.counters
                 if name == "einsum")

  for function in (THEIRS, OURS):
    caplog.clear()
    split = products(function, "batch:batch,expert_x:batch")
    assert "compute each of them" not in caplog.text
    # Nearly all products are the experts', and each slice does all of them.
    assert products(function, default) > 1.3 * split
    assert ("compute each of them" in caplog.text) == (function is OURS)


def test_summaries():
  """The reference's names tell no level, and its fractions are none."""
  def recorded(function, case, **arguments):
    def build(**kwargs):
      function(**kwargs)
      return harness.summaries(kwargs["inputs"].graph)

    return run(build, case, **arguments)

  # A slot for every choice: half of what level two gets are second choices.
  case = Case(importance="ones", factors=(4.0, 4.0, 4.0), policy="all")
  theirs = recorded(THEIRS, case)
  ours = recorded(OURS, case, hparams=case.hparams(moe_summaries=True))

  # Its second level counts on, and the experts have names of operations.
  assert {"aux_loss", "aux_loss_1", "top1_experts/split/0",
          "top1_experts/split_3/0"} <= theirs.keys()
  assert {name.split("/")[1] for name in ours} == {
      "outer", "inner", "layer"}
  assert {"moe/outer/load/expert_0", "moe/inner/load/expert_0_0"} <= ours.keys()

  # None of the preferred ones is dropped. The reference divides their number
  # by a sum in which every other one counts half.
  assert ours["moe/inner/choices_1/dropped"] == 0
  full, partial = (ours[f"moe/inner/tokens/{kind}"]
                   for kind in ("full", "partial"))
  assert full == partial == np.prod(case.shape)
  assert theirs["top1_fraction_routed_1"] == pytest.approx(2 / 3)


def numpy_layer(case, activation):
  """The layer with room for all, and experts with the given activation."""
  inputs, _, weights = comparison.loops_arguments(case)
  outer = np.exp(inputs @ weights["outer_gating/kernel"])
  x = outer.argmax(axis=-1)
  inner = np.exp(np.einsum(
      "ablm,ablmy->ably", inputs, weights["inner_gating/kernel"][x]))
  y = inner.argmax(axis=-1)

  def weight(gates):
    """The first gate's share, where the second is not used."""
    highest = np.sort(gates, axis=-1)[..., ::-1]
    return highest[..., 0] / highest[..., :2].sum(axis=-1)

  hidden = activation(np.einsum(
      "ablm,ablmh->ablh", inputs, weights["wi/kernel"][y, x]))
  outputs = np.einsum("ablh,ablhn->abln", hidden, weights["wo/kernel"][y, x])
  # A token whose weight is at most 0.5 does not count as preferred, and has no
  # first choice at level two.
  first = weight(outer)
  assert first.min() > 0.5
  return outputs * (first * weight(inner))[..., None]


@pytest.mark.parametrize("activation, expected", [
    ("relu", lambda hidden: np.maximum(hidden, 0)),
    ("linear", lambda hidden: hidden),
    ("sigmoid", lambda hidden: 1 / (1 + np.exp(-hidden))),
], ids=["relu", "linear", "sigmoid"])
def test_only_relu(activation, expected):
  """The reference has no parameter for it."""
  case = Case(policy="none", factors=(4.0, 4.0, 4.0), importance="ones",
              experts=(2, 2), group_size=8)
  hparams = case.hparams(moe_activation=activation)
  theirs = comparison.run(case, "theirs")["theirs"].output
  relu = numpy_layer(case, lambda hidden: np.maximum(hidden, 0))
  np.testing.assert_allclose(theirs, relu, atol=1e-5)
  ours, _ = run(OURS, case, hparams=hparams)
  np.testing.assert_allclose(ours, numpy_layer(case, expected), atol=1e-5)


def test_no_dropout_in_the_experts():
  case = Case(policy="none")
  plain, _ = run(OURS, case)
  dropped, _ = run(OURS, case, hparams=case.hparams(moe_dropout_rate=0.5))
  assert not np.allclose(plain, dropped)
  evaluated = dataclasses.replace(case, train=False)
  np.testing.assert_array_equal(
      run(OURS, evaluated)[0],
      run(OURS, evaluated, hparams=evaluated.hparams(moe_dropout_rate=0.5))[0])
