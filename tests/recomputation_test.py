"""Models whose layers are computed again on the backward pass.

What they compute must not change. mtf adds zero times something to the inputs
of what is computed again, so to rounding.
"""

import mesh_tensorflow as mtf
from mesh_tensorflow import ops
from mesh_tensorflow.transformer import transformer
from mesh_tensorflow.transformer import utils
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import recomputation
from tests import gin_config
from tests import harness
from tests.oracle import comparison

VOCAB_SIZE = 32
IDS = np.random.default_rng(0).integers(3, VOCAB_SIZE, size=(2, 2, 8))
DIMS = [mtf.Dimension(*dim) for dim in (
    ("outer_batch", 2), ("batch", 2), ("length", 8))]

TINY = [
    "num_layers = 1", "d_model = 16", "d_kv = 8", "num_heads = 2",
    "MoE2D.expert_x = 2", "MoE2D.expert_y = 2", "MoE2D.hidden_size = 8",
    "MoE2D.group_size = 16", "MoE2D.second_policy_train = 'threshold'",
    "MoE2D.z_loss = 0.01", "MoE2D.loss_coef = 0.1", "MoE2D.summaries = False"]
REVERSIBLE = [
    "make_layer_stack.layer_stack_cls = @transformer.ReversibleLayerStack",
    "transformer.LayerStack.sublayers_per_layer = "
    "[@transformer.sublayer_rms_norm, @transformer.sublayer_call_layer]"]
RECOMPUTED = "LayerStack.recompute_grads = True"


def weights(name, shape):
  if name.endswith("scale"):
    return np.ones(shape)
  return harness.random_weights(name, shape) * 0.3


def evaluate(model_file, bindings, use, mesh=(1, 1)):
  """What `use` makes of a model on some text.

  Args:
    model_file: a gin file.
    bindings: further lines of gin.
    use: a function of the text [outer_batch, batch, length], and of a function
      from text to logits and loss, to a nest of Tensors.
    mesh: the size of the mesh.

  Returns:
    a nest of arrays
  """
  gin_config.parse([model_file], [*TINY, *bindings])
  impl = harness.mesh_impl(*mesh)
  kind = "lm" if "lm" in model_file else "bitransformer"
  model = utils.build_model(
      kind, VOCAB_SIZE, VOCAB_SIZE, layout_rules=impl.layout_rules,
      mesh_shape=impl.shape)

  def call(ids, num_microbatches=1):
    inputs = ids if kind == "bitransformer" else (
        transformer.autoregressive_inputs(ids))
    return model.call_simple(
        inputs=inputs, targets=ids, compute_loss=True, mode="train",
        variable_dtype=harness.variable_dtype(),
        num_microbatches=num_microbatches)

  return harness.evaluate(
      lambda tensors: use(mtf.cast(tensors["ids"], tf.int32), call),
      {"ids": (IDS, DIMS)}, weights, impl)


def differentiated(ids, call):
  """The loss, and its gradient by the name of the variable."""
  logits, loss = call(ids)
  variables = loss.graph.trainable_variables
  gradients = mtf.gradients([loss], [v.outputs[0] for v in variables])
  return {"logits": logits, "loss": loss, **{
      v.name: gradient for v, gradient in zip(variables, gradients)}}


def in_microbatches(ids, call):
  gradients, outputs = mtf.serialize_training_step(
      {"ids": ids}, lambda features: {"loss": call(features["ids"], 2)[1]},
      DIMS[1], 2)
  return dict(outputs, **{
      v.name: gradient for v, gradient in zip(
          ids.graph.trainable_variables, gradients)})


def assert_recomputing_changes_nothing(
    model_file, bindings, use=differentiated, mesh=(1, 1)):
  with comparison.same_draws():
    plain, recomputed = (
        evaluate(model_file, [*bindings, *switch], use, mesh)
        for switch in ([], [RECOMPUTED]))
  assert plain.keys() == recomputed.keys()
  assert any("_gating" in name for name in plain)
  for name, value in plain.items():
    np.testing.assert_allclose(
        recomputed[name], value, rtol=0,
        atol=1e-5 * np.abs(value).max() + 1e-8, err_msg=name)


@pytest.mark.parametrize("bindings", [
    [], ["MoE2D.moe_gating = ('switch', 'top_2')", "MoE2D.dispatch = 'index'"],
    ["MoE2D.moe_gating = ('hash', 'sigmoid_top_k')",
     "MoE2D.sigmoid_top_k = 1"],
    ["MoE2D.moe_gating = ('sigmoid_top_k', 'hash')",
     "MoE2D.sigmoid_top_k = 1"],
    ["MoE2D.moe_gating = 'noisy_top_k'", "MoE2D.noisy_top_k = 1",
     "MoE2D.noisy_loss = 'hierarchical'"],
    ["MoE2D.word_embed_mode = 'add'"],
    ["MoE2D.word_embed_mode = 'concat_stop_grad'"], REVERSIBLE], ids=str)
def test_same_loss_and_gradients(bindings):
  assert_recomputing_changes_nothing("models/lm_tiny.gin", bindings)


def test_same_on_a_mesh():
  assert_recomputing_changes_nothing("models/lm_tiny.gin", [], mesh=(1, 2))


