"""MoE2D inside mesh_tensorflow's transformers: all modes, on several meshes."""

import functools
import inspect

import gin
import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
from mesh_tensorflow.transformer import transformer
from mesh_tensorflow.transformer import utils
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from tests import gin_config
from tests import harness

MESHES = [(1, 1), (1, 2), (2, 1), (2, 2)]
LENGTH = 8
VOCAB_SIZE = 128
NO_TOKEN = VOCAB_SIZE  # Decoding runs to the end of the sequence.

TINY = [
    "num_layers = 1", "d_model = 16", "d_kv = 8", "num_heads = 2",
    "MoE2D.expert_x = 2", "MoE2D.expert_y = 2", "MoE2D.hidden_size = 16"]
# Slots for every token at every expert: nothing is dropped, so no token depends
# on which others are in its group, and neither mesh nor mode make a difference.
ROOM_FOR_ALL = [
    "MoE2D.capacity_factor_train = 2.0",
    "MoE2D.capacity_factor_eval = 2.0",
    "MoE2D.capacity_factor_second_level = 2.0",
    "MoE2D.second_policy_train = 'threshold'"]


def weights(name, shape):
  if name.endswith("scale"):
    return np.ones(shape)
  return harness.random_weights(name, shape) * (
      shape[-2] ** -0.5 if len(shape) > 1 else 1.0)


def run_model(model_file, mesh, ids, use, bindings=()):
  """Builds a model on a mesh and evaluates what `use` makes of it.

  Args:
    model_file: a gin file.
    mesh: a pair, the mesh's size.
    ids: a dict of int arrays [outer_batch, batch, length] or [batch, length].
    use: a function (model, tensors of ids) -> a nest of Tensors.
    bindings: lines of gin.

  Returns:
    a nest of arrays
  """
  gin_config.parse([model_file], [*TINY, *ROOM_FOR_ALL, *bindings])
  impl = harness.mesh_impl(*mesh)
  model = utils.build_model(
      "lm" if "lm" in model_file else "bitransformer", VOCAB_SIZE, VOCAB_SIZE,
      layout_rules=impl.layout_rules, mesh_shape=impl.shape)
  names = ("outer_batch", "batch", "length")
  arrays = {
      key: (array, [mtf.Dimension(name, size) for name, size in zip(
          names[-array.ndim:], array.shape)])
      for key, array in ids.items()}
  return harness.evaluate(
      lambda tensors: use(model, {
          key: mtf.cast(t, tf.int32) for key, t in tensors.items()}),
      arrays, weights, impl)


def some_ids(*batch_shape):
  rng = np.random.default_rng(0)
  return rng.integers(3, VOCAB_SIZE, size=(*batch_shape, LENGTH))


def test_parameters_of_the_reference_keep_their_names_and_defaults():
  theirs = inspect.signature(moe.MoE2D.__init__).parameters
  ours = inspect.signature(mtf_moe.MoE2D.__init__).parameters
  assert list(ours)[:len(theirs)] == list(theirs)
  differing = [name for name in theirs
               if ours[name].default != theirs[name].default]
  assert differing == ["second_policy_eval"]


def test_other_parameters_have_the_defaults_of_the_one_level_class():
  theirs = inspect.signature(moe.MoE1D.__init__).parameters
  ours = inspect.signature(mtf_moe.MoE2D.__init__).parameters
  for name in ("moe_gating", "min_expert_capacity", "z_loss", "activation",
               "word_embed_mode", "dropout_rate", "output_dim"):
    assert ours[name].default == theirs[name].default


@functools.cache
def loss_and_gradients(mesh, mode):
  """[logits, loss, every variable's gradient] of the tiny model on a mesh."""
  def use(model, tensors):
    logits, loss = model.call_simple(
        inputs=transformer.autoregressive_inputs(tensors["targets"]),
        targets=tensors["targets"], compute_loss=True, mode=mode,
        variable_dtype=harness.variable_dtype(), num_microbatches=1)
    variables = loss.graph.trainable_variables
    gradients = mtf.gradients([loss], [v.outputs[0] for v in variables])
    return [logits, loss, *gradients]

  # One group of 8 tokens a slice at the least, on any mesh: then the balancing
  # loss, a mean over groups, is the same too.
  return run_model("models/lm_tiny.gin", mesh, {"targets": some_ids(2, 2)}, use,
                   ["MoE2D.group_size = 8"])


