"""Small models and checkpoints of them, for tests of surgery."""

import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.surgery import operation
from mtf_moe.surgery.moves import Options
from mtf_moe.train import masters
from tests import gin_config

LM = "models/lm_tiny.gin"
SIZES = ["batch_size = 4", "sequence_length = 16", "d_model = 16",
         "num_layers = 1", "run.mode = 'train'", "run.train_steps = 10",
         "run.perplexity_eval_steps = None",
         "run.learning_rate_schedule = 0.01"]
LAYERS = ("transformer.make_layer_stack.layers = [@mesh_tensorflow.transformer."
          "transformer_layers.SelfAttention, @{}]")
MOE = [LAYERS.format("mtf_moe.MoE"), "MoE.hidden_size = 16",
       "MoE.second_policy_eval = 'all'", "MoE.dropless_eval = True",
       "MoE.loss_coef = 0.0"]
DENSE = [LAYERS.format("mesh_tensorflow.transformer.transformer_layers."
                       "DenseReluDense"), "DenseReluDense.hidden_size = 16"]
PLACE = "transformer/block_000/layer_001"


def configured(*bindings, files=(LM,)):
  gin_config.parse([*files, "meshes/cpu_1.gin", "data/bytes.gin"],
                   [*SIZES, *bindings])
  return ConfiguredModel.from_gin()


def experts(*levels, hidden=16):
  return configured(*MOE, f"MoE.levels = {list(levels)}",
                    f"MoE.hidden_size = {hidden}")


def save(model, directory, dtype=None, step=7):
  """A checkpoint of random values, as of a training; returns them."""
  rng = np.random.default_rng(0)
  values = {
      name: rng.normal(size=variable.shape).astype(
          dtype or variable.dtype.as_numpy_dtype)
      for name, variable in operation.saved_variables.of_graph(
          model.training_graph).items()}
  values["global_step"] = np.int64(step)
  directory.mkdir()
  with masters.Masters(values, str(directory), None) as writer:
    writer.save(step, values)
    writer.wait()
  return values


def operate(source, model, directory, **options):
  """Makes a checkpoint; returns its values."""
  found = operation.prepare(str(source), model, Options(**options))
  found.write(str(directory))
  return read(directory)


def read(directory):
  reader = tf.train.load_checkpoint(str(directory))
  return {name: reader.get_tensor(name)
          for name in reader.get_variable_to_shape_map()}
