"""The command line: what a configuration costs, without running it.

    python -m mtf_moe.plan --gin_file=models/lm_small.gin \\
        --gin_file=meshes/tpu_4x4.gin --gin_file=data/bytes.gin

Gin files and parameters are those of mtf_moe.train; the text itself is not
needed, only the vocabulary. Counts parameters, products, memory and what cores
exchange on the lowered training step, and says what looks wrong in it.
"""

import json

from absl import flags
import tabulate

from mtf_moe.plan import planning
from mtf_moe.run import configured_step
from mtf_moe.run import console
from mtf_moe.run import mistakes

FLAGS = flags.FLAGS

flags.DEFINE_bool("json", False, "Print JSON, with sizes in bytes.")
flags.DEFINE_bool(
    "suggest", False, "Rank the meshes of so many cores as run.mesh_shape has, "
    "with the canonical layout, by what cores exchange and by memory.")

_PROGRAM = "mtf_moe.plan"


@mistakes.told(_PROGRAM)
def main(argv):
  del argv
  with console.opened():
    configured = configured_step.read()
    plans = (planning.suggest(configured.mesh_shape.size) if FLAGS.suggest
             else [planning.make(configured, strict=bool(FLAGS.layout_rules))])
  if FLAGS.json:
    shown = [plan.as_json() for plan in plans]
    print(json.dumps(shown if FLAGS.suggest else shown[0], indent=2))
  else:
    print(_ranking(plans) if FLAGS.suggest else plans[0].text())


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
