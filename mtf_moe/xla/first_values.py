"""First values of variables as a module, which draws them where they will be.

A large model has gigabytes of them; this says in kilobytes how they are drawn,
from a seed that is given when it runs.
"""

import zlib

import jax
from jax import export as jax_export
from jax.experimental import jax2tf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.simd import graphs
from mtf_moe.simd.program import Program
from mtf_moe.xla import core_function
from mtf_moe.xla import evaluation
from mtf_moe.xla import folder

# Operations with a state, and those that are given a seed in its place.
_STATELESS = {"RandomUniform": "StatelessRandomUniform",
              "RandomStandardNormal": "StatelessRandomNormal",
              "TruncatedNormal": "StatelessTruncatedNormal"}


def exported(program: Program, manifest: folder.Manifest) -> bytes:
  """Exports how the variables of a program get their first values.

  Args:
    program: a simd.Program, without stacked variables.
    manifest: that of its export.

  Returns:
    a serialized jax.export.Exported of a function from a seed, an int32, to
    the whole values of all variables, in the order of the manifest

  Raises:
    ValueError: if a variable is stacked, or its first value cannot be lowered.
  """
  parts = manifest.variables()
  missing = sorted(parts.keys() - program.variables.keys())
  if missing:
    raise ValueError(
        f"{missing} join several variables, whose first values are not known: "
        "build the program without autostack, or save values.")
  wanted = [program.variables[name].initial_value for name in parts]
  graph_def, drawing = _without_state(tf.graph_util.extract_sub_graph(
      program.graph_def, sorted(map(graphs.node_name, wanted))))

  def values(seed):
    seeds = {f"{_seed_of(name)}:0": tf.stack(
        [tf.constant(zlib.crc32(name.encode()) & 0x7fffffff), seed])
             for name in drawing}
    found = evaluation.evaluate(graph_def, seeds, wanted)
    return [
        tf.ensure_shape(tf.cast(value, part.dtype), part.shape)
        for value, part in zip(found, parts.values())]

  call = jax2tf.call_tf(values, has_side_effects=False)
  try:
    result = jax_export.export(jax.jit(call), platforms=["cpu"])(
        jax.ShapeDtypeStruct((), np.int32))
  except (tf.errors.OpError, ValueError, NotImplementedError) as error:
    raise ValueError(
        f"TensorFlow {tf.__version__} cannot lower the first values of "
        f"variables: {error}") from error
  return bytes(result.serialize())


def _seed_of(name):
  """What feeds the seed of an operation."""
  return f"{name}/seed"


def _without_state(graph_def):
  """A copy that is given seeds, and the names of what draws from them."""
  drawing = []
  for node in graph_def.node:
    if node.op in _STATELESS:
      drawing.append(node.name)
      node.op = _STATELESS[node.op]
      node.input.append(_seed_of(node.name))
      del node.attr["seed"], node.attr["seed2"]
      node.attr["Tseed"].type = tf.int32.as_datatype_enum
    for name in core_function.STRIPPED_ATTRIBUTES:
      if name in node.attr:
        del node.attr[name]
  return graph_def, drawing
