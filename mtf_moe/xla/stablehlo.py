"""The function of a core as StableHLO, with collectives in it.

TensorFlow lowers what it can. It has no way to lower its own collectives but
for a TPU that is there; they pass through as calls, and are written into the
text of the module here.
"""

import dataclasses
import itertools
import json
import re

import jax
from jax import export as jax_export
from jax.experimental import jax2tf
from jax.extend import mlir
from jaxlib.mlir.dialects import stablehlo as dialect
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.simd import graphs
from mtf_moe.simd.slicing import Slicing
from mtf_moe.xla import core_function
from mtf_moe.xla import evaluation
from mtf_moe.xla.core_function import CoreFunction

# What JAX has no numbers of, if it is not told to; they are converted inside.
_NARROW = {tf.int64: tf.int32, tf.uint64: tf.uint32, tf.float64: tf.float32}


def lowered(function: CoreFunction, slicing: Slicing) -> jax_export.Exported:
  """Lowers the function of a core.

  Args:
    function: a `CoreFunction`.
    slicing: that of its program.

  Returns:
    a jax.export.Exported of a function from the parts of all arguments that a
    core has, inputs first, then variables, to those of its outputs and updates;
    to be called under jax.shard_map, on a mesh of as many devices

  Raises:
    ValueError: if TensorFlow cannot lower it.
  """
  arguments = [*function.inputs.values(), *function.variables.values()]
  results = [*function.outputs.values(), *function.updates.values()]

  def of_core(*values):
    fed = {}
    for argument, value in zip(arguments, values):
      for tensor in argument.tensors:
        fed[tensor] = tf.cast(value, argument.dtype)
    found = evaluation.evaluate(
        function.graph_def, fed, [result.tensors[0] for result in results])
    return [
        # Of what a loop returns, TensorFlow does not know the shape.
        tf.ensure_shape(tf.cast(value, narrow(value.dtype)),
                        part_shape(result, slicing))
        for value, result in zip(found, results)]

  shapes = [jax.ShapeDtypeStruct(
      part_shape(argument, slicing), narrow(argument.dtype).as_numpy_dtype)
            for argument in arguments]
  call = jax2tf.call_tf(of_core, has_side_effects=False)
  try:
    exported = jax_export.export(
        jax.jit(call), platforms=["cpu"], disabled_checks=[
            jax_export.DisabledSafetyCheck.custom_call(
                core_function.COLLECTIVE)])(*shapes)
  except (tf.errors.OpError, ValueError, NotImplementedError) as error:
    raise ValueError(
        f"TensorFlow {tf.__version__} cannot lower the program of a core: "
        f"{error}") from error
  text = with_collectives(str(exported.mlir_module()))
  if core_function.COLLECTIVE in text:
    raise ValueError(
        f"TensorFlow {tf.__version__} and JAX {jax.__version__} write calls in "
        "a form that is not known here: use the releases of the constraints.")
  return dataclasses.replace(
      exported, mlir_module_serialized=mlir.serialize_portable_artifact(
          text, dialect.get_current_version()))


def narrow(dtype: tf.DType) -> tf.DType:
  """The type in which a number of this type is given to JAX."""
  return _NARROW.get(dtype, dtype)


def part_shape(argument: core_function.Argument, slicing: Slicing
               ) -> tuple[int, ...]:
  """The shape of a core's part of an argument."""
  if argument.shape is None:
    return ()
  return tuple(slicing.slice_shape(argument.shape))


_CALL = re.compile(
    r"(?P<result>%\S+) = stablehlo\.custom_call @" + core_function.COLLECTIVE
    + r"\((?P<operand>%\S+)\) \{.*?backend_config = \"(?P<config>[0-9a-f]+)\""
    r".*?\} : \((?P<source>.*?)\) -> (?P<target>\S+)(?P<rest>.*)")


def with_collectives(text: str) -> str:
  """Writes collectives in place of the calls that stand for them.

  Args:
    text: a module of StableHLO.

  Returns:
    the module
  """
  channels = itertools.count(1)

  def collective(match):
    config = json.loads(bytes.fromhex(match["config"]))
    operation = _OPERATIONS[config["operation"]](match, config)
    return operation.replace("CHANNEL", (
        "channel_handle = #stablehlo.channel_handle<handle = "
        f"{next(channels)}, type = 1>"))

  return _CALL.sub(collective, text)


def _all_to_all(match, config):
  numbers = ", ".join(
      f"{name} = {config[name]} : i64" for name in (
          "split_dimension", "concat_dimension", "split_count"))
  return (f'{match["result"]} = "stablehlo.all_to_all"({match["operand"]}) <{{'
          f'{numbers}, replica_groups = {_table(config)}, CHANNEL}}> '
          f': ({match["source"]}) -> {match["target"]}{match["rest"]}')


def _permutation(match, config):
  return (
      f'{match["result"]} = "stablehlo.collective_permute"({match["operand"]}) '
      f'<{{source_target_pairs = {_table(config)}, CHANNEL}}> '
      f': ({match["source"]}) -> {match["target"]}{match["rest"]}')


def _sum(match, config):
  *_, element = match["source"].removeprefix("tensor<").rstrip(">").split("x")
  one = f"tensor<{element}>"
  return (
      f'{match["result"]} = "stablehlo.all_reduce"({match["operand"]}) '
      f"<{{replica_groups = {_table(config)}, CHANNEL, "
      f"use_global_device_ids}}> ({{\n^bb0(%mtf_a: {one}, %mtf_b: {one}):\n"
      f"  %mtf_sum = stablehlo.add %mtf_a, %mtf_b : {one}\n"
      f"  stablehlo.return %mtf_sum : {one}\n}}) "
      f': ({match["source"]}) -> {match["target"]}{match["rest"]}')


def _table(config):
  table = np.asarray(config["groups"])
  rows, columns = table.shape
  return f"dense<{table.tolist()}> : tensor<{rows}x{columns}xi64>"


_OPERATIONS = {graphs.ALL_TO_ALL: _all_to_all, graphs.SUM: _sum,
               graphs.PERMUTATION: _permutation}
