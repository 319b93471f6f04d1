"""Runs a program that was exported, on all devices that JAX sees.

    python -m mtf_moe.xla FOLDER [--steps=10] [--inputs=FILE] [--outputs=FILE]

It needs JAX and NumPy, and no TensorFlow. Inputs are the arrays of an .npz
file, by name; without one they are random, and integers are 1. The outputs of
the last step are written to another .npz file.
"""

import argparse
import statistics
import sys
import time

import jax
import numpy as np

from mtf_moe.xla import devices


def main():
  parser = argparse.ArgumentParser(
      prog="python -m mtf_moe.xla", description=__doc__,
      formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("folder", help="what exporting.save has written")
  parser.add_argument(
      "--steps", type=int, default=10, help="how many, 1 or more")
  parser.add_argument("--inputs", help="an .npz file")
  parser.add_argument("--outputs", help="an .npz file to write")
  flags = parser.parse_args()
  if flags.steps < 1:
    parser.error(f"--steps={flags.steps} must be 1 or more.")
  try:
    program = devices.load(flags.folder)
    if flags.inputs:
      with np.load(flags.inputs, allow_pickle=False) as arrays:
        given = dict(arrays)
    else:
      given = _random_inputs(program.manifest)
    inputs = {name: program.put(name, value) for name, value in given.items()
              if name in program.manifest.arguments}
    _run(program, inputs, flags)
  except (ValueError, OSError) as error:
    sys.exit(f"mtf_moe.xla: {error}")


def _run(program, inputs, flags):
  """Runs the steps, and says how long they took."""
  kind = program.mesh.devices.flat[0].device_kind
  print(f"{program.mesh.size} devices ({kind}), JAX {jax.__version__}; "
        "compiling", flush=True)
  began = time.perf_counter()
  outputs = jax.block_until_ready(program.step(inputs))
  print(f"first step after {time.perf_counter() - began:.1f} s", flush=True)
  seconds = []
  for _ in range(flags.steps - 1):
    began = time.perf_counter()
    outputs = jax.block_until_ready(program.step(inputs))
    seconds.append(time.perf_counter() - began)
  if seconds:
    print(f"{1e3 * statistics.median(seconds):.3f} ms a step, the median of "
          f"{len(seconds)} ({1e3 * min(seconds):.3f} to "
          f"{1e3 * max(seconds):.3f})")
  for name, value in outputs.items():
    if value.ndim == 0:
      print(f"{name} {float(value):.6g}")
  if flags.outputs:
    np.savez(flags.outputs, **{
        name: np.asarray(value) for name, value in outputs.items()})
    print(f"outputs in {flags.outputs}")


def _random_inputs(manifest):
  rng = np.random.default_rng(0)
  return {
      name: np.ones(part.shape, part.dtype) if part.dtype.startswith("int")
      else rng.normal(size=part.shape)
      for name, part in manifest.arguments.items() if part.kind == "input"}


if __name__ == "__main__":
  main()
