"""Checkpoints of mesh_tensorflow's own layer load in ours, and ours in its.

What one implementation wrote, the other reads, on the same mesh or on another:
variables of the same names and shapes, from which it computes the same.
"""

import functools

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
from tests.oracle import reference

assert reference  # Gin finds it by its name.

# Of each implementation: the layer function, and gin's name of the class.
FUNCTIONS = {
    "theirs": moe.transformer_moe_layer_v2,
    "ours": mtf_moe.transformer_moe_layer_v2}
CLASSES = {"theirs": "ReferenceMoE2D", "ours": "mtf_moe.MoE2D"}
WRITER_AND_READER = [("theirs", "ours"), ("ours", "theirs")]

VOCAB_SIZE = 128
DEPTH = 16
TOKENS = [mtf.Dimension("outer_batch", 2), mtf.Dimension("batch", 2),
          mtf.Dimension("length", 8)]

EXPERTS = (4, 2)
# Slots for every token at every expert: nothing is dropped, so it makes no
# difference that another mesh has other groups.
ROOM_FOR_ALL = {
    "capacity_factor_eval": 4.0, "capacity_factor_second_level": 2.0}


def layer(name, mesh, impl):
  """(outputs, loss) of the bare layer on some inputs."""
  depth = mtf.Dimension("d_model", DEPTH)
  hparams = moe.HParams(
      moe_gating="top_2", moe_num_experts=EXPERTS, moe_loss_coef=0.1,
      moe_hidden_size=16, moe_group_size=8, moe_min_expert_capacity=4,
      moe_use_second_place_loss=True, moe_second_policy_eval="threshold",
      moe_second_threshold_eval=0.2, moe_word_embed_mode=None, moe_z_loss=None,
      **{f"moe_{key}": value for key, value in ROOM_FOR_ALL.items()})
  inputs = imported(mesh, np.random.default_rng(0).normal(
      size=[dim.size for dim in [*TOKENS, depth]]), [*TOKENS, depth])
  return FUNCTIONS[name](
      inputs, depth, hparams, False, harness.variable_dtype(),
      layout=impl.layout_rules, mesh_shape=impl.shape)


def language_model(name, mesh, impl):
  """(logits, loss) of a transformer of two blocks on some text."""
  settings = {
      "expert_x": EXPERTS[0], "expert_y": EXPERTS[1], "hidden_size": 16,
      "group_size": 8, "second_policy_eval": "'threshold'", **ROOM_FOR_ALL}
  gin_config.parse(["models/lm_tiny.gin"], [
      f"d_model = {DEPTH}", "d_kv = 8",
      f"make_layer_stack.layers = [@SelfAttention, @{CLASSES[name]}]",
      *[f"{CLASSES[name]}.{key} = {value}" for key, value in settings.items()]])
  model = utils.build_model(
      "lm", VOCAB_SIZE, VOCAB_SIZE, layout_rules=impl.layout_rules,
      mesh_shape=impl.shape)
  ids = mtf.cast(imported(mesh, np.random.default_rng(0).integers(
      3, VOCAB_SIZE, size=[dim.size for dim in TOKENS]), TOKENS), tf.int32)
  return model.call_simple(
      inputs=transformer.autoregressive_inputs(ids), targets=ids,
      compute_loss=True, mode="eval", variable_dtype=harness.variable_dtype())


def imported(mesh, array, dims):
  return mtf.import_fully_replicated(
      mesh, tf.constant(array, tf.float32), mtf.Shape(dims), "imported")


