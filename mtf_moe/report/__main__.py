"""The command line: pictures of training runs, as one HTML page.

    python -m mtf_moe.report --model_dir=/my/model

The page shows whether experts are used, tokens are lost and the run is healthy.
It works without a network. Several --model_dir are compared.
"""

from absl import flags
from absl import logging
import tensorflow.compat.v1 as tf

from mtf_moe.run import mistakes

FLAGS = flags.FLAGS
_PROGRAM = "mtf_moe.report"

flags.DEFINE_multi_string(
    "model_dir", None,
    "Directory of a run of mtf_moe.train. Give the flag several times to "
    "compare runs.", required=True)
flags.DEFINE_string(
    "output", None,
    "The HTML file to write. By default, report.html in the first --model_dir.")

# What is imported from the extra `report`.
_EXTRA = ("narwhals", "plotly", "tensorboard")


@mistakes.told(_PROGRAM)
def main(argv):
  del argv
  logging.set_verbosity(logging.FATAL)
  tf.get_logger().setLevel("ERROR")
  try:
    from mtf_moe.report import page  # Here, since --help needs no plotly.
    page.write(FLAGS.model_dir, FLAGS.output)
  except ImportError as error:
    if (error.name or "").partition(".")[0] not in _EXTRA:
      raise
    raise ImportError(
        f"{error.name} is not installed: pip install 'mtf_moe[report]', or, in "
        "a checkout, pip install '.[report]'.") from error


if __name__ == "__main__":
  mistakes.run(_PROGRAM, main)
