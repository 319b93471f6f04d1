"""Runs a program that was exported, on all devices that JAX sees.

    python -m mtf_moe.xla FOLDER [--steps=10] [--inputs=FILE] [--outputs=FILE]

It needs JAX and NumPy, and no TensorFlow. Inputs are the arrays of an .npz
file, by name: one batch for all steps, or one in each row, which come again
after the last. Without a file they are random, and integers are 1. The outputs
of the last step are written to another .npz file.

    python -m mtf_moe.xla FOLDER --steps=5000 --inputs=train.npz --seed=1 \\
        --evaluation=OTHER --evaluation_inputs=held_out.npz --results=FILE

trains, and then evaluates: OTHER is a folder with a program that shares the
variables and updates none. What it prints as it goes is kept in a file, a line
of JSON each.
"""

import argparse
import importlib.metadata
import json
import statistics
import sys
import time

import jax
import numpy as np

from mtf_moe.xla import devices
from mtf_moe.xla import running


def main():
  parser = argparse.ArgumentParser(
      prog="python -m mtf_moe.xla", description=__doc__,
      formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument(
      "--version", action="version",
      version=f"mtf_moe {importlib.metadata.version('mtf_moe')}")
  parser.add_argument("folder", help="what mtf_moe.xla.export has written")
  parser.add_argument(
      "--steps", type=int, default=10, help="how many, 1 or more")
  parser.add_argument(
      "--every", type=int, default=0, metavar="N",
      help="say how it goes after so many; a twentieth of all if 0")
  parser.add_argument(
      "--seed", type=int, default=0,
      help="of first values, where the folder has none")
  parser.add_argument("--inputs", help="an .npz file")
  parser.add_argument("--outputs", help="an .npz file to write")
  parser.add_argument("--evaluation", metavar="FOLDER", help="another program")
  parser.add_argument("--evaluation_inputs", help="an .npz file")
  parser.add_argument("--results", help="a file to which lines are added")
  flags = parser.parse_args()
  for name, lowest in (("steps", 1), ("every", 0)):
    if getattr(flags, name) < lowest:
      parser.error(f"--{name}={getattr(flags, name)} must be {lowest} or more.")
  if bool(flags.evaluation) != bool(flags.evaluation_inputs):
    parser.error("--evaluation and --evaluation_inputs: give both, or none.")
  try:
    program = devices.load(flags.folder, seed=flags.seed)
    batches = running.Batches(
        program, _arrays(flags.inputs) if flags.inputs
        else _random_inputs(program.manifest))
    evaluation = None
    if flags.evaluation:
      other = devices.load(flags.evaluation)
      other.take(program)  # Here it fails before there was any work.
      evaluation = other, running.Batches(
          other, _arrays(flags.evaluation_inputs))
    _run(program, batches, evaluation, flags)
  except (ValueError, OSError) as error:
    sys.exit(f"mtf_moe.xla: {error}")


def _run(program, batches, evaluation, flags):
  """Runs the steps, says how long they took, and evaluates."""
  kind = program.mesh.devices.flat[0].device_kind
  print(f"{program.mesh.size} devices ({kind}), JAX {jax.__version__}; "
        "compiling", flush=True)
  began = time.perf_counter()
  outputs = jax.block_until_ready(
      program.step(batches[program.global_step]))
  print(f"first step after {time.perf_counter() - began:.1f} s", flush=True)
  every, seconds = flags.every or max(1, flags.steps // 20), []
  for outputs, second in running.run(
      program, batches, flags.steps - 1, every):
    seconds.append(second)
    if flags.results or flags.steps > 20:
      _tell(flags, step=program.global_step, ms_a_step=1e3 * second,
            **_numbers(outputs))
  if seconds:
    print(f"{1e3 * statistics.median(seconds):.3f} ms a step, the median of "
          f"{len(seconds)} ({1e3 * min(seconds):.3f} to "
          f"{1e3 * max(seconds):.3f})")
  for name, value in _numbers(outputs).items():
    print(f"{name} {value:.6g}")
  if evaluation:
    other, held_out = evaluation
    other.take(program)
    _tell(flags, step=program.global_step, seed=flags.seed, **{
        f"evaluation {name}": value
        for name, value in running.means(other, held_out).items()},
          ms_a_step=1e3 * statistics.median(seconds or [0]), device=kind,
          folder=flags.folder)
  if flags.outputs:
    np.savez(flags.outputs, **{
        name: np.asarray(value) for name, value in outputs.items()})
    print(f"outputs in {flags.outputs}")


def _tell(flags, **facts):
  """Prints facts, and adds them to the results."""
  print(", ".join(
      f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
      for name, value in facts.items()), flush=True)
  if flags.results:
    with open(flags.results, "a", encoding="utf-8") as file:
      file.write(json.dumps(facts) + "\n")


def _numbers(outputs):
  return {name: float(value) for name, value in outputs.items()
          if value.ndim == 0}


def _arrays(path):
  with np.load(path, allow_pickle=False) as arrays:
    return dict(arrays)


def _random_inputs(manifest):
  rng = np.random.default_rng(0)
  return {
      name: np.ones(part.shape, part.dtype) if part.dtype.startswith("int")
      else rng.normal(size=part.shape)
      for name, part in manifest.arguments.items() if part.kind == "input"}


if __name__ == "__main__":
  main()