@pytest.mark.parametrize("mesh, mode", [
    ((1, 2), "train"), ((2, 1), "train"), ((2, 2), "train"), ((2, 2), "eval")],
    ids=str)
def test_same_loss_and_gradients_on_every_mesh(mesh, mode):
  expected = loss_and_gradients((1, 1), mode)
  actual = loss_and_gradients(mesh, mode)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_dropless_evaluation(mode):
  """It has room for all tokens, whatever the capacities; training has not."""
  def logits(*bindings):
    def use(model, tensors):
      return model.call_simple(
          inputs=transformer.autoregressive_inputs(tensors["targets"]),
          targets=tensors["targets"], compute_loss=False, mode=mode,
          variable_dtype=harness.variable_dtype())[0]

    return run_model("models/lm_tiny.gin", (2, 2),
                     {"targets": some_ids(2, 2)}, use, bindings)

  little = [f"MoE2D.capacity_factor_{which} = 0.5"
            for which in ("train", "eval", "second_level")]
  little += ["MoE2D.min_expert_capacity = 1"]
  dropped, dropless = logits(*little), logits(
      *little, "MoE2D.dropless_eval = True")
  room_for_all = logits()
  assert np.abs(dropped - room_for_all).max() > 1e-3
  np.testing.assert_array_equal(
      dropless, room_for_all if mode == "eval" else dropped)


# Two slots at each expert, for 8 tokens and more: tokens are dropped.
LITTLE_ROOM = [
    "MoE2D.min_expert_capacity = 1", "MoE2D.second_policy_eval = 'all'",
    *(f"MoE2D.capacity_factor_{which} = 0.5"
      for which in ("train", "eval", "second_level"))]
WITH_CAPACITIES = "MoE2D.dropless_inference = False"
# Sequences of different length; the first is the shortest.
PADDED = some_ids(4)
for size, row in zip((3, 8, 5, 7), PADDED, strict=True):
  row[size:] = 0


def scores(ids, *bindings, told=False, mode="score"):
  """Log-probabilities of the tokens of each sequence [batch, length]."""
  def use(model, tensors):
    targets = tensors["targets"]
    logits, _ = model.call_simple(
        inputs=transformer.autoregressive_inputs(targets), targets=targets,
        compute_loss=False, mode=mode, variable_dtype=harness.variable_dtype(),
        sequence_id=mtf.minimum(targets, 1) if told else None)
    vocab = logits.shape.dims[-1]
    return mtf.reduce_sum(
        mtf.log_softmax(logits, vocab) * mtf.one_hot(targets, vocab),
        reduced_dim=vocab)

  found = run_model("models/lm_tiny.gin", (1, 1), {"targets": ids}, use,
                    [*LITTLE_ROOM, *bindings])
  return np.where(ids > 0, found, 0.0)


@pytest.mark.parametrize("mode", ["score", "eval", "train"])
def test_padding_takes_no_slot(mode):
  """Where mesh_tensorflow does not say where it is, the ids do."""
  np.testing.assert_array_equal(
      scores(PADDED, WITH_CAPACITIES, mode=mode),
      scores(PADDED, WITH_CAPACITIES, told=True, mode=mode))


def test_scores_do_not_depend_on_the_rest_of_the_batch():
  alone = [scores(row[np.newaxis])[0] for row in PADDED]
  np.testing.assert_allclose(scores(PADDED), alone, atol=1e-5)
  limited = scores(PADDED, WITH_CAPACITIES)
  alone = [scores(row[np.newaxis], WITH_CAPACITIES)[0] for row in PADDED]
  assert np.abs(limited - alone).max() > 1e-3