def write(build, name, mesh_size, directory):
  """Trains a step, and saves as mesh_tensorflow's program does.

  Args:
    build: a function (name, mtf.Mesh, mesh implementation) -> two Tensors.
    name: whose implementation.
    mesh_size: a pair of integers.
    directory: of the checkpoint.

  Returns:
    the checkpoint's path, and the two Tensors' values as they are then.
  """
  with tf.Graph().as_default():
    tf.train.create_global_step()
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    impl = harness.mesh_impl(*mesh_size)
    outputs, loss = build(name, mesh, impl)
    variables = mesh.graph.trainable_variables
    gradients = mtf.gradients([mtf.reduce_sum(outputs) + loss],
                              [v.outputs[0] for v in variables])
    updates = mtf.optimize.AdafactorOptimizer(learning_rate=0.1).apply_grads(
        gradients, variables)
    lowering = mtf.Lowering(mesh.graph, {mesh: impl})
    step = tf.group(
        tf.assign_add(tf.train.get_global_step(), 1),
        *[lowering.lowered_operation(op) for op in updates])
    values = [lowering.export_to_tf_tensor(t) for t in (outputs, loss)]
    hooks = [
        mtf.MtfRestoreHook(lowering),
        tf.train.CheckpointSaverHook(
            directory, save_steps=10**6, saver=tf.train.Saver(sharded=True),
            listeners=[mtf.MtfCheckpointSaverListener(lowering)])]
    creator = tf.train.ChiefSessionCreator(config=harness.graphs_as_built())
    with tf.train.MonitoredSession(creator, hooks=hooks) as session:
      session.run(step)
      values = session.run(values)
  return tf.train.latest_checkpoint(directory), values


def read(build, name, mesh_size, path):
  """The two Tensors' values with the variables of a checkpoint.

  Args:
    build: as for `write`.
    name: whose implementation.
    mesh_size: a pair of integers.
    path: of the checkpoint. A variable that it lacks is an error.

  Returns:
    two arrays
  """
  with tf.Graph().as_default():
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    impl = harness.mesh_impl(*mesh_size)
    tensors = build(name, mesh, impl)
    lowering = mtf.Lowering(mesh.graph, {mesh: impl})
    values = [lowering.export_to_tf_tensor(t) for t in tensors]
    creator = tf.train.ChiefSessionCreator(
        tf.train.Scaffold(saver=tf.train.Saver(sharded=True)),
        config=harness.graphs_as_built(), checkpoint_filename_with_path=path)
    with tf.train.MonitoredSession(
        creator, hooks=[mtf.MtfRestoreHook(lowering)]) as session:
      return session.run(values)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """`write`, once for each implementation and mesh."""
  @functools.cache
  def write_once(build, name, mesh_size):
    return write(build, name, mesh_size, str(tmp_path_factory.mktemp(name)))
  return write_once


@pytest.mark.parametrize("build", [layer, language_model])
def test_variables_have_the_same_names_and_shapes(build, written):
  """Those of the optimizer too: what one began, the other can train on."""
  theirs, ours = (
      tf.train.list_variables(written(build, name, (1, 1))[0])
      for name in ("theirs", "ours"))
  names = {name.rpartition("MoE2D/")[2] for name, _ in theirs}
  assert {"outer_gating/kernel", "inner_gating/kernel", "wi/kernel",
          "wo/kernel", "wi/kernel_slot_v", "global_step"} <= names
  assert ours == theirs


@pytest.mark.parametrize("writer, reader", WRITER_AND_READER)
@pytest.mark.parametrize("build", [layer, language_model])
def test_the_other_reads_it_and_computes_the_same(
    build, writer, reader, written):
  path, expected = written(build, writer, (1, 1))
  # The same operations on the same numbers: equal to the last bit.
  for a, e in zip(read(build, reader, (1, 1), path), expected, strict=True):
    np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("writer, reader", WRITER_AND_READER)
@pytest.mark.parametrize("build, written_on, read_on", [
    (layer, (1, 1), (2, 2)), (layer, (2, 2), (1, 1)),
    (language_model, (1, 1), (2, 2))])
def test_the_other_reads_it_on_another_mesh(
    build, written_on, read_on, writer, reader, written):
  path, expected = written(build, writer, written_on)
  # Sums over the slices of a mesh add up in another order.
  for a, e in zip(read(build, reader, read_on, path), expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * np.abs(e).max())
