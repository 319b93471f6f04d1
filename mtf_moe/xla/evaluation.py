"""Graphs in which loops are frames, evaluated inside of a tf.function.

What lowers a tf.function knows loops as functions of their variables; in a
graph of TensorFlow 1 they are cycles of nodes. Each is taken apart into what
comes before it, its condition, its body and what comes after it.
"""

from collections.abc import Mapping, Sequence

import tensorflow.compat.v1 as tf

from mtf_moe.simd import graphs

_CYCLE = ("Enter", "Merge", "Switch", "NextIteration", "Exit", "LoopCond")


def evaluate(graph_def: tf.GraphDef, fed: Mapping[str, tf.Tensor],
             wanted: Sequence[str]) -> list[tf.Tensor]:
  """Puts a graph into the function that is being traced.

  Args:
    graph_def: a tf.GraphDef without state. No node waits for another.
    fed: tensors in place of those of these names.
    wanted: names of tensors.

  Returns:
    the tensors

  Raises:
    ValueError: if a loop is inside of another.
  """
  fed = dict(fed)
  while loop := _first_loop(graph_def, fed, wanted):
    fed.update(loop.run(fed))
  return _imported(graph_def, fed, wanted)


def tensor_name(name: str) -> str:
  """The name of a tensor, which graphs shorten where it is a node's first."""
  return name if ":" in name else f"{name}:0"


def _imported(graph_def, fed, wanted):
  """As `evaluate`, without loops."""
  part = _part(graph_def, fed, wanted)
  used = {tensor_name(name) for node in part.node for name in node.input}
  found = iter(tf.import_graph_def(
      part, name="", input_map={  # Their copies, where a loop's body is traced.
          name: tf.identity(tensor) for name, tensor in fed.items()
          if name in used},
      return_elements=[name for name in wanted if name not in fed]))
  return [fed[name] if name in fed else next(found) for name in wanted]


def _part(graph_def, fed, wanted):
  """The nodes that tensors are computed by from those that are fed."""
  nodes = {node.name: node for node in graph_def.node}
  found, waiting = {}, [name for name in wanted if name not in fed]
  while waiting:
    name = graphs.node_name(waiting.pop())
    if name not in found and name in nodes:
      found[name] = nodes[name]
      waiting += [one for one in map(tensor_name, nodes[name].input)
                  if one not in fed]
  part = tf.GraphDef(versions=graph_def.versions, library=graph_def.library)
  part.node.extend(node for node in graph_def.node if node.name in found)
  return part


def _first_loop(graph_def, fed, wanted):
  """A loop that has to run, and needs no other one before; or None."""
  part = _part(graph_def, fed, wanted)
  frames = {node.attr["frame_name"].s for node in part.node
            if node.op == "Enter"}
  for frame in sorted(frames):
    loop = _Loop(part, frame)
    before = _part(graph_def, fed, loop.inputs)
    if not any(node.op in _CYCLE for node in before.node):
      return loop
  if frames:
    raise ValueError(
        f"The loops {sorted(name.decode() for name in frames)} are inside of "
        "one another, and a program on devices has loops that follow each "
        "other only.")
  return None


class _Loop:
  """A loop of a graph.

  Attributes:
    inputs: the names of the first values of its variables, and of what it
      uses that stays the same.
  """

  def __init__(self, graph_def, frame):
    self._graph_def = graph_def
    nodes = {node.name: node for node in graph_def.node}
    enters = [node for node in graph_def.node if node.op == "Enter"
              and node.attr["frame_name"].s == frame]
    names = {node.name for node in enters}
    merges = [node for node in graph_def.node if node.op == "Merge"
              and graphs.node_name(node.input[0]) in names]
    self._variables = [f"{node.name}:0" for node in merges]
    first = [nodes[graphs.node_name(node.input[0])] for node in merges]
    self._next = [
        tensor_name(nodes[graphs.node_name(node.input[1])].input[0])
        for node in merges]
    same = [node for node in enters if node not in first]
    self._same = [f"{node.name}:0" for node in same]
    self.inputs = [tensor_name(node.input[0]) for node in [*first, *same]]
    by_merge = {}
    for node in graph_def.node:
      if node.op == "Switch" and tensor_name(node.input[0]) in self._variables:
        by_merge[tensor_name(node.input[0])] = node.name
        condition = nodes[graphs.node_name(node.input[1])]
    self._condition = tensor_name(condition.input[0])
    # Nothing in the loop uses a variable that has no switch.
    self._switches = [by_merge.get(name) for name in self._variables]
    self._exits = {
        node.name: self._switches.index(graphs.node_name(node.input[0]))
        for node in graph_def.node if node.op == "Exit"
        and graphs.node_name(node.input[0]) in self._switches}

  def run(self, fed):
    """Runs it.

    Args:
      fed: tensors, by name.

    Returns:
      the tensors that come out of it, by name
    """
    inputs = _imported(self._graph_def, fed, self.inputs)
    first, same = inputs[:len(self._variables)], inputs[len(self._variables):]
    always = {**fed, **dict(zip(self._same, same))}

    def condition(*values):
      found, = _imported(
          self._graph_def, {**always, **dict(zip(self._variables, values))},
          [self._condition])
      return found

    def body(*values):
      inside = {f"{name}:1": value
                for name, value in zip(self._switches, values)}
      found = _imported(self._graph_def, {**always, **inside}, self._next)
      for one, before in zip(found, values):
        one.set_shape(before.shape)
      return found

    last = tf.while_loop(condition, body, first)
    return {f"{name}:0": last[number] for name, number in self._exits.items()}