@pytest.mark.parametrize("file, feature, use", [
    ("models/lm_tiny.gin", "targets", lambda model, ids: (
        model.sample_autoregressive(
            ids["targets"], variable_dtype=harness.variable_dtype(),
            stop_at_token=NO_TOKEN))),
    ("models/bitransformer_small.gin", "inputs", lambda model, ids: (
        model.decode(ids["inputs"], variable_dtype=harness.variable_dtype()))),
    ("models/bitransformer_small.gin", "inputs", lambda model, ids: (
        model.decode(ids["inputs"], variable_dtype=harness.variable_dtype(),
                     beam_size=2)))], ids=["greedy", "decode", "beams"])
def test_decoding_does_not_depend_on_the_rest_of_the_batch(file, feature, use):
  def decoded(ids, *bindings):
    return run_model(
        file, (1, 1), {feature: ids}, use, [*LITTLE_ROOM, *bindings])

  def all_and_each(*bindings):
    return decoded(PADDED, *bindings), np.concatenate(
        [decoded(row[np.newaxis], *bindings) for row in PADDED])

  np.testing.assert_array_equal(*all_and_each())
  assert (np.not_equal(*all_and_each(WITH_CAPACITIES))).any()


def teacher_forced(model, tensors):
  """The likeliest token after every prefix."""
  logits, _ = model.call_simple(
      inputs=transformer.autoregressive_inputs(tensors["targets"]),
      targets=tensors["targets"], compute_loss=False,
      mode="eval", variable_dtype=harness.variable_dtype())
  return mtf.argmax(logits, logits.shape.dims[-1])


@pytest.mark.parametrize("mesh, bindings", [
    *((mesh, []) for mesh in MESHES),
    # What is hashed is the token that is fed, also one at a time.
    ((1, 2), ["MoE2D.moe_gating = ('hash', 'sigmoid_top_k')"])], ids=str)
def test_greedy_decoding_continues_with_the_likeliest_token(mesh, bindings):
  prompt = some_ids(4)
  prompt[:, 3:] = 0

  def decode(model, tensors):
    return model.sample_autoregressive(
        tensors["targets"], variable_dtype=harness.variable_dtype(),
        stop_at_token=NO_TOKEN)

  ids = run_model(
      "models/lm_tiny.gin", mesh, {"targets": prompt}, decode, bindings)
  np.testing.assert_array_equal(ids[:, :3], prompt[:, :3])
  likeliest = run_model(
      "models/lm_tiny.gin", (1, 1), {"targets": ids.astype(int)},
      teacher_forced, bindings)
  np.testing.assert_array_equal(ids[:, 3:], likeliest[:, 3:])


def test_sampling_draws_tokens():
  prompt = some_ids(4)
  prompt[:, 1:] = 0

  def sample(model, tensors):
    return model.sample_autoregressive(
        tensors["targets"], variable_dtype=harness.variable_dtype(),
        temperature=1.0, stop_at_token=NO_TOKEN)

  ids = run_model("models/lm_tiny.gin", (2, 2), {"targets": prompt}, sample)
  assert ids.min() >= 0 and ids.max() < VOCAB_SIZE
  assert len(np.unique(ids[:, 1:])) > 4


@functools.cache
def beams(mesh):
  """What beam search makes of some inputs on a mesh."""
  def decode(model, tensors):
    return model.decode(
        tensors["inputs"], variable_dtype=harness.variable_dtype(), beam_size=2)
  return run_model(
      "models/bitransformer_small.gin", mesh, {"inputs": some_ids(4)}, decode)


@pytest.mark.parametrize("mesh", [(1, 2), (2, 2)], ids=str)
def test_beam_search_finds_the_same_on_every_mesh(mesh):
  np.testing.assert_array_equal(beams(mesh), beams((1, 1)))
  assert len(np.unique(beams((1, 1)))) > 4


@functools.cache
def logits_with_word_embeddings(mode):
  """(logits, loss, depth of both routers) of the tiny model."""
  depths = []

  def use(model, tensors):
    logits, loss = model.call_simple(
        inputs=transformer.autoregressive_inputs(tensors["targets"]),
        targets=tensors["targets"], compute_loss=True, mode="train",
        variable_dtype=harness.variable_dtype())
    depths.extend(v.shape.dims[-2].size for v in loss.graph.trainable_variables
                  if "gating" in v.name)
    return [logits, loss]

  logits, loss = run_model(
      "models/lm_tiny.gin", (1, 1), {"targets": some_ids(2, 2)}, use,
      [f"MoE2D.word_embed_mode = {mode!r}"])
  return logits, loss, depths


