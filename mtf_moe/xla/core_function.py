"""The program of a core, as a function without state.

What the core reads of variables becomes arguments, what it writes to them
becomes results, and collectives become calls that a compiler leaves alone, so
that `stablehlo` finds them again.
"""

from collections.abc import Mapping
import dataclasses
import json

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe.simd import graphs
from mtf_moe.simd.program import Program
from mtf_moe.xla import evaluation

# The target of the calls that stand for collectives.
COLLECTIVE = "mtf_collective"
STEP, CORE = "global_step", "core"

_CALL = "XlaCustomCall"
_COLLECTIVES = (graphs.ALL_TO_ALL, graphs.SUM, graphs.PERMUTATION)
_NUMBERS = ("split_dimension", "concat_dimension", "split_count")
# They name devices that are not there, or shapes that are checked elsewhere.
STRIPPED_ATTRIBUTES = (graphs.CORE_CODE, "_class", "_output_shapes")


@dataclasses.dataclass(frozen=True)
class Argument:
  """What the function takes, or gives back.

  Attributes:
    shape: the mtf.Shape of the whole; None for a number that is the same
      everywhere.
    dtype: a tf.DType.
    tensors: the names of the tensors in the graph that have the core's part.
  """

  shape: mtf.Shape | None
  dtype: tf.DType
  tensors: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CoreFunction:
  """What every core computes in a step.

  Attributes:
    graph_def: its tf.GraphDef; the tensors of arguments are not in it.
    inputs: an `Argument` for each input of the program.
    variables: one for each variable that a core has a slice of; the step under
      the name `STEP`, the core's number under `CORE`, where they are used.
    outputs: one for each output.
    updates: one for each variable that a step changes.
  """

  graph_def: tf.GraphDef
  inputs: Mapping[str, Argument]
  variables: Mapping[str, Argument]
  outputs: Mapping[str, Argument]
  updates: Mapping[str, Argument]


def cut_out(program: Program) -> CoreFunction:
  """Cuts the function of a core out of a program.

  Args:
    program: a simd.Program.

  Returns:
    a CoreFunction

  Raises:
    ValueError: if the program does something that has no function: if it reads
      a variable that is none of a model, or draws numbers from generators that
      keep a state.
  """
  cutting = _Cutting(program)
  outputs = {
      name: Argument(output.shape, cutting.dtype(output.tensor),
                     (output.tensor,))
      for name, output in program.outputs.items()}
  updates = cutting.updates()
  wanted = [argument.tensors[0] for argument in (*outputs.values(),
                                                 *updates.values())]
  graph_def, used = cutting.pruned(wanted)
  inputs, variables = cutting.arguments(used)
  return CoreFunction(graph_def, inputs, variables, outputs, updates)


