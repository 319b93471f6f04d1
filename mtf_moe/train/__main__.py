"""The command line: trains, evaluates, decodes or exports, as gin says.

    python -m mtf_moe.train --gin_file=runs/tiny.gin --model_dir=/my/model

The flags are those of mesh_tensorflow.transformer.main. Gin files are looked
for in the current directory, then among the configurations that come with the
package (models/, meshes/, data/, runs/), then under --gin_location_prefix. What
is done is set by gin: run.mode is "train" unless another is given, such as
--gin_param='run.mode = "perplexity_eval"'.
"""

import contextlib
import functools
import sys

from absl import flags
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe import recomputation
from mtf_moe.decoding import scoring
from mtf_moe.run import config_files
from mtf_moe.run import console
from mtf_moe.run import layer_facts
from mtf_moe.run import machines
from mtf_moe.run import mistakes
from mtf_moe.run import patches
from mtf_moe.run import paths
from mtf_moe.run.layer_facts import LayerFacts
from mtf_moe.text import vocabulary
from mtf_moe.train import checkpoints
from mtf_moe.train import evaluation
from mtf_moe.train import export
from mtf_moe.train import health
from mtf_moe.train import made_with
from mtf_moe.train import model_directory
from mtf_moe.train import preflight
from mtf_moe.train import processes
from mtf_moe.train import results
from mtf_moe.train import run_mode
from mtf_moe.train import runtimes
from mtf_moe.train import training

FLAGS = flags.FLAGS

_PROGRAM = "mtf_moe.train"
_BINDINGS = ["import mtf_moe.train.training",
             "run.train_model_fn = @mtf_moe.train_model"]

flags.DEFINE_string(
    "model_dir", None,
    "Directory of checkpoints, configuration and summaries. A run whose "
    "directory has a checkpoint goes on from it.", required=True)
flags.DEFINE_string(
    "tpu", None, "Name or grpc:// address of a Cloud TPU. Without one, the "
    "mesh is laid out on this machine.")
flags.DEFINE_string("tpu_zone", None, "GCE zone of the TPU.")
flags.DEFINE_string("gcp_project", None, "Cloud project of the TPU.")
flags.DEFINE_string("tpu_job_name", None, "Name of the TPU worker binary.")
flags.DEFINE_enum(
    "runtime", None, runtimes.RUNTIMES, "What trains: TensorFlow, or the "
    "devices that JAX sees, on a TPU or with GPUs. In place of "
    "train_model.runtime; without either, TensorFlow.")
flags.DEFINE_string(
    "coordinator", None, "Where the first of several processes waits for the "
    "others, host:port; with --runtime=xla. All devices of all processes make "
    "one mesh. Nobody else should reach the port: use a private network. "
    "'auto' on a cluster that JAX knows.")
flags.DEFINE_integer("num_processes", None, "How many processes there are.")
flags.DEFINE_integer("process_id", None, "Which one this is, counted from 0.")
flags.DEFINE_bool(
    "tensorflow_log", False, "Show TensorFlow's own log as well.")


