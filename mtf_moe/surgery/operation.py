"""Makes a checkpoint from another: reads, changes, writes."""

from collections.abc import Sequence
import dataclasses
import os
import zlib

import numpy as np
import tabulate
import tensorflow.compat.v1 as tf

from mtf_moe.run import sessions
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.simd import graphs
from mtf_moe.surgery import experts
from mtf_moe.surgery import loads as loads_lib
from mtf_moe.surgery import moves as moves_lib
from mtf_moe.surgery.moves import Move
from mtf_moe.surgery.moves import Options
from mtf_moe.surgery.origin import Origin
from mtf_moe.train import init_checkpoint
from mtf_moe.train import masters
from mtf_moe.train import saved_variables

TABLE = "surgery.txt"


@dataclasses.dataclass(frozen=True)
class Operation:
  """What is to be done.

  Attributes:
    origin: the checkpoint that it is made from, which is only read.
    moves: a `Move` for each variable.
    unused: names of variables of that checkpoint that go nowhere.
    step: that of the new checkpoint.
    variables: what the new checkpoint has, by name: shapes and types.
    graph: a tf.Graph with their first values.
    options: `Options`.
  """

  origin: Origin
  moves: Sequence[Move]
  unused: Sequence[str]
  step: int
  variables: dict[str, saved_variables.Variable]
  graph: tf.Graph
  options: Options

  def table(self) -> str:
    """Where everything comes from, what is new and what is dropped, as text.
    """
    there = saved_variables.of_checkpoint(self.origin.path)
    rows = []
    for move in self.moves:
      dtypes = {there[name].dtype.name for name in move.sources}
      dtypes.discard(self.variables[move.target].dtype.name)
      rows.append([
          move.target, " x ".join(map(str, self.variables[move.target].shape)),
          move.how + "".join(f", from {dtype}" for dtype in sorted(dtypes)),
          ", ".join(name for name in move.sources if name != move.target)])
    rows += [[name, " x ".join(map(str, there[name].shape)), "dropped", ""]
             for name in self.unused]
    drawn = sum(not move.sources for move in self.moves)
    return tabulate.tabulate(
        rows, ["variable", "shape", "is made", "from (if not of its name)"],
        disable_numparse=True) + (
            f"\n\n{len(self.moves) - drawn} of {len(self.moves)} variables "
            f"come from {self.origin.path}, {drawn} are drawn anew, "
            f"{len(self.unused)} are dropped; the new checkpoint is at step "
            f"{self.step:,}")

  def values(self) -> dict[str, np.ndarray]:
    """The arrays of the new checkpoint, by name.

    Raises:
      ValueError: if one of the old checkpoint cannot be read.
    """
    reader = tf.train.load_checkpoint(self.origin.path)
    values = _first_values(
        self.graph, [move.target for move in self.moves if not move.sources],
        self.options.seed)
    for move in self.moves:
      if move.sources:
        values[move.target] = move.make(*[
            _in_float32(self._read(reader, name)) for name in move.sources])
    values[saved_variables.STEP] = np.array(self.step, np.int64)
    for name, variable in self.variables.items():
      assert list(values[name].shape) == variable.shape, name
      values[name] = np.asarray(values[name], variable.dtype.as_numpy_dtype)
    return values

  def _read(self, reader, name):
    try:
      return reader.get_tensor(name)
    except (ValueError, tf.errors.OpError) as error:
      raise ValueError(
          f"{self.origin.path} is damaged: {name} cannot be read "
          f"({str(error).splitlines()[0]}). Give another checkpoint."
      ) from error

  def write(self, model_dir: str):
    """Writes the checkpoint, the table, and what it came from, beside it.

    Args:
      model_dir: a directory that is new, or empty.

    Raises:
      ValueError: if it is not.
    """
    check_empty(model_dir)
    values = self.values()
    tf.io.gfile.makedirs(model_dir)
    with masters.Masters(values, model_dir, None) as writer:
      writer.save(self.step, values)
      writer.wait()
    self.origin.keep(model_dir, self.step, self.options)
    with tf.io.gfile.GFile(os.path.join(model_dir, TABLE), "w") as file:
      file.write(self.table() + "\n")


def check_empty(model_dir: str):
  """Raises ValueError if something is in a directory."""
  if tf.io.gfile.exists(model_dir) and (
      not tf.io.gfile.isdir(model_dir) or tf.io.gfile.listdir(model_dir)):
    raise ValueError(
        f"--model_dir={model_dir} is not empty: choose a new directory, for "
        "nothing is written over.")


def prepare(given: str, configured: ConfiguredModel, options: Options,
            step: int | None = None) -> Operation:
  """Looks at a checkpoint and a configuration, and finds what to do.

  Args:
    given: the path of a checkpoint, or of a directory, whose newest is meant.
    configured: the `ConfiguredModel`, with an optimizer and a learning rate.
    options: `Options`.
    step: of the new checkpoint; None for that of the old one.

  Returns:
    an `Operation`; what the model is made with otherwise has been told

  Raises:
    ValueError: if there is no checkpoint, or no way from one to the other.
  """
  path = _path(given)
  there = saved_variables.of_checkpoint(path)
  variables = saved_variables.of_graph(configured.training_graph)
  source = {name: variable.shape for name, variable in there.items()}
  target = {name: variable.shape for name, variable in variables.items()}
  old_step = _step(path, there)
  loads = None
  if experts.Fewer(options.fewer).by_load:
    loads = loads_lib.read(os.path.dirname(path), old_step)
  moves = moves_lib.plan(source, target, options, loads)
  if not any(move.sources for move in moves):
    raise ValueError(
        f"--from={given} has no variable of this model: it has "
        f"{saved_variables.names_of(there)}, and this model "
        f"{saved_variables.names_of(configured.variables)}. Give a checkpoint "
        "of a transformer of mesh_tensorflow with the same layers.")
  origin = Origin.compared(path, old_step, configured)
  if step is None:
    step = old_step or 0
  return Operation(origin, moves, moves_lib.unused(source, moves), step,
                   variables, configured.training_graph, options)


def _step(path, there):
  """The step of a checkpoint; None where it has none."""
  if saved_variables.STEP not in there:
    return None
  return int(tf.train.load_variable(path, saved_variables.STEP))


def _path(given):
  """The checkpoint that --from names."""
  path = init_checkpoint.path_or_none(given)
  if path is None:
    raise ValueError(
        f"--from={given} is no checkpoint: give a model directory, whose "
        "newest is taken, or the path of one without the end that its files "
        "have, such as model/model.ckpt-1000.")
  return path


def _in_float32(array):
  """The same; numbers of less than float32 in that."""
  is_whole = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
  return array if is_whole else np.asarray(array, np.float32)


def _first_values(graph, names, seed):
  """What a configuration draws for variables, by name, from a seed."""
  if not names:
    return {}
  with graph.as_default():
    tensors = {v.op.name: v.initial_value.name for v in tf.global_variables()}
  wanted = {name: tensors[name] for name in names}
  graph_def = tf.graph_util.extract_sub_graph(
      graph.as_graph_def(), sorted(map(graphs.node_name, wanted.values())))
  for node in graph_def.node:
    if "seed2" in node.attr:
      node.attr["seed"].i = seed
      node.attr["seed2"].i = zlib.crc32(node.name.encode())
  with tf.Graph().as_default(), sessions.on_cpu() as session:
    tf.import_graph_def(graph_def, name="")
    return session.run(wanted)
