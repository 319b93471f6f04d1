"""Programs that run for given arrays, by the command line."""

import json

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from mtf_moe.run.configured_model import ConfiguredModel  # noqa: E402
from mtf_moe.xla import configured as configured_lib  # noqa: E402
from mtf_moe.xla import devices  # noqa: E402
from mtf_moe.xla import exporting  # noqa: E402
from mtf_moe.xla import folder  # noqa: E402
from mtf_moe.xla import running  # noqa: E402
from tests import gin_config  # noqa: E402
from tests.xla import export_test  # noqa: E402
from tests.xla import folder_test  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A directory with programs that train and evaluate, and their inputs."""
  directory = tmp_path_factory.mktemp("running")
  rng = np.random.default_rng(0)
  for mode in ("train", "eval"):
    gin_config.parse(
        ["models/lm_tiny.gin", "meshes/cpu_2x2.gin", "data/bytes.gin"],
        [*export_test.TINY, *export_test.NO_DRAWS, f"run.mode = '{mode}'",
         "run.learning_rate_schedule = 0.01"])
    built = configured_lib.program(
        ConfiguredModel.from_gin(), seed=0, mode=mode)
    exporting.save(str(directory / mode), built)
    shape = built.inputs["targets"].shape.to_integer_list
    np.savez(directory / f"{mode}.npz",
             targets=rng.integers(3, 250, size=[3, *shape]).astype(np.uint16))
  return directory


@pytest.fixture(scope="module")
def loaded(folders):
  """(program, batches) of both, which compile once."""
  found = []
  for mode in ("train", "eval"):
    program = devices.load(str(folders / mode), jax.devices()[:4])
    with np.load(folders / f"{mode}.npz") as arrays:
      found.append((program, running.Batches(program, dict(arrays))))
  return found


@pytest.fixture(name="both")
def at_the_start(folders, loaded):
  for (program, _), mode in zip(loaded, ("train", "eval")):
    start(program, folders / mode)
  return loaded


def start(program, directory):
  program.draw(folder.first_values(str(directory)), seed=5)
  program.global_step = 0


def test_steps_take_one_batch_after_the_other(folders, both):
  (program, batches), _ = both
  assert len(batches) == 3
  losses = [float(outputs["loss"])
            for outputs, _ in running.run(program, batches, 4, every=1)]
  assert program.global_step == 4
  assert losses[3] < losses[0]  # The same batch again.
  start(program, folders / "train")
  for step, loss in enumerate(losses):
    assert loss == float(program.step(batches[step % 3])["loss"])
  waits = list(running.run(program, batches, 5, every=2))
  assert len(waits) == 3 and program.global_step == 9


def test_a_program_takes_the_variables_of_another(both):
  (program, batches), (other, held_out) = both
  before = running.means(other, held_out)["loss"]
  assert other.global_step == 0
  other.take(program)
  assert running.means(other, held_out)["loss"] == before  # Of one seed.
  for _ in running.run(program, batches, 3, every=3):
    pass
  other.take(program)
  after = running.means(other, held_out)["loss"]
  assert after < before
  expected = np.mean([
      float(other.step(held_out[number], update=False)["loss"])
      for number in range(3)])
  assert after == pytest.approx(expected, rel=1e-6)


def test_it_does_not_take_those_of_another_model(both):
  (program, _), (other, _) = both
  with pytest.raises(ValueError, match="export both from the same config"):
    program.take(other)  # Which has no slots of an optimizer.


@pytest.mark.parametrize("arrays, said", [
    ({"inputs": np.zeros([2, 2, 16])}, "has an input 'targets'"),
    ({"targets": np.zeros([2, 16])}, "was given an array of"),
    ({"targets": np.zeros([0, 2, 2, 16])}, "was given an array of"),
])
def test_arrays_that_do_not_fit(loaded, arrays, said):
  program = loaded[0][0]
  with pytest.raises(ValueError, match=said):
    running.Batches(program, arrays)


def test_the_command_line_trains_and_evaluates(folders, both):
  result = folder_test.run_program(
      folders / "train", "--steps=6", "--every=2", "--seed=5",
      f"--inputs={folders}/train.npz", f"--evaluation={folders}/eval",
      f"--evaluation_inputs={folders}/eval.npz",
      f"--results={folders}/results.jsonl")
  assert result.returncode == 0, result.stderr
  lines = [json.loads(line) for line in
           (folders / "results.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [3, 5, 6, 6]
  (program, batches), (other, held_out) = both
  *_, (outputs, _) = running.run(program, batches, 6, every=1)
  assert lines[2]["loss"] == pytest.approx(float(outputs["loss"]), rel=1e-5)
  other.take(program)
  assert lines[3]["evaluation loss"] == pytest.approx(
      running.means(other, held_out)["loss"], rel=1e-5)
  assert lines[3]["seed"] == 5


def test_an_evaluation_needs_both_flags(folders):
  result = folder_test.run_program(
      folders / "train", f"--evaluation={folders}/eval")
  assert result.returncode == 2
  assert "give both, or none" in result.stderr