@pytest.mark.parametrize("mode", [
    "concat", "concat_stop_grad", "add", "add_stop_grad", "embed_only"])
def test_word_embeddings_reach_both_routers(mode):
  logits, loss, depths = logits_with_word_embeddings(mode)
  without, _, depths_without = logits_with_word_embeddings(None)
  assert depths_without == [16, 16]
  assert depths == [32 if mode.startswith("concat") else 16] * 2
  assert np.isfinite(loss)
  assert np.abs(logits - without).max() > 1e-3


def test_a_network_of_ones_own_in_the_experts():
  def double(inputs, output_dim, expert_dims, hparams, train, variable_dtype):
    del expert_dims, hparams, train, variable_dtype
    assert inputs.shape.dims[-1] == output_dim
    return 2 * inputs

  depth = mtf.Dimension("d_model", 6)
  dims = [mtf.Dimension("batch", 4), mtf.Dimension("length", 4)]
  hparams = mtf_moe.MoeHparams(
      moe_num_experts=(2, 2), moe_second_policy_train="none",
      moe_capacity_factor_train=2.0, moe_capacity_factor_second_level=2.0)

  def build(tensors):
    outputs, _ = mtf_moe.transformer_moe_layer_v2(
        tensors["inputs"], depth, hparams, True, harness.variable_dtype(),
        experts=double)
    return outputs

  inputs = np.random.default_rng(0).normal(size=(4, 4, 6))
  outputs = harness.evaluate(build, {"inputs": (inputs, [*dims, depth])},
                             weights)
  # Without second choices, the gate of the first is all of the weight: that of
  # both choices before the second was left out, at each of the two levels.
  ratio = outputs / (2 * inputs)
  np.testing.assert_allclose(
      ratio, np.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-4)
  assert ratio.min() >= 0.25 and ratio.max() <= 1.0


class KeywordsOfItsOwn(mtf_moe.MoE2D):

  def __init__(self, **kwargs):
    super().__init__(**{"hidden_size": 24, "group_size": 32, **kwargs})


class SetsAfterwards(mtf_moe.MoE2D):

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self._hparams.moe_hidden_size = 24
    self._hparams.add_hparam("moe_group_size", 32)


class AllOfItsOwn(mtf_moe.MoE2D):
  """As a subclass of mesh_tensorflow's class may do."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self._hparams = moe.HParams(**{
        **vars(self.hparams), "moe_hidden_size": 24, "moe_group_size": 32})


@pytest.mark.parametrize("cls", [KeywordsOfItsOwn, SetsAfterwards, AllOfItsOwn])
def test_subclasses_set_hyperparameters(cls):
  gin_config.parse([], ["MoE2D.loss_coef = 0.5"])
  layer = cls(expert_x=2, expert_y=4)
  assert layer.hparams == mtf_moe.MoeHparams(
      moe_num_experts=(2, 4), moe_hidden_size=24, moe_group_size=32,
      moe_loss_coef=0.5)
  assert mtf_moe.MoE2D().hparams.moe_hidden_size == 4096


def test_what_a_subclass_sets_is_used():
  gin.external_configurable(SetsAfterwards, module="tests")

  def hidden_sizes(model, tensors):
    teacher_forced(model, tensors)
    return [mtf.constant(v.mesh, v.shape.dims[-1].size, mtf.Shape([]))
            for v in tensors["targets"].graph.trainable_variables
            if v.name.endswith("wi/kernel")]

  assert run_model(
      "models/lm_tiny.gin", (1, 1), {"targets": some_ids(2, 2)}, hidden_sizes,
      ["transformer.make_layer_stack.layers = [@tests.SetsAfterwards]"]) == [24]


def test_ensembles_are_refused():
  with pytest.raises(NotImplementedError, match=r"Unitransformer.ensemble"):
    run_model("models/lm_tiny.gin", (1, 1), {"targets": some_ids(2, 2)},
              teacher_forced, ["Unitransformer.ensemble = 2"])
