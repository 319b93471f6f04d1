"""Runs of the program whose layers are computed again on the backward pass."""

import dataclasses

import numpy as np
import tensorflow.compat.v1 as tf

from tests.train import small_models

RECOMPUTED = "LayerStack.recompute_grads = True"
PROMPTS = ["abcd efgh ijkl m"]


def test_same_weights_records_and_continuations(tmp_path):
  (tmp_path / "text.txt").write_text("abcd efgh ijkl mnop " * 50)
  plain = small_models.Model(f"{tmp_path}/plain", ["runs/tiny.gin"], [
      f"TextFiles.glob = '{tmp_path}/text.txt'",
      "train_model.steps_per_record = 1"])
  recomputed = dataclasses.replace(
      plain, directory=f"{tmp_path}/recomputed",
      bindings=[*plain.bindings, RECOMPUTED])
  variables, records, continued = {}, {}, {}
  for model in (plain, recomputed):
    small_models.run(model, small_models.ONE_SLICE, "run.train_steps = 2")
    reader = tf.train.load_checkpoint(model.directory)
    variables[model.directory] = {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()}
    records[model.directory] = small_models.metrics(model.directory)
    continued[model.directory] = small_models.continuations(
        model, small_models.ONE_SLICE, PROMPTS, small_models.GREEDY)

  expected, actual = variables.values()
  assert expected.keys() == actual.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(
        actual[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
  expected, actual = records.values()
  tags = {tag for tag in expected if tag.startswith("moe/")}
  assert len(tags) > 40
  assert tags == {tag for tag in actual if tag.startswith("moe/")}
  expected, actual = continued.values()
  assert expected == actual
