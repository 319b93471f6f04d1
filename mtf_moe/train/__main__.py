"""The command line: trains, evaluates, decodes or exports, as gin says.

    python -m mtf_moe.train --gin_file=runs/tiny.gin --model_dir=/my/model

The flags are those of mesh_tensorflow.transformer.main. Gin files are looked
for in the current directory, then among the configurations that come with the
package (models/, meshes/, data/, runs/), then under --gin_location_prefix. What
is done is set by gin: run.mode is "train" unless another is given, such as
--gin_param='run.mode = "perplexity_eval"'.
"""

import functools
import logging
import os
import shlex
import sys

from absl import app
from absl import flags
from absl import logging as absl_logging
import gin
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe import compat
from mtf_moe import config_files
from mtf_moe.train import evaluation
from mtf_moe.train import preflight
from mtf_moe.train import run_mode

FLAGS = flags.FLAGS

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
flags.DEFINE_bool(
    "tensorflow_log", False, "Show TensorFlow's own log as well.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
  if not FLAGS.tensorflow_log:
    _quieten()
  tf.disable_v2_behavior()
  # Without these, a backward pass on a CPU may read weights that the optimizer
  # has already changed in the same step: nothing orders the two.
  tf.enable_resource_variables()
  try:
    config_files.import_modules()
    with config_files.readable_syntax_errors():
      _parse_gin()
    print("checking the configuration", flush=True)
    preflight.check_run(FLAGS.model_dir)
  except (ImportError, OSError, ValueError) as error:
    sys.exit(f"mtf_moe.train: {error}")
  _save_command(FLAGS.model_dir)
  compat.skip_graph_optimizer()
  run = functools.partial(
      utils.run, tpu_job_name=FLAGS.tpu_job_name, tpu=FLAGS.tpu,
      gcp_project=FLAGS.gcp_project, tpu_zone=FLAGS.tpu_zone,
      model_dir=FLAGS.model_dir)
  if run_mode.get() == "perplexity_eval":
    evaluation.evaluate(run)
  else:
    run()


def _parse_gin():
  """Reads the configuration: ours below mesh_tensorflow's below the user's."""
  gin.add_config_file_search_path(config_files.directory())
  gin.parse_config(
      "import mtf_moe.train.progress\n"
      "run.train_model_fn = @mtf_moe.train_model")
  utils.parse_gin_defaults_and_flags()


def _save_command(model_dir):
  """Writes the command line to a new file `command`, `command.1`, ..."""
  tf.io.gfile.makedirs(model_dir)
  path = os.path.join(model_dir, "command")
  suffix = 0
  while tf.io.gfile.exists(path):
    suffix += 1
    path = os.path.join(model_dir, f"command.{suffix}")
  with tf.io.gfile.GFile(path, "w") as f:
    f.write(shlex.join(sys.argv) + "\n")


def _quieten():
  """Hides the logs of TensorFlow and mesh_tensorflow, but for errors."""
  # Gin logs an error for each place in which it does not find a file, before
  # it looks in the next.
  absl_logging.set_verbosity(absl_logging.FATAL)
  tf_log = tf.get_logger()
  tf_log.setLevel(logging.ERROR)
  tf_log.propagate = False
  compat.silence_print_op()


if __name__ == "__main__":
  app.run(main)
