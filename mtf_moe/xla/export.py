"""The command line: exports the training step of a configuration.

    python -m mtf_moe.xla.export --folder=my_program \\
        --gin_file=models/lm_small.gin --gin_file=meshes/cpu_2x2.gin \\
        --gin_file=data/bytes.gin

Gin files and parameters are those of mtf_moe.train; the text itself is not
needed, only the vocabulary, but for --batches. What is written, python -m
mtf_moe.xla runs on as many devices as the mesh has cores, and needs no
TensorFlow.
"""

import os
import time

from absl import flags
import numpy as np

from mtf_moe.run import configured_step
from mtf_moe.run import console
from mtf_moe.run import mistakes
from mtf_moe.xla import configured as configured_lib
from mtf_moe.xla import exporting
from mtf_moe.xla import inputs

FLAGS = flags.FLAGS

flags.DEFINE_string("folder", None, "Where to write, a folder that is new.")
flags.DEFINE_string(
    "checkpoint", None, "Values of the variables: a model directory or a "
    "checkpoint in it. Without, they are drawn where the program runs.")
flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "A step of training, or the loss as in "
    "an evaluation.")
flags.DEFINE_integer(
    "batches", 0, "How many batches of the text to write beside the program, "
    "as inputs.npz: of training, or, with --mode=eval, at most of what is held "
    "out.", lower_bound=0)
flags.DEFINE_integer("seed", 0, "Of all that is drawn in a step.")
flags.DEFINE_bool(
    "float32_alltoall", True, "Whether all-to-alls exchange float32 as it is, "
    "or as bfloat16, which is half as much.")

_PROGRAM = "mtf_moe.xla.export"


@mistakes.told(_PROGRAM)
def main(argv):
  del argv
  if not FLAGS.folder:
    raise ValueError("--folder is not set: name a folder to write to.")
  with console.opened():
    configured = configured_step.read()
    began = time.monotonic()
    console.say("building the program of a core")
    built = configured_lib.program(
        configured, FLAGS.seed, mode=FLAGS.mode)
    arrays = (inputs.collect(configured, built, FLAGS.batches, FLAGS.mode)
              if FLAGS.batches else None)
    values = (configured_lib.values_of_checkpoint(built, FLAGS.checkpoint)
              if FLAGS.checkpoint else None)
    console.say("lowering it")
    exporting.save(FLAGS.folder, built, values, FLAGS.float32_alltoall)
    if arrays is not None:
      np.savez_compressed(os.path.join(FLAGS.folder, "inputs.npz"), **arrays)
    console.say(
        f"wrote {FLAGS.folder}, for {built.slicing.num_cores} devices, in "
        f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
  mistakes.run(_PROGRAM, main)
