"""Compiles the program of one core with XLA, the compiler of TPUs."""

from collections.abc import Mapping
import time

import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.simd import expansion
from mtf_moe.simd.program import Program

_CORE = expansion.core_name(0, "")


def compile_and_run(
    program: Program, feeds: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, np.ndarray], float]:
  """Compiles a step of one core, update included, and runs it once.

  Collectives become local operations of the same shapes, so the results mean
  nothing; that there are any means that XLA takes every operation of the
  program, forward, backward and in the optimizer.

  Args:
    program: a Program.
    feeds: whole arrays, by the inputs' names, of which core 0 gets its slices;
      zeros by default.

  Returns:
    core 0's slices of the outputs, by name, and the seconds it took, of which
    compiling has the most

  Raises:
    tf.errors.OpError: if XLA refuses the program.
  """
  surrounding, core_code = _parted(expansion.one_core(program.graph_def))
  with tf.Graph().as_default():
    tf.import_graph_def(surrounding, name="")
    step = _compiled(core_code, program)
    with tf.Session() as session:
      session.run(program.initializer)
      session.run(program.copy_masters_to_slices)
      start = time.perf_counter()
      outputs = session.run(step, _fed(program, feeds))
      return outputs, time.perf_counter() - start


def _compiled(core_code, program):
  """Calls the core's program in the current graph, as one compiled function.

  Args:
    core_code: a tf.GraphDef.
    program: the Program it comes from.

  Returns:
    a tf.Tensor for each name of an output
  """
  names = sorted({
      name for node in core_code.node for name in node.input
      if not name.removeprefix("^").startswith(_CORE)})
  graph = tf.get_default_graph()
  tensors = [
      graph.get_tensor_by_name(name if ":" in name else name + ":0")
      for name in names]

  def step():
    *outputs, update = tf.import_graph_def(
        core_code, name="", input_map=dict(zip(names, tensors)),
        return_elements=[
            *(_CORE + output.tensor for output in program.outputs.values()),
            _CORE + program.update])
    return [*outputs, update]

  # A tf.function would be the newer way, but loses the loops of TF1.
  return dict(zip(program.outputs, tf.xla.experimental.compile(step)))


def _parted(graph_def):
  """What surrounds the core's program, and the program, as two tf.GraphDefs."""
  surrounding, core_code = tf.GraphDef(), tf.GraphDef()
  for part in (surrounding, core_code):
    part.versions.CopyFrom(graph_def.versions)
    part.library.CopyFrom(graph_def.library)
  after = set()  # What uses the program's results.
  for node in graph_def.node:
    if node.name.startswith(_CORE):
      copy = core_code.node.add()
      copy.CopyFrom(node)
      copy.input[:] = [
          name for name in node.input
          if name.removeprefix("^").startswith(_CORE)
          or not name.startswith("^")]
    elif any(name.removeprefix("^").startswith(_CORE) or
             name.removeprefix("^").partition(":")[0] in after
             for name in node.input):
      after.add(node.name)
    else:
      surrounding.node.add().CopyFrom(node)
  return surrounding, core_code


def _fed(program, feeds):
  fed = {}
  for name, source in program.inputs.items():
    if feeds is None:
      slice_ = np.zeros(program.slicing.slice_shape(source.shape))
    else:
      slice_ = program.slicing.cut(feeds[name], source.shape)[0]
    fed[source.placeholders[0]] = slice_
  return fed
