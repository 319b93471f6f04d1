"""Measures the layer on a GPU or a TPU that JAX sees.

Where TensorFlow is, export the programs; where the device is, run them: that
needs JAX, NumPy and tabulate, and this checkout.

  python scripts/device_benchmark.py export FOLDER
  python scripts/device_benchmark.py run FOLDER

Contenders are those of scripts/benchmark.py, in bfloat16 unless it says
float32: index and einsum are mtf_moe's ways to move tokens, reference is
mesh_tensorflow's layer, bound the experts alone, dense a feed-forward layer of
as many products. Steps are forward, and training: all gradients, without an
update. Programs of equal sizes take turns, in an order that changes; compare
ratios. The outputs of index, einsum and reference are compared as well.
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import sys
import time
import zlib

MODES = ("forward", "training")
SIZES = {"tokens": 32768, "d_model": 1024, "hidden": 4096,
         "capacity_factors": (1.25, 1.0)}
LAYERS = ("index", "einsum", "reference")
BOUNDS = ("bound", "dense")


def cases():
  """(name, contender, sizes, mode, type) of each program."""
  def case(contender, dtype="bfloat16", **sizes):
    x, y = sizes["experts"]
    for mode in MODES:
      yield (f"{x}x{y}_{dtype}_{sizes['group']}_{contender}_{mode}", contender,
             {**SIZES, **sizes}, mode, dtype)

  for group in (256, 1024, 4096):
    for contender in LAYERS:
      yield from case(contender, experts=(4, 4), group=group)
  for contender in BOUNDS:
    yield from case(contender, experts=(4, 4), group=1024)
  for contender in (*LAYERS, "bound"):
    yield from case(contender, experts=(8, 8), group=1024)
  for contender in ("index", "einsum", "bound"):
    yield from case(contender, "float32", experts=(4, 4), group=1024)


def export(directory):
  """Writes a folder for each program."""
  import mtf_moe  # noqa: F401 isort: skip  (must precede mesh_tensorflow)
  import tensorflow.compat.v1 as tf

  from benchmarking import device_programs
  from benchmarking import settings

  tf.disable_v2_behavior()
  for name, contender, sizes, mode, dtype in cases():
    if not (directory / name).exists():
      print(name, flush=True)
      device_programs.save(
          str(directory / name), contender, settings.Setting(**sizes), mode,
          tf.as_dtype(dtype))


class Program:
  """A program that is compiled, and its arguments."""

  def __init__(self, directory):
    # Only here, so that an export needs no device.
    import jax

    from mtf_moe.xla import devices
    from mtf_moe.xla import folder
    from mtf_moe.xla import sharded_step

    self.name = directory.name
    self.sizes, self.group, self.contender, self.mode = (
        self.name.rsplit("_", 3))
    module, manifest = folder.read(directory)
    self._manifest = manifest
    step = sharded_step.ShardedStep(
        module, manifest,
        devices.of_mesh(manifest.mesh, jax.devices()[:1]))
    began = time.perf_counter()
    self._compiled = step.lower().compile()
    self.compile_seconds = time.perf_counter() - began
    memory = self._compiled.memory_analysis()
    self.temporaries = memory.temp_size_in_bytes / 2**20
    self._arguments = [
        jax.device_put(_value(name, part), step.sharding(part))
        for name, part in manifest.arguments.items()]
    self.seconds = []

  def __call__(self):
    return self._compiled(*self._arguments)

  def outputs(self):
    """Those of a step, as float32, by name."""
    import jax.numpy as jnp
    return {name: value.astype(jnp.float32)
            for name, value in zip(self._manifest.results, self())
            if name in ("outputs", "loss", "gradient of inputs")}

  def time(self, number):
    """Notes the seconds of a step, as the mean of a number in a row."""
    import jax
    jax.block_until_ready(self())
    began = time.perf_counter()
    for _ in range(number):
      results = self()
    jax.block_until_ready(results)
    self.seconds.append((time.perf_counter() - began) / number)


_values = {}


def _value(name, part):
  """Normal values, the same for the same name and shape in all programs."""
  import jax
  import jax.numpy as jnp
  key = name, part.shape, part.dtype
  if key not in _values:
    values = jax.random.normal(
        jax.random.key(zlib.crc32(name.encode())), part.shape or ())
    if name.endswith("kernel"):  # Its rows are what is summed over.
      values *= part.shape[-2] ** -0.5
    _values[key] = values.astype(jnp.dtype(part.dtype))
  return _values[key]


def run(directory, rounds, workers):
  """Times all programs of a folder, and prints a table."""
  import jax
  print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}", flush=True)
  folders = sorted(p.parent for p in directory.glob("*/program.json"))
  if not folders:
    sys.exit(f"{directory} has no programs: export them first.")
  families, times = {}, {}
  for folder in folders:
    sizes, _, _, mode = folder.name.rsplit("_", 3)
    families.setdefault((sizes, mode), []).append(folder)
  for together in families.values():
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      together = list(pool.map(Program, together))
    print(f"compiled {len(together)} in {time.perf_counter() - began:.0f} s",
          flush=True)
    for group in sorted({program.group for program in together}):
      _compare([program for program in together if program.group == group])
    for program in together:
      program.time(3)
    number = max(3, min(100, int(0.1 / together[0].seconds.pop())))
    for program in together:
      program.seconds.clear()
    for turn in range(rounds):
      for program in together[::-1] if turn % 2 else together:
        program.time(number)
    _print_table(together)
    times |= {program.name: {
        "ms": [1e3 * second for second in program.seconds],
        "compile_seconds": program.compile_seconds,
        "temporaries_mib": program.temporaries} for program in together}
    (directory / "times.json").write_text(json.dumps(times, indent=1))
    _values.clear()


def _compare(programs):
  """Prints how far the outputs of layers are from those of the first."""
  import jax.numpy as jnp
  layers = [p for p in programs if p.contender not in BOUNDS]
  expected = layers[0].outputs() if len(layers) > 1 else None
  for program in layers[1:]:
    for name, value in program.outputs().items():
      rows = value.reshape(-1, value.shape[-1] if value.ndim else 1)
      others = expected[name].reshape(rows.shape)
      differ = jnp.abs(rows - others).max(-1)
      print(f"{program.name} from {layers[0].contender}, {name}: "
            f"{float(differ.max()):.2g} at most, of "
            f"{float(jnp.abs(others).max()):.2g}; "
            f"{100 * float((differ > 0).mean()):.2g}% of rows differ",
            flush=True)


def _print_table(programs):
  import tabulate
  alone = next((statistics.median(program.seconds) for program in programs
                if program.contender == "bound"), None)
  rows = []
  for p in sorted(programs, key=lambda p: (int(p.group), p.contender)):
    median = statistics.median(p.seconds)
    rows.append([p.mode, p.sizes, p.group, p.contender, 1e3 * median,
                 1e3 * min(p.seconds), 1e3 * max(p.seconds),
                 median / alone if alone else None, round(p.temporaries)])
  print(tabulate.tabulate(rows, headers=[
      "mode", "experts, type", "group", "contender", "ms", "least", "most",
      "over the experts alone", "temporaries, MiB"], floatfmt=".3f"),
        flush=True)


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=["export", "run"])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument(
      "--workers", type=int, default=6, help="that compile at a time")
  flags = parser.parse_args()
  if flags.what == "export":
    export(flags.folder)
  else:
    run(flags.folder, flags.rounds, flags.workers)


if __name__ == "__main__":
  main()
