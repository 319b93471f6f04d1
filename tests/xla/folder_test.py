"""Programs in folders, written with TensorFlow and run without."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from mtf_moe import simd  # noqa: E402
from mtf_moe.xla import devices  # noqa: E402
from mtf_moe.xla import exporting  # noqa: E402
from tests.simd import parity_test as simd_runs  # noqa: E402
from tests.xla import parity_test  # noqa: E402

ROOT = str(pathlib.Path(__file__).parents[2])
# As on a machine that has no TensorFlow.
WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = sys.modules["mesh_tensorflow"] = None
sys.argv = ["mtf_moe.xla"] + sys.argv[1:]
runpy.run_module("mtf_moe.xla", run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """(the folder, the outputs of the third step by all cores, the inputs)."""
  run = simd_runs.layer_run(2, 2, "sgd", moe_dispatch="index")
  program = run.build()
  with simd.Cores(program) as cores:
    cores.load({name: run.first_value(name, variable.shape)
                for name, variable in program.variables.items()})
    values = {name: g.value for name, g in cores.slices().items()}
    for _ in range(3):
      outputs = cores.step(run.feeds)
  directory = tmp_path_factory.mktemp("exported") / "program"
  exporting.save(str(directory), program, values)
  return directory, {name: g.value for name, g in outputs.items()}, run.feeds


def run_program(*arguments, num_devices=4):
  return subprocess.run(
      [sys.executable, "-c", WITHOUT_TENSORFLOW, *map(str, arguments)],
      env={**os.environ, "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu",
           "XLA_FLAGS":
               f"--xla_force_host_platform_device_count={num_devices}"},
      capture_output=True, text=True, check=False)


def test_it_runs_without_tensorflow(exported, tmp_path):
  directory, expected, feeds = exported
  np.savez(tmp_path / "inputs.npz", **feeds)
  result = run_program(
      directory, "--steps=3", f"--inputs={tmp_path}/inputs.npz",
      f"--outputs={tmp_path}/outputs.npz")
  assert result.returncode == 0, result.stderr
  assert "4 devices (cpu)" in result.stdout
  assert "ms a step, the median of 2" in result.stdout
  with np.load(tmp_path / "outputs.npz") as outputs:
    assert set(outputs) == set(expected)
    for name, value in expected.items():
      parity_test.assert_close(outputs[name], value, parity_test.TOLERANCE)


def test_without_inputs_there_are_random_ones(exported):
  result = run_program(exported[0], "--steps=1")
  assert result.returncode == 0, result.stderr
  assert "\nloss 0." in result.stdout


def test_files_are_plain(exported):
  directory, _, _ = exported
  assert sorted(path.name for path in directory.iterdir()) == [
      "program.json", "program.stablehlo", "values.npz"]
  manifest = json.loads((directory / "program.json").read_text())
  assert manifest["mesh"] == {"outer": 2, "batch": 2}
  wi = manifest["arguments"]["wi/kernel"]
  assert wi["axes"] == ["outer", "batch", None, None]
  assert wi["kind"] == "variable"
  assert {"tensorflow", "jax"} <= manifest["made_from"].keys()


@pytest.mark.parametrize("num_devices", [2, 8])
def test_other_numbers_of_devices(exported, num_devices):
  result = run_program(exported[0], num_devices=num_devices)
  assert result.returncode == 1
  *_, said = result.stderr.strip().splitlines()
  assert said.startswith(
      "mtf_moe.xla: run.mesh_shape = 'outer:2,batch:2' has 4 cores, and JAX "
      f"sees {num_devices} devices of the platform 'cpu'")


def test_folders_that_are_none(exported, tmp_path):
  directory, _, _ = exported
  with pytest.raises(ValueError, match="is no folder with a program"):
    devices.load(str(tmp_path))
  manifest = json.loads((directory / "program.json").read_text())
  (tmp_path / "program.stablehlo").write_bytes(b"")
  (tmp_path / "program.json").write_text(json.dumps({**manifest, "format": 0}))
  with pytest.raises(ValueError, match="was written by another release"):
    devices.load(str(tmp_path))


def test_nothing_is_written_over(exported):
  directory, _, _ = exported
  before = (directory / "program.json").read_bytes()
  program = simd_runs.layer_run(1, 1, "sgd").build()
  with pytest.raises(FileExistsError, match="has a program already"):
    exporting.save(str(directory), program)
  assert (directory / "program.json").read_bytes() == before


def test_what_is_given_has_to_fit(exported):
  directory, _, feeds = exported
  program = devices.load(str(directory), jax.devices()[:4])
  with pytest.raises(ValueError, match=r"'inputs' has the shape .* was"):
    program.step({**feeds, "inputs": np.zeros([2, 2])})
  with pytest.raises(ValueError, match="The inputs of the program are"):
    program.step({"inputs": feeds["inputs"]})


def test_an_evaluation_changes_nothing(exported):
  directory, _, feeds = exported
  program = devices.load(str(directory), jax.devices()[:4])
  before = program.get()
  first = np.asarray(program.step(feeds, update=False)["loss"])
  assert program.global_step == 0
  for name, value in program.get().items():
    np.testing.assert_array_equal(value, before[name])
  np.testing.assert_array_equal(np.asarray(program.step(feeds)["loss"]), first)


def test_what_is_not_asked_for_is_not_computed(exported):
  directory, _, feeds = exported
  whole, part = (
      devices.load(str(directory), jax.devices()[:4]) for _ in range(2))
  everything = whole.step(feeds)
  assert len(everything) > 1
  loss, = part.step(feeds, outputs=["loss"]).values()
  np.testing.assert_array_equal(np.asarray(loss), np.asarray(
      everything["loss"]))
  for name, value in part.get().items():
    np.testing.assert_array_equal(value, whole.get()[name])

  def products(results):
    step = part._step._of(tuple(results))
    arguments = [part._argument(name, argument, feeds)
                 for name, argument in part.manifest.arguments.items()]
    return step.lower(*arguments).compile().cost_analysis()["flops"]

  assert products(["loss"]) < products(part.manifest.results)
