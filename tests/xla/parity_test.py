"""Programs on XLA devices compute what all cores compute in TensorFlow."""

import re

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from mtf_moe import simd  # noqa: E402
from mtf_moe.xla import devices  # noqa: E402
from mtf_moe.xla import exporting  # noqa: E402
from tests.simd import parity_test as simd_runs  # noqa: E402

# Of all errors, relative to the largest element. Both sides do the same
# operations, in which XLA fuses products with sums, and adds up in another
# order: some units of float32 for each of the sums of up to a hundred terms.
TOLERANCE = 4e-6

LAYERS = {
    "one core": (lambda: simd_runs.layer_run(1, 1, "sgd"), {}),
    "einsum": (lambda: simd_runs.layer_run(2, 2, "sgd"), {}),
    "index, Adafactor, autostack, permuted cores": (
        lambda: simd_runs.layer_run(2, 2, "adafactor", moe_dispatch="index"),
        {"autostack": True, "logical_to_physical": [2, 0, 3, 1]}),
    "4x2": (
        lambda: simd_runs.layer_run(4, 2, "sgd", moe_dispatch="index"), {}),
    "microbatches": (
        lambda: simd_runs.layer_run(2, 2, "sgd", 2, moe_dispatch="index"), {}),
    "three levels": (lambda: simd_runs.levels_run(3, "index"), {}),
    "a bias that a rule moves": (
        lambda: simd_runs.layer_run(
            2, 2, "sgd", moe_gating=("sigmoid_top_k", "hash"),
            moe_sigmoid_bias_rate=0.25, moe_sigmoid_top_k=1), {}),
    "transformer, permuted cores": (
        lambda: simd_runs.transformer_run(2, 2, "adafactor", dispatch="index"),
        {"autostack": True, "logical_to_physical": [1, 2, 3, 0]}),
}


def on_devices(run, program):
  """(outputs of each step, variables at the end), whole, by name."""
  module, manifest = exporting.export(program)
  cores = program.slicing.num_cores
  on = devices.OnDevices(module, manifest, jax.devices()[:cores])
  with simd.Cores(program) as first:
    first.load({name: run.first_value(name, variable.shape)
                for name, variable in program.variables.items()})
    on.set({name: g.value for name, g in first.slices().items()})
  steps = [{name: np.asarray(value) for name, value in on.step(
      run.feeds).items()} for _ in range(run.steps)]
  assert on.global_step == run.steps
  return steps, on.get()


def on_cores(run, program):
  with simd.Cores(program) as cores:
    cores.load({name: run.first_value(name, variable.shape)
                for name, variable in program.variables.items()})
    steps = [{name: g.value for name, g in cores.step(run.feeds).items()}
             for _ in range(run.steps)]
    return steps, {name: g.value for name, g in cores.slices().items()}


def assert_close(actual, expected, tolerance):
  actual, expected = (
      np.asarray(value, np.float64) for value in (actual, expected))
  scale = max(np.abs(expected).max(initial=0.0), 1e-3)
  assert np.abs(actual - expected).max(initial=0.0) <= tolerance * scale


@pytest.mark.parametrize("name", LAYERS)
def test_steps_and_variables(name):
  make, options = LAYERS[name]
  run = make()
  program = run.build(**options)
  steps, variables = on_devices(run, program)
  expected_steps, expected_variables = on_cores(run, program)
  for step, expected in zip(steps, expected_steps, strict=True):
    assert step.keys() == expected.keys()
    for key, value in expected.items():
      assert_close(step[key], value, TOLERANCE)
  assert variables.keys() == expected_variables.keys()
  for key, value in expected_variables.items():
    assert_close(variables[key], value, TOLERANCE)


def test_a_program_that_draws_as_mtf_does_is_refused():
  program = simd_runs.layer_run(
      1, 1, "sgd", moe_second_policy_train="random").build()
  with pytest.raises(ValueError, match=(
      r"draws numbers by a RandomUniform, .*: give simd.build a seed")):
    exporting.export(program)


def test_float32_is_exchanged_as_it_is_or_rounded():
  run = simd_runs.layer_run(2, 2, "none", train=False, moe_dispatch="index")
  program = run.build()
  texts = [jax.export.deserialize(bytearray(exporting.export(
      program, float32_alltoall)[0])).mlir_module()
           for float32_alltoall in (True, False)]
  exact, rounded = (
      {re.search(r"x([a-z]+\d+)>", line.partition(": (")[2])[1]
       for line in text.splitlines() if "stablehlo.all_to_all" in line}
      for text in texts)
  assert exact == {"f32"}
  assert rounded == {"bf16"}
