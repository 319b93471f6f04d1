"""What data has beside tokens reaches the model as in mesh_tensorflow's run."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

pytest.importorskip("jax")

from mesh_tensorflow.transformer import utils

from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.xla import configured as configured_lib
from tests import gin_config
from tests.simd import comparison
from tests.xla import export_test
from tests.xla import parity_test

LENGTH = 16


def packed(names, shape):
  """Two texts in each sequence, the second of which ends before it does."""
  rng = np.random.default_rng(0)
  segments = np.array([1] * 6 + [2] * 7 + [0] * 3, np.int32)
  positions = np.array([*range(6), *range(7), 0, 0, 0], np.int32)
  values = {"": rng.integers(3, 200, size=shape) * (segments > 0),
            "segmentation": np.broadcast_to(segments, shape),
            "position": np.broadcast_to(positions, shape)}
  return {name: values[name.partition("_")[2]].astype(np.int32)
          for name in names}


def loss_of_mesh_tensorflow(configured, features, values):
  """The loss of its own model_fn, on a placement mesh."""
  run = configured.run
  vocabulary = run["vocabulary"]
  model = utils.build_model(
      run["model_type"], vocabulary.vocab_size, vocabulary.vocab_size,
      configured.layout, configured.mesh_shape)
  model_fn = utils.tpu_estimator_model_fn(
      run["model_type"], model, vocabulary, "", False, configured.mesh_shape,
      configured.layout, configured.num_sequences, configured.lengths, False,
      None, 100, learning_rate_schedule=0.01, optimizer=run["optimizer"],
      outer_batch_size=2)
  with tf.Graph().as_default(), tf.Session() as session:
    tf.train.create_global_step()
    spec = model_fn({name: tf.constant(value)
                     for name, value in features.items()}, None, "train")
    restore, *_ = spec.training_chief_hooks
    restore.begin()
    session.run(tf.global_variables_initializer())
    session.run([v.initializer for v in tf.global_variables()], {
        v.initial_value: values[v.op.name] for v in tf.global_variables()
        if v.op.name in values})
    restore.after_create_session(session, None)
    return session.run(spec.loss)


@pytest.mark.parametrize("model, model_type", [
    ("lm_tiny", "lm"), ("lm_tiny", "delimited_lm"),
    ("bitransformer_small", "bitransformer")])
def test_the_loss_is_the_same(model, model_type):
  gin_config.parse(
      [f"models/{model}.gin", "meshes/cpu_2x2.gin", "data/bytes.gin"],
      [*export_test.TINY, *export_test.NO_DRAWS,
       f"run.model_type = '{model_type}'"])
  configured = ConfiguredModel.from_gin()
  texts = ["targets"] if model_type == "lm" else ["inputs", "targets"]
  features = packed([
      f"{text}{kind}" for text in texts
      for kind in ("", "_segmentation", "_position")], [2, 2, LENGTH])
  built = configured_lib.program(configured, 0, features)
  values = configured_lib.initial_values(built)
  run = comparison.Run(
      None, "", "", {}, features, lambda name, shape: values[name], steps=1)
  (step,), _ = parity_test.on_devices(run, built)
  expected = loss_of_mesh_tensorflow(configured, features, values)
  parity_test.assert_close(
      step[configured_lib.LOSS], expected, parity_test.TOLERANCE)
  if model_type != "lm":
    return
  (without,), _ = parity_test.on_devices(run, configured_lib.program(
      configured, 0, texts))
  assert abs(without[configured_lib.LOSS] - expected) > 1e-3
