"""Training steps of configured models, exported."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("jax")

from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.xla import configured as configured_lib
from mtf_moe.xla import folder
from tests import gin_config
from tests.simd import comparison
from tests.train import program as train_program
from tests.xla import folder_test
from tests.xla import parity_test

TINY = ["batch_size = 4", "sequence_length = 16", "d_model = 16",
        "num_layers = 1", "MoE2D.hidden_size = 16",
        "MoE2D.summaries = False", "run.mode = 'train'",
        "run.perplexity_eval_steps = None"]
NO_DRAWS = ["MoE2D.second_policy_train = 'threshold'", "dropout_rate = 0.0"]


@pytest.mark.parametrize("model, bindings", [
    ("lm_tiny", []),
    ("lm_tiny", ["serialize_num_microbatches.tokens_per_microbatch_per_replica"
                 " = 16", "batch_size = 8"]),
    ("bitransformer_small", [])], ids=["lm", "microbatches", "encoder-decoder"])
def test_a_configured_model_trains_as_on_all_cores(model, bindings):
  """With its optimizer, its schedule, and values that are drawn."""
  gin_config.parse(
      [f"models/{model}.gin", "meshes/cpu_2x2.gin", "data/bytes.gin"],
      [*TINY, *NO_DRAWS, *bindings,
       "run.learning_rate_schedule = "
       "@learning_rate_schedules.truncated_rsqrt",
       "truncated_rsqrt.warmup_steps = 100"])
  configured = ConfiguredModel.from_gin()
  assert configured.num_microbatches == (2 if bindings else 1)
  built = configured_lib.program(configured, seed=0)
  values = configured_lib.initial_values(built)
  assert values.keys() == built.variables.keys()
  again = configured_lib.initial_values(built)
  for name, value in values.items():
    np.testing.assert_array_equal(again[name], value)
  rng = np.random.default_rng(0)
  run = comparison.Run(
      None, "", "", {}, {
          name: rng.integers(3, 200, size=given.shape.to_integer_list)
          for name, given in built.inputs.items()},
      lambda name, shape: values[name], steps=3)
  steps, variables = parity_test.on_devices(run, built)
  expected_steps, expected = parity_test.on_cores(run, built)
  assert steps[0]["loss"] > steps[2]["loss"]  # It learns.
  for step, other in zip(steps, expected_steps, strict=True):
    parity_test.assert_close(step["loss"], other["loss"], 1e-5)
  for name, value in expected.items():
    parity_test.assert_close(variables[name], value, 1e-4)


def run_export(directory, *arguments):
  return subprocess.run(
      [sys.executable, "-m", "mtf_moe.xla.export", *arguments],
      cwd=directory, env={**os.environ, "PYTHONPATH": train_program.ROOT},
      capture_output=True, text=True, check=False)


def test_a_checkpoint_goes_on(tmp_path):
  """Trained by mtf_moe.train, exported, and run without TensorFlow."""
  train_program.write_text(tmp_path)
  train_program.run(tmp_path, "run.train_steps = 2")
  arguments = [f"--gin_file={name}" for name in train_program.FILES]
  arguments += [f"--gin_param={line}" for line in [
      *train_program.SETTINGS, train_program.FOUR_SLICES]]
  result = run_export(
      tmp_path, "--folder=program", "--checkpoint=model", "--batches=3",
      "--gin_param=TextFiles.glob = 'text.txt'", *arguments)
  assert result.returncode == 0, result.stderr
  assert "wrote program, for 4 devices" in result.stdout
  assert folder.values(str(tmp_path / "program"))["global_step"] == 2
  with np.load(tmp_path / "program" / "inputs.npz") as arrays:
    assert arrays["targets"].shape == (3, 2, 2, 16)
    assert arrays["targets"].dtype == np.uint8
    assert len({batch.tobytes() for batch in arrays["targets"]}) == 3
  result = folder_test.run_program(
      tmp_path / "program", "--steps=2",
      f"--inputs={tmp_path}/program/inputs.npz")
  assert result.returncode == 0, result.stderr
  assert "\nloss " in result.stdout
  result = run_export(
      tmp_path, "--folder=other", "--checkpoint=model", *arguments,
      "--gin_param=d_model = 32")
  assert result.returncode == 1
  *_, said = result.stderr.strip().splitlines()
  assert "mtf_moe.xla.export: --checkpoint=model is of another model:" in said
  assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("arguments, said", [
    ([], "--folder is not set: name a folder to write to."),
    (["--folder=f", "--gin_file=models/lm_tiny.gin"],
     "run.mesh_shape is not set"),
])
def test_mistakes(tmp_path, arguments, said):
  result = run_export(tmp_path, *arguments)
  assert result.returncode == 1
  *_, line = result.stderr.strip().splitlines()
  assert line.startswith("mtf_moe.xla.export: ") and said in line
