"""Steps of layers as programs for devices, exported by TensorFlow."""

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from benchmarking import contenders
from benchmarking import settings as settings_lib
from mtf_moe import simd
from mtf_moe.xla import exporting


def save(directory: str, name: str, setting: settings_lib.Setting, mode: str,
         dtype: tf.DType):
  """Writes a folder; see `mtf_moe.xla.folder`.

  Args:
    directory: its path.
    name: a key of `contenders.BUILDERS`.
    setting: a `Setting`.
    mode: one of `contenders.MODES`; training is the gradients by inputs and all
      variables, without an update.
    dtype: of inputs and of the experts' weights.
  """
  depth = setting.model_dim
  shape = mtf.Shape(setting.expert_input_dims if name == "bound"
                    else [*setting.token_dims, depth])

  def model_fn(tensors):
    inputs = tensors["inputs"]
    outputs, loss = contenders.BUILDERS[name](setting, inputs)
    results = {"outputs": outputs} | ({} if loss is None else {"loss": loss})
    if mode == "training":
      variables = list(inputs.graph.trainable_variables)
      directions = [tensors["direction"]]
      if loss is not None:
        directions.append(mtf.ones(loss.mesh, loss.shape, loss.dtype))
      gradients = mtf.gradients(
          list(results.values()),
          [inputs, *(v.outputs[0] for v in variables)], directions)
      results |= {f"gradient of {of}": gradient for of, gradient in zip(
          ["inputs", *(v.name for v in variables)], gradients)}
    return results, []

  exporting.save(directory, simd.build(
      model_fn, setting.mesh_shape, settings_lib.LAYOUT,
      {tensor: (dtype, shape) for tensor in (
          ["inputs", "direction"] if mode == "training" else ["inputs"])},
      seed=0))
