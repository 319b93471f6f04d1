"""The command line: what a configuration costs, without running it.

    python -m mtf_moe.plan --gin_file=models/lm_small.gin \\
        --gin_file=meshes/tpu_4x4.gin --gin_file=data/bytes.gin

Gin files and parameters are those of mtf_moe.train; the text itself is not
needed, only the vocabulary. Counts parameters, products, memory and what cores
exchange on the lowered training step, and says what looks wrong in it.

With --compile_for=v5e:16x16, the TPU's own compiler compiles the step, which
takes no TPU, but minutes, and "mtf_moe[tpu]".
"""

import importlib.util
import json
import os
import sys

from absl import flags
import tabulate

from mtf_moe.plan import planning
from mtf_moe.run import configured_step
from mtf_moe.run import console
from mtf_moe.run import mistakes
from mtf_moe.run import patches

FLAGS = flags.FLAGS

flags.DEFINE_bool("json", False, "Print JSON, with sizes in bytes.")
flags.DEFINE_bool(
    "suggest", False, "Rank the meshes of so many cores as run.mesh_shape has, "
    "with the canonical layout, by what cores exchange and by memory.")
flags.DEFINE_string(
    "compile_for", None, "Has the TPU's compiler compile the step for a slice "
    "such as v5e:16x16, and shows what it says of memory and collectives.")

_PROGRAM = "mtf_moe.plan"


@mistakes.told(_PROGRAM)
def main(argv):
  del argv
  with console.opened(), patches.our_layer_of_one_level():
    configured = configured_step.read()
    if FLAGS.suggest:
      if FLAGS.compile_for:
        raise ValueError("--suggest ranks many meshes, and --compile_for "
                         "compiles for one: leave one of them out.")
      plans = planning.suggest(configured.mesh_shape.size)
    else:
      plans = [_plan(configured)]
  if FLAGS.json:
    shown = [plan.as_json() for plan in plans]
    print(json.dumps(shown if FLAGS.suggest else shown[0], indent=2))
  else:
    print(_ranking(plans) if FLAGS.suggest else plans[0].text())


def _plan(configured):
  if not FLAGS.compile_for:
    return planning.make(configured, strict=bool(FLAGS.layout_rules))
  compiling = _compiling()
  topology = compiling.topology_for(configured, FLAGS.compile_for)
  plan = planning.make(configured, strict=bool(FLAGS.layout_rules))
  print(f"compiling for {topology.name}, {len(topology.devices)} cores; this "
        "takes minutes", file=sys.stderr, flush=True)
  return plan.with_compiled(compiling.compile_for(configured, topology))


def _compiling():
  """The module that compiles: a plan needs what it needs only then."""
  missing = [name for name in ("jax", "libtpu")
             if importlib.util.find_spec(name) is None]
  if missing:
    raise ImportError(
        f"--compile_for needs {' and '.join(missing)}, not installed here: pip "
        'install "mtf_moe[tpu]", with Python 3.12 or a later one.')
  # Whatever this machine has is left alone.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from mtf_moe.plan import compiling
  return compiling


def _ranking(plans):
  rows = [
      [number, plan.mesh_shape, f"{plan.costs.sent_bytes / 2 ** 20:,.1f}",
       f"{plan.costs.memory_bytes / 2 ** 20:,.1f}",
       f"{plan.costs.flops_per_core / 1e12:,.3f}", len(plan.findings)]
      for number, plan in enumerate(plans, 1)]
  return "\n".join([
      tabulate.tabulate(rows, headers=[
          "", "run.mesh_shape", "MiB a core sends", "MiB it holds (estimate)",
          "TFLOP it computes", "warnings"], disable_numparse=True),
      "", "in a training step, with tpu_estimator_model_fn.outer_batch_size as "
      "large as the mesh dimension `outer` and",
      f'run.layout_rules = "{planning.CANONICAL_LAYOUT}"'])


if __name__ == "__main__":
  mistakes.run(_PROGRAM, main)