class _Cutting:
  """A program on its way to a function."""

  def __init__(self, program):
    self._program = program
    self._nodes = {node.name: node for node in program.graph_def.node}
    with tf.Graph().as_default() as self._graph:
      tf.import_graph_def(program.graph_def, name="")
    # By the node that has its slice on the first core.
    self._slices, self._inputs = {}, {}
    for name, slices in program.slices.items():
      read = self._nodes[graphs.node_name(slices.values[0])]
      self._slices[graphs.node_name(read.input[0])] = name
    for name, given in program.inputs.items():
      self._inputs[graphs.node_name(given.placeholders[0])] = name

  def dtype(self, tensor):
    """The type of a tensor of a core."""
    return self._graph.get_tensor_by_name(tensor).dtype

  def updates(self):
    """An Argument for each variable that is assigned."""
    updates = {}
    for node in self._core_code():
      if node.op.startswith("Assign"):
        if node.op != "AssignVariableOp":
          raise ValueError(
              f"{node.name!r} is a {node.op}: the variables of a program on "
              "devices are given a whole new value.")
        name = self._variable(node)
        updates[name] = Argument(
            self._program.slices[name].shape,
            tf.as_dtype(node.attr["dtype"].type),
            (evaluation.tensor_name(node.input[1]),))
    return updates

  def pruned(self, tensors):
    """The GraphDef that computes tensors, and the names of what is fed to it.
    """
    graph_def = tf.GraphDef(
        versions=self._program.graph_def.versions,
        library=self._program.graph_def.library)
    fed = set()
    for node in self._program.graph_def.node:
      if node.op in (graphs.INPUT, *_READS):
        fed.add(node.name)
        # So that pruning ends here.
        graph_def.node.add(name=node.name, op="NoOp")
      elif node.op not in graphs.BETWEEN:
        graph_def.node.append(self._function_node(node))
    pruned = tf.graph_util.extract_sub_graph(
        graph_def, sorted({graphs.node_name(tensor) for tensor in tensors}))
    used = {node.name for node in pruned.node} & fed
    for place in reversed(range(len(pruned.node))):
      node = pruned.node[place]
      if node.name in fed:
        del pruned.node[place]
      elif node.op in ("VarHandleOp", *_STATEFUL):
        raise ValueError(_cannot(node))
    return pruned, used

  def arguments(self, used):
    """The inputs and the variables that have to be fed."""
    inputs: dict[str, Argument] = {}
    variables: dict[str, Argument] = {}
    for name in sorted(used):
      node = self._nodes[name]
      kind, label, shape, dtype = self._source(node)
      found = inputs if kind == "input" else variables
      before = found[label].tensors if label in found else ()
      found[label] = Argument(shape, dtype, (*before, f"{name}:0"))
    return inputs, variables

  def _source(self, node):
    """What a node that is fed stands for: (kind, name, shape, dtype)."""
    if node.op in _READS:
      name = self._variable(node)
      dtype = tf.as_dtype(node.attr["dtype"].type)
      if name == STEP:
        return "variable", STEP, None, dtype
      return "variable", name, self._program.slices[name].shape, dtype
    dtype = tf.as_dtype(node.attr["T"].type)
    source = graphs.node_name(node.input[0])
    if source in self._inputs:
      name = self._inputs[source]
      return "input", name, self._program.inputs[name].shape, dtype
    if self._nodes[source].op == "Const":  # Each core has its own.
      return "variable", CORE, None, dtype
    raise ValueError(
        f"{node.name!r} is fed to the cores, and is neither an input nor a "
        "core's number: give it to simd.build as an input.")

  def _variable(self, node):
    """The name of the variable that an operation reads or assigns."""
    handle = node if node.op == "VariableV2" else (
        self._nodes[graphs.node_name(node.input[0])])
    while handle.op in (graphs.INPUT, "Enter"):  # Of the cores, of loops.
      handle = self._nodes[graphs.node_name(handle.input[0])]
    if handle.name == STEP:
      return STEP
    if handle.name not in self._slices:
      raise ValueError(
          f"{node.name!r} uses the variable {handle.name!r}, and a program on "
          "devices has only those of mtf and the global step.")
    return self._slices[handle.name]

  def _core_code(self):
    return filter(graphs.is_core_code, self._program.graph_def.node)

  def _function_node(self, node):
    """A copy of a node, without what has no meaning in a function."""
    copy = tf.NodeDef()
    copy.CopyFrom(node)
    copy.device = ""
    if node.op in _COLLECTIVES:
      self._make_call(copy, node)
    # Nothing has effects any more that others would have to wait for.
    copy.input[:] = [name for name in copy.input if not name.startswith("^")]
    for name in STRIPPED_ATTRIBUTES:
      if name in copy.attr:
        del copy.attr[name]
    return copy

  def _make_call(self, copy, node):
    """Makes a collective a call that says all about it."""
    groups = graphs.group_table(node, self._nodes)
    dtype = node.attr["T"].type
    copy.input[:] = node.input[:1]
    if all(len(group) == 1 for group in groups):  # On an axis of one core.
      copy.op = "Identity"
      copy.ClearField("attr")
      copy.attr["T"].type = dtype
      return
    physical = list(self._program.slicing.logical_to_physical)
    config = {
        "operation": node.op,
        # Devices are in the order of the mesh.
        "groups": [[physical.index(core) for core in group]
                   for group in groups],
        **{name: node.attr[name].i for name in _NUMBERS if name in node.attr}}
    copy.op = _CALL
    copy.ClearField("attr")
    copy.attr["target_name"].s = COLLECTIVE.encode()
    copy.attr["backend_config"].s = json.dumps(config).encode().hex().encode()
    copy.attr["T"].list.type.append(dtype)
    copy.attr["dtype"].type = dtype
    copy.attr["shape"].shape.CopyFrom(
        node.attr["_output_shapes"].list.shape[0])


# What gives the value of a variable; the second is one itself, as TensorFlow 1
# has it.
_READS = ("ReadVariableOp", "VariableV2")
_STATEFUL = ("RandomUniform", "RandomStandardNormal", "RandomUniformInt",
             "TruncatedNormal", "Multinomial")


def _cannot(node):
  if node.op == "VarHandleOp":
    return (f"A core uses the variable {node.name!r} as it is: only its value "
            "can be given to a program on devices.")
  return (
      f"{node.name!r} draws numbers by a {node.op}, whose state no checkpoint "
      "has: give simd.build a seed.")
