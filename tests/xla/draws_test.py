"""Random numbers of programs on XLA devices.

They are not those of TensorFlow's own kernels, whose generators begin in
another way; what they depend on is the same.
"""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

jax = pytest.importorskip("jax")

from mtf_moe import simd  # noqa: E402
from mtf_moe.xla import devices  # noqa: E402
from mtf_moe.xla import exporting  # noqa: E402
from tests.simd import parity_test as simd_runs  # noqa: E402

BATCH, X = mtf.Dimension("batch", 8), mtf.Dimension("x", 64)


def model(tensors):
  """Draws in a step, and counts steps in a variable."""
  mesh = tensors["zeros"].mesh
  drawn = {"uniform": mtf.random_uniform(mesh, [BATCH, X]),
           "again": mtf.random_uniform(mesh, [BATCH, X]),
           "normal": mtf.random_normal(mesh, [BATCH, X])}
  return {name: one + tensors["zeros"] for name, one in drawn.items()}, []


def in_microbatches(tensors):
  def draw(features):
    drawn = mtf.random_uniform(features["zeros"].mesh, [
        mtf.Dimension("batch", 4), X])
    return {"uniform": drawn + features["zeros"],
            "loss": mtf.reduce_sum(weights) + mtf.reduce_sum(drawn)}

  weights = mtf.get_variable(tensors["zeros"].mesh, "weights", [X])
  _, outputs = mtf.serialize_training_step(tensors, draw, BATCH, 2)
  return {"uniform": outputs["uniform"]}, []


def drawn(seed=0, mesh="rows:2,columns:2", steps=(0,), model_fn=model,
          **options):
  """What is drawn in steps: whole arrays by name, one dict for each.

  Args:
    seed: an integer.
    mesh: a string; rows split the batch, and along columns all draw the same.
    steps: numbers of steps.
    model_fn: as of simd.build.
    **options: of simd.build.
  """
  program = simd.build(
      model_fn, mesh, "batch:rows", {"zeros": (tf.float32, [BATCH, X])},
      seed=seed, **options)
  on = devices.OnDevices(
      *exporting.export(program), jax.devices()[:program.slicing.num_cores])
  found = []
  for step in steps:
    on.global_step = step
    outputs = on.step({"zeros": np.zeros([8, 64])})
    for value in outputs.values():  # Whoever has a part has the same.
      parts = {}
      for shard in value.addressable_shards:
        first = parts.setdefault(str(shard.index), np.asarray(shard.data))
        np.testing.assert_array_equal(first, np.asarray(shard.data))
    found.append({name: np.asarray(value) for name, value in outputs.items()})
  return found


def test_they_look_like_it():
  found, = drawn()
  assert found["uniform"].min() >= 0 and found["uniform"].max() < 1
  assert found["uniform"].mean() == pytest.approx(0.5, abs=0.05)
  assert found["normal"].mean() == pytest.approx(0.0, abs=0.15)
  assert found["normal"].std() == pytest.approx(1.0, abs=0.1)
  for value in found.values():  # No part is that of another.
    assert len(np.unique(value[:, 0])) == BATCH.size
  assert (found["uniform"] == found["again"]).mean() < 0.01


def test_what_they_depend_on():
  first, second = drawn(steps=(3, 4))
  assert (first["uniform"] == second["uniform"]).mean() < 0.01
  again, = drawn(steps=(3,))  # As after a restart.
  other, = drawn(seed=1, steps=(3,))
  permuted, = drawn(steps=(3,), logical_to_physical=[2, 0, 3, 1])
  for name, value in first.items():
    np.testing.assert_array_equal(again[name], value)
    np.testing.assert_array_equal(permuted[name], value)
    assert (other[name] == value).mean() < 0.01


def test_microbatches_draw_anew():
  found, = drawn(model_fn=in_microbatches)
  assert len(np.unique(found["uniform"][:, 0])) == BATCH.size


def test_a_layer_that_draws():
  """Dropout and policies: the same twice, and another loss in another step."""
  run = simd_runs.layer_run(
      2, 2, "sgd", moe_gating=("top_2", "noisy_top_k"), moe_noisy_top_k=1,
      moe_second_policy_train="random", moe_dropout_rate=0.3)
  program = run.build(seed=5)
  module, manifest = exporting.export(program)
  losses = []
  for step in (0, 0, 1):
    on = devices.OnDevices(module, manifest, jax.devices()[:4])
    on.set({name: run.first_value(name, part.shape)
            for name, part in manifest.arguments.items()
            if part.kind == "variable"})
    on.global_step = step
    losses.append(float(on.step(run.feeds)["loss"]))
  assert losses[0] == losses[1] != losses[2]