@mistakes.told(_PROGRAM)
def main(argv):
  del argv
  with contextlib.ExitStack() as stack:
    stack.enter_context(console.opened(FLAGS.tensorflow_log))
    tf.disable_v2_behavior()
    # Without these, a backward pass on a CPU may read weights that the
    # optimizer has already changed in the same step: nothing orders the two.
    tf.enable_resource_variables()
    if not FLAGS.tensorflow_log:
      stack.enter_context(patches.silent_print_op())
    stack.enter_context(patches.our_layer_of_one_level())
    FLAGS.model_dir = paths.usable(FLAGS.model_dir, "--model_dir")
    machines.check_only_one()
    machines.check_tpu(FLAGS.tpu, FLAGS.tpu_zone, FLAGS.gcp_project)
    processes.check_flags(
        FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    config_files.read(below=_BINDINGS, above=_of_flags())
    console.say("checking the configuration")
    configured = preflight.check_configuration(FLAGS.model_dir)
    if run_mode.get() == "train":
      runtimes.prepare(
          configured, FLAGS.tpu,
          (FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id))
      processes.check_same(runtimes.settings(configured))
    elif FLAGS.coordinator is not None:
      raise ValueError(
          f"--coordinator={FLAGS.coordinator} is for training, and run.mode = "
          f"{run_mode.get()!r}: leave it out.")
    if run_mode.get() != "train" or runtimes.get() != runtimes.XLA:
      preflight.warn_of_wrong_products(FLAGS.tpu)
    with mistakes.told(_PROGRAM):  # Not in the log of the runs before it.
      _enter_model_directory(stack, FLAGS.model_dir, configured)
    stack.enter_context(patches.graphs_as_built())
    if run_mode.get() != "train":
      stack.enter_context(recomputation.unused())
    if run_mode.get() in (*scoring.MODES, scoring.EVALUATION):
      stack.enter_context(scoring.giving_ids())
      stack.enter_context(scoring.alone())
    if run_mode.get() in export.MODES:
      stack.enter_context(vocabulary.as_operations())
    _run(stack)


def _of_flags():
  """Lines of gin."""
  if FLAGS.runtime is None:
    return []
  return [f"mtf_moe.train_model.runtime = {FLAGS.runtime!r}"]


def _enter_model_directory(stack, model_dir, configured):
  """Checks the model directory, and makes it this run's if that writes to it.

  Args:
    stack: a contextlib.ExitStack, for what ends with the run.
    model_dir: a string.
    configured: a ConfiguredModel or None.
  """
  if not processes.is_first():
    return
  if run_mode.get() != "train":
    model_directory.check_names(model_dir)
    # While it is trained, the newest may be replaced at any moment.
    damaged = [] if model_directory.is_held(model_dir) else (
        checkpoints.set_aside_damaged(model_dir, move=False))
    stack.enter_context(patches.usable_checkpoints(
        model_dir, functools.partial(
            checkpoints.usable, model_dir, besides=damaged)))
    preflight.check_checkpoint(model_dir, configured)
    return
  # Before the directory is made, so that a mistake leaves nothing.
  taken = preflight.find_beginning(model_dir, configured)
  stack.enter_context(model_directory.held(model_dir))
  stack.enter_context(console.kept_in(model_dir))
  checkpoints.set_aside_damaged(model_dir)
  preflight.check_checkpoint(model_dir, configured)
  preflight.check_space(model_dir, configured)
  record = preflight.begin(model_dir, configured, taken)
  # Where the run goes on, it does not need what it began from.
  stack.enter_context(patches.beginning_from(
      taken.beginning.init_checkpoint if taken else None))
  made_with.keep(model_dir, record)
  layer_facts.keep(model_dir, map(LayerFacts.of, configured.layers))
  console.note(f"command: {model_directory.save_command(model_dir)}")
  model_directory.keep_config(model_dir)


def _run(stack):
  """Runs what gin has configured, and ends the program where that fails.

  Args:
    stack: a contextlib.ExitStack, for what ends with the run.
  """
  run = functools.partial(
      utils.run, tpu_job_name=FLAGS.tpu_job_name, tpu=FLAGS.tpu,
      gcp_project=FLAGS.gcp_project, tpu_zone=FLAGS.tpu_zone,
      model_dir=FLAGS.model_dir)
  keep = functools.partial(results.append, FLAGS.model_dir)
  try:
    if run_mode.get() == "perplexity_eval":
      evaluation.evaluate(run, keep)
    else:
      run()
    processes.left(0)
    if (run_mode.get() == "train" and evaluation.at_end()
        and processes.is_first()):
      _prepare_evaluation(stack)
      evaluation.evaluate_at_end(run, keep)
  except training.Stopped as stopped:
    status = 128 + stopped.signal  # As a shell has it.
    processes.left(status)
    console.say("the same command goes on from here")
    sys.exit(status)
  except health.LossNotFinite as error:  # In all processes.
    processes.left(1)
    console.fail(error.message)
    sys.exit(1)
  except (OSError, tf.errors.OpError) as error:
    if not model_directory.is_write_failure(error):
      raise
    console.fail(
        f"--model_dir={FLAGS.model_dir} could not be written: "
        f"{model_directory.reason(error)}. The last good checkpoint is "
        f"{checkpoints.newest_good(FLAGS.model_dir) or 'none'}. Make room; the "
        "same command goes on from there.")
    checkpoints.remove_remains(FLAGS.model_dir)
    sys.exit(1)


def _prepare_evaluation(stack):
  """What is otherwise in a process that evaluates, after training.

  Args:
    stack: as of `_run`.
  """
  if runtimes.get() == runtimes.XLA:
    preflight.warn_of_wrong_products(FLAGS.tpu)
  stack.enter_context(patches.usable_checkpoints(
      FLAGS.model_dir, functools.partial(
          checkpoints.usable, FLAGS.model_dir)))
  stack.enter_context(patches.beginning_from(None))
  stack.enter_context(recomputation.unused())


if __name__ == "__main__":
  mistakes.run(_PROGRAM, main)