def test_same_for_an_encoder_and_a_decoder():
  assert_recomputing_changes_nothing("models/bitransformer_small.gin", [])


@pytest.mark.parametrize("bindings", [
    [], ["MoE2D.moe_gating = ('hash', 'sigmoid_top_k')"]], ids=str)
def test_same_in_microbatches(bindings):
  assert_recomputing_changes_nothing(
      "models/lm_tiny.gin", bindings, use=in_microbatches)


@pytest.mark.parametrize("bindings", [[], REVERSIBLE], ids=str)
def test_everything_is_recorded_once(bindings):
  def recorded(*more):
    with tf.Graph().as_default():
      graph = mtf.Graph()
      mesh = mtf.Mesh(graph, "mesh")
      gin_config.parse(["models/lm_tiny.gin"], [
          *TINY, "MoE2D.summaries = True", *bindings, *more])
      model = utils.build_model(
          "lm", VOCAB_SIZE, VOCAB_SIZE, layout_rules="", mesh_shape="all:1")
      ids = mtf.import_tf_tensor(mesh, tf.constant(IDS), mtf.Shape(DIMS))
      differentiated(ids, lambda ids: model.call_simple(
          inputs=ids, targets=ids, compute_loss=True, mode="train",
          variable_dtype=harness.variable_dtype()))
      mtf.Lowering(graph, {mesh: harness.mesh_impl()})
      return sorted(name for name, _ in tf.get_collection(
          mtf.utils.SCALAR_SUMMARIES_COLLECTION_KEY))

  assert recorded(RECOMPUTED) == recorded() != []


def outputs_and_gradients(apply, objective):
  """Differentiates an objective of 3 x, and of a loss x^2 that is left.

  Args:
    apply: a function of a function and a list of Tensors, such as
      `mtf.recompute_grad`.
    objective: a function of outputs and loss to a Tensor.

  Returns:
    [outputs, loss, gradient with respect to x], at x = 5
  """
  def build(tensors):
    losses = []

    def layer(x):
      return recomputation.leave(losses, mtf.square(x), 3 * x)

    outputs = apply(layer, [tensors["x"]])
    loss, = losses
    return [outputs, loss,
            *mtf.gradients([objective(outputs, loss)], [tensors["x"]])]

  return [float(value) for value in harness.evaluate(
      build, {"x": (5.0, [])}, None)]


def plainly(function, inputs):
  return function(*inputs)


def nested(function, inputs):
  """An identity inside, which leaves the loss of another."""
  def identity_gradient(explicit_inputs, output_grads, **unused_kwargs):
    del explicit_inputs
    return output_grads

  return mtf.recompute_grad(lambda x: function(mtf.custom_gradient(
      mtf.identity, identity_gradient, [x])), inputs)


@pytest.mark.parametrize("apply", [plainly, mtf.recompute_grad, nested])
@pytest.mark.parametrize("objective, gradient", [
    (lambda y, loss: y + loss, 3 + 2 * 5),
    (lambda y, loss: y * loss, 3 * 25 + 15 * 2 * 5),
    (lambda y, loss: y, 3),
    (lambda y, loss: loss, 2 * 5)])
def test_a_loss_leaves_with_its_gradient(apply, objective, gradient):
  assert outputs_and_gradients(apply, objective) == [15, 25, gradient]


def test_functions_that_leave_no_loss_return_what_they_did():
  def gradients(*functions):
    def build(tensors):
      results = [function(tensors["x"]) for function in functions]
      assert isinstance(results[1], list)
      return [results[0], results[1], *mtf.gradients(
          [results[0] + mtf.add_n(results[1])], [tensors["x"]])]

    return harness.evaluate(build, {"x": (5.0, [])}, None)

  squares, (one, two), gradient = gradients(
      lambda x: mtf.recompute_grad(mtf.square, [x]),
      lambda x: mtf.recompute_grad(lambda x: (2 * x, x * x), [x]))
  assert [squares, one, two, gradient] == [25, 10, 25, 22]


def test_mtf_is_changed_once():
  changed = mtf.custom_gradient
  recomputation.install()
  assert mtf.custom_gradient is ops.custom_gradient is changed
  assert mtf.layers.mtf.custom_gradient is changed


@pytest.mark.parametrize("bindings", [[], REVERSIBLE], ids=str)
def test_decoding_where_recomputation_is_unused(bindings):
  gin_config.parse(["models/lm_tiny.gin"], [*TINY, RECOMPUTED, *bindings])
  model = utils.build_model(
      "lm", VOCAB_SIZE, VOCAB_SIZE, layout_rules="", mesh_shape="all:1")

  def decode():
    with tf.Graph().as_default():
      ids = mtf.import_tf_tensor(
          mtf.Mesh(mtf.Graph(), "mesh"), tf.constant(IDS[0], tf.int32),
          mtf.Shape(DIMS[1:]))
      return model.sample_autoregressive(
          ids, variable_dtype=harness.variable_dtype())

  before = mtf.custom_gradient
  with recomputation.unused():
    assert decode().shape.dims == DIMS[1:]
  assert mtf.custom_gradient is before
  with pytest.raises(ValueError, match="unusable input"):  # Dense, too.
    decode()
