"""Turns the program of a TPU's cores into plain TensorFlow.

`expand` copies the program once for every core, and makes the collectives what
they are: the sum of what the cores of a group have, the exchange of parts. What
comes out runs anywhere, and computes what the cores would. `one_core` keeps one
copy that talks to itself, of the same shapes.

The copies of a loop share its frame and the condition of core 0, so that a
collective inside of it takes the same turn of every core.
"""

import collections

import tensorflow.compat.v1 as tf

from mtf_moe.simd import graphs
from mtf_moe.simd import rules

# They name devices that are not there, or shapes that copies need not have.
_STRIPPED_ATTRIBUTES = (graphs.CORE_CODE, "_class", "_output_shapes")


def core_name(core: int, name: str) -> str:
  """The name that a core's copy of a node or tensor has.

  Args:
    core: an integer, the physical core.
    name: the name in the core's program.
  """
  return f"core_{core}/{name}"


def expand(graph_def: tf.GraphDef, float32_alltoall: bool = True
           ) -> tf.GraphDef:
  """Gives every core a copy of its program, in plain TensorFlow.

  A variable's slice is written after that core has read it; reads inside of
  loops are not looked at.

  Args:
    graph_def: a `Program`'s.
    float32_alltoall: a boolean. SimdMeshImpl exchanges float32 as bfloat16;
      True takes this rounding out, which makes the results comparable with
      those of other meshes. False keeps it, as a TPU has it.

  Returns:
    a tf.GraphDef, whose nodes of core code have the names of `core_name`, all
    others those they had

  Raises:
    ValueError: if the graph has no replicated code, or is not what this
      function knows to expand.
  """
  if float32_alltoall:
    graph_def = without_rounding(graph_def)
  return _Expansion(graph_def, rules.TOGETHER).expanded()


def one_core(graph_def: tf.GraphDef) -> tf.GraphDef:
  """Replaces the collectives of a core by local operations.

  All shapes are those of the original. Sums over cores are left out, and an
  all-to-all exchanges parts with itself.

  Args:
    graph_def: a `Program`'s.

  Returns:
    a tf.GraphDef with a copy of the program for core 0.
  """
  return _Expansion(graph_def, rules.ALONE, num_cores=1).expanded()


def without_rounding(graph_def: tf.GraphDef) -> tf.GraphDef:
  """Takes out the casts to bfloat16 that SimdMeshImpl puts around all-to-alls.

  Args:
    graph_def: a `Program`'s.

  Returns:
    a tf.GraphDef
  """
  original, graph_def = graph_def, tf.GraphDef()
  graph_def.CopyFrom(original)
  nodes = {node.name: node for node in graph_def.node}
  exchanges = set()
  for node in graph_def.node:
    if node.op != graphs.ALL_TO_ALL:
      continue
    cast = nodes[node.input[0]]
    if _is_rounding(cast, node):
      node.attr["T"].type = cast.attr["SrcT"].type
      node.input[0] = cast.input[0]
      exchanges.add(node.name)
  for node in graph_def.node:
    if node.op == "Cast" and node.input[0] in exchanges:
      node.op = "Identity"
      node.attr["T"].type = node.attr["DstT"].type
      for name in ("SrcT", "DstT", "Truncate"):
        del node.attr[name]
  return graph_def


def _is_rounding(cast, exchange):
  """Whether a Cast is the exchange's own, and not the model's."""
  scope = exchange.name.rpartition("/")[0]
  return (cast.op == "Cast" and cast.name.rpartition("/")[0] == scope
          and cast.attr["SrcT"].type == tf.float32.as_datatype_enum
          and cast.attr["DstT"].type == tf.bfloat16.as_datatype_enum)


