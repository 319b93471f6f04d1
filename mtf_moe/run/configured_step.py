"""The training step of the command line, for programs that do not train.

Gin files and parameters are those of mtf_moe.train. The text is not needed, and
summaries are left out, as a TPU does unless it is asked for them.
"""

from absl import flags
import tensorflow.compat.v1 as tf

from mtf_moe.run import config_files
from mtf_moe.run.configured_model import ConfiguredModel

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "mesh_shape", None, "In place of run.mesh_shape, such as outer:4,batch:4.")
flags.DEFINE_string("layout_rules", None, "In place of run.layout_rules.")

# What gin knows in a run.
_IMPORTS = [f"import mtf_moe.{module}" for module in (
    "decoding.sampling", "train.checkpoints", "train.evaluation",
    "train.training")]
_OVERRIDES = ["run.perplexity_eval_steps = None", "run.mode = 'train'",
              *(f"{layer}.summaries = False"
                for layer in ("MoE1D", "MoE2D", "MoE"))]


def read() -> ConfiguredModel:
  """Reads gin files and parameters, and the flags above.

  Returns:
    a ConfiguredModel

  Raises:
    ValueError: if something in them is wrong.
  """
  tf.disable_v2_behavior()
  config_files.read(below=_IMPORTS, above=_OVERRIDES)
  configured = ConfiguredModel.from_gin(FLAGS.mesh_shape, FLAGS.layout_rules)
  if configured is None:
    raise ValueError(
        "run.sequence_length is not set: give the length of sequences, such "
        "as --gin_param='run.sequence_length = 256'.")
  return configured
