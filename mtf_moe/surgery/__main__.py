"""The command line: makes a checkpoint of one model from that of another.

    python -m mtf_moe.surgery --from=dense_model --model_dir=new_model \\
        --gin_file=models/lm_small.gin --gin_file=meshes/cpu_2x2.gin \\
        --gin_file=data/bytes.gin --dry_run

Gin files and parameters are those with which the new model is to be trained:
its feed-forward layers may be dense or have experts in any number of levels,
and so may those of the other; all else has to be as it was. Experts are copied
from a dense layer (sparse upcycling: Komatsuzaki et al. 2022,
arXiv:2212.05055), or cut from it where they have fewer hidden units; copied to
more, merged to fewer (or some of them kept: --fewer_experts), ordered in other
levels. Routers follow where they can, and are drawn anew where there was none.
--dry_run prints what becomes of what, and writes nothing.
python -m mtf_moe.train --model_dir=new_model then goes on from there.
"""

from absl import flags

from mtf_moe.run import configured_step
from mtf_moe.run import console
from mtf_moe.run import mistakes
from mtf_moe.run import paths
from mtf_moe.surgery import experts
from mtf_moe.surgery import operation
from mtf_moe.surgery.moves import Options

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "from", None, "A model directory, whose newest checkpoint is taken, or a "
    "checkpoint. It is only read.")
flags.DEFINE_string("model_dir", None, "Where to write, a new directory.")
flags.DEFINE_bool("dry_run", False, "Print what would be done.")
flags.DEFINE_integer(
    "step", None, "Of the new checkpoint; that of the old one if not given.",
    lower_bound=0)
flags.DEFINE_float(
    "noise", 0.0, "Added to the weights of copied experts, in standard "
    "deviations of them.", lower_bound=0.0)
flags.DEFINE_enum(
    "fewer_experts", experts.MEAN,
    [experts.MEAN, experts.WEIGHTED, experts.BUSIEST, experts.FIRST],
    "How experts become fewer: neighbours become one, their mean, or that "
    "weighted by their loads; or the busiest stay, or the first. Loads are "
    "those that training has recorded in the event files beside --from.")
flags.DEFINE_bool(
    "slots", True, "Whether what the optimizer keeps of variables comes along.")
flags.DEFINE_integer("seed", 0, "Of noise, and of all that is drawn anew.")

_PROGRAM = "mtf_moe.surgery"


@mistakes.told(_PROGRAM)
def main(argv):
  del argv
  given = FLAGS["from"].value
  if not given:
    raise ValueError("--from is not set: name a model directory.")
  if not FLAGS.model_dir and not FLAGS.dry_run:
    raise ValueError("--model_dir is not set: name a directory to write to.")
  if FLAGS.model_dir:
    FLAGS.model_dir = paths.usable(FLAGS.model_dir, "--model_dir")
    operation.check_empty(FLAGS.model_dir)
  with console.opened():
    found = operation.prepare(
        given, configured_step.read(),
        Options(FLAGS.noise, FLAGS.slots, FLAGS.seed, FLAGS.fewer_experts),
        FLAGS.step)
    print(found.table(), flush=True)
    if not FLAGS.dry_run:
      found.write(FLAGS.model_dir)
      console.say(f"wrote {FLAGS.model_dir}")


if __name__ == "__main__":
  mistakes.run(_PROGRAM, main)