class _Expansion:
  """One graph on its way from the one program to that of all cores."""

  def __init__(self, graph_def, collectives, num_cores=None):
    """Looks around in the graph.

    Args:
      graph_def: a tf.GraphDef.
      collectives: for each type of collective, the rule that expands it.
      num_cores: an integer, or None for as many as the program is for.
    """
    self._graph_def = graph_def
    self._collectives = collectives
    self._nodes = {node.name: node for node in graph_def.node}
    self._reads = _reads_before_writes(graph_def)
    metadata = [n for n in graph_def.node if n.op == graphs.METADATA]
    if len(metadata) != 1:
      raise ValueError(
          f"The graph has {len(metadata)} replicated computations, and this "
          "takes one: pass the graph_def of a simd.Program.")
    self._cores = range(num_cores or metadata[0].attr["num_replicas"].i)

  def expanded(self):
    """The tf.GraphDef of all cores."""
    result = tf.GraphDef(
        versions=self._graph_def.versions, library=self._graph_def.library)
    for node in self._graph_def.node:
      if node.op in graphs.BETWEEN:
        continue
      if not graphs.is_core_code(node):
        result.node.append(self._surrounding(node))
      elif node.op == "LoopCond":  # A frame can have only one.
        result.node.append(self._copy(0, node))
      elif node.op in self._collectives:
        result.node.extend(self._collective(node))
      else:
        result.node.extend(self._copy(core, node) for core in self._cores)
    return result

  def _surrounding(self, node):
    """A node that is not replicated, such as one that makes a variable."""
    copy = _stripped(node)
    copy.input[:] = [
        seen for name in node.input for seen in self._seen_outside(name)]
    return copy

  def _copy(self, core, node):
    """A core's copy of a node that is no collective."""
    copy = _stripped(node)
    copy.name = core_name(core, node.name)
    copy.input[:] = self._inputs(core, node)
    copy.input.extend(
        "^" + core_name(core, read) for read in self._reads.get(node.name, ()))
    return copy

  def _collective(self, node):
    """The nodes that do a collective's work, on all cores."""
    inputs = [self._inputs(core, node) for core in self._cores]
    return self._collectives[node.op](rules.Call(
        node=node,
        names=[core_name(core, node.name) for core in self._cores],
        operands=[names[0] for names in inputs],
        controls=[[name for name in names if name.startswith("^")]
                  for names in inputs],
        table=graphs.group_table(node, self._nodes)))

  def _inputs(self, core, node):
    return [seen for name in node.input for seen in self._seen_by(core, name)]

  def _seen_by(self, core, name):
    """What an input of core code is to a core: a list, empty if nothing."""
    source = self._nodes[graphs.node_name(name)]
    if source.op == graphs.INPUT:
      own = source.input[0 if source.attr["is_packed"].b else core]
      return ["^" + graphs.node_name(own) if name.startswith("^") else own]
    if source.op in graphs.BETWEEN:
      return []
    if source.op == "LoopCond":
      core = 0
    return [_on_core(core, name) if graphs.is_core_code(source) else name]

  def _seen_outside(self, name):
    """What an input of a node around the cores is: a list."""
    source = self._nodes[graphs.node_name(name)]
    if source.op == graphs.OUTPUT and not name.startswith("^"):
      _, _, core = name.partition(":")
      return [_on_core(int(core or 0), source.input[0])]
    if source.op in graphs.BETWEEN:
      return []
    if not graphs.is_core_code(source):
      return [name]
    if name.startswith("^"):  # After all of them.
      return [_on_core(core, name) for core in self._cores]
    raise ValueError(
        f"{name!r} is computed by every core and used outside of them: return "
        "it from the replicated computation.")


def _reads_before_writes(graph_def):
  """For each node that writes a variable, those that must read it before.

  Without them, a step could read what it has just written. mtf reads and
  writes a variable under the same handle.

  Args:
    graph_def: a tf.GraphDef.

  Returns:
    names of nodes, by the name of the node that writes
  """
  reads, writes = collections.defaultdict(list), {}
  consumers = collections.defaultdict(list)
  for node in filter(graphs.is_core_code, graph_def.node):
    for name in node.input:
      consumers[graphs.node_name(name)].append(node.name)
    if node.op == "ReadVariableOp":
      reads[node.input[0]].append(node.name)
    elif node.op.startswith("Assign"):
      writes[node.name] = node.input[0]
  return {write: sorted(set(reads[handle]) - _downstream(write, consumers))
          for write, handle in writes.items()}


def _downstream(name, consumers):
  """The nodes that come after a node."""
  found, waiting = set(), [name]
  while waiting:
    for consumer in consumers[waiting.pop()]:
      if consumer not in found:
        found.add(consumer)
        waiting.append(consumer)
  return found


def _on_core(core, name):
  """The name of an input, which may be a control input, on a core."""
  control = "^" if name.startswith("^") else ""
  return control + core_name(core, name.removeprefix("^"))


def _stripped(node):
  """A copy without attributes that mean nothing on other devices."""
  copy = tf.NodeDef()
  copy.CopyFrom(node)
  copy.device = ""
  for name in _STRIPPED_ATTRIBUTES:
    if name in copy.attr:
      del copy.attr[name]
  return copy
