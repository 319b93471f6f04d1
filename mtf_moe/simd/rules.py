"""What takes the place of collectives in plain TensorFlow.

Each rule makes the nodes of all cores from one `Call`. `TOGETHER` has those for
cores that exchange data, `ALONE` those for a core that has only itself.
"""

import dataclasses

import tensorflow.compat.v1 as tf

from mtf_moe.simd import graphs


@dataclasses.dataclass(frozen=True)
class Call:
  """One collective, on all cores.

  Attributes:
    node: the tf.NodeDef in the core's program.
    names: for each core, the name of the result.
    operands: for each core, the name of what it contributes.
    controls: for each core, what it must wait for.
    table: the groups of cores that take part together, or, for a permutation,
      pairs of source and target.
  """

  node: tf.NodeDef
  names: list[str]
  operands: list[str]
  controls: list[list[str]]
  table: list[list[int]]

  @property
  def dtype(self):
    return self.node.attr["T"].type

  def result(self, core, op, inputs):
    """The node with a core's result."""
    return _node(
        op, self.names[core], inputs + self.controls[core], self.dtype)

  def split(self, core):
    """The nodes that cut a core's operand into parts for an all-to-all."""
    axis = self._axis(core, "split_dimension")
    part = _node("Split", self.names[core] + "/parts",
                 [axis.name, self.operands[core]], self.dtype)
    part.attr["num_split"].i = self.node.attr["split_count"].i
    return [axis, part]

  def concatenated(self, core, parts):
    """The nodes that join parts into a core's result of an all-to-all."""
    if len(parts) == 1:  # A core exchanges nothing with itself.
      return [self.result(core, "Identity", parts)]
    axis = self._axis(core, "concat_dimension")
    result = self.result(core, "ConcatV2", [*parts, axis.name])
    result.attr["N"].i = len(parts)
    result.attr["Tidx"].type = tf.int32.as_datatype_enum
    return [axis, result]

  def _axis(self, core, attribute):
    # The control input puts the constant into the operand's loop, if any.
    axis = _node("Const", f"{self.names[core]}/{attribute}",
                 ["^" + graphs.node_name(self.operands[core])])
    axis.attr["dtype"].type = tf.int32.as_datatype_enum
    axis.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(
        self.node.attr[attribute].i, tf.int32))
    return axis


def _sum_of_group(call):
  """CrossReplicaSum: everyone gets the sum over its group."""
  nodes = []
  for group in call.table:
    for core in group:
      total = call.result(core, "AddN", [call.operands[c] for c in group])
      total.attr["N"].i = len(group)
      nodes.append(total)
  return nodes


def _exchange_in_group(call):
  """AllToAll: the k-th core of a group gets everyone's k-th part."""
  nodes = []
  for group in call.table:
    for k, core in enumerate(group):
      nodes += call.split(core)
      nodes += call.concatenated(
          core, [f"{call.names[c]}/parts:{k}" for c in group])
  return nodes


def _permutation(call):
  """CollectivePermute: a target gets what its source has, others zeros."""
  sources = {target: source for source, target in call.table}
  return [
      call.result(core, "Identity", [call.operands[sources[core]]])
      if core in sources else
      call.result(core, "ZerosLike", [call.operands[core]])
      for core in range(len(call.names))]


def _own_operand(call):
  """In place of a collective with a result of the operand's shape."""
  return [call.result(core, "Identity", [operand])
          for core, operand in enumerate(call.operands)]


def _exchange_with_itself(call):
  """In place of an AllToAll: all parts are the core's own."""
  nodes = []
  for core, name in enumerate(call.names):
    nodes += call.split(core)
    nodes += call.concatenated(core, [
        f"{name}/parts:{k}" for k in range(call.node.attr["split_count"].i)])
  return nodes


def _node(op, name, inputs, dtype=None):
  node = tf.NodeDef(op=op, name=name, input=inputs)
  if dtype is not None:
    node.attr["T"].type = dtype
  return node


TOGETHER = {
    graphs.SUM: _sum_of_group,
    graphs.ALL_TO_ALL: _exchange_in_group,
    graphs.PERMUTATION: _permutation,
}
ALONE = {
    graphs.SUM: _own_operand,
    graphs.ALL_TO_ALL: _exchange_with_itself,
    graphs.PERMUTATION: _own_operand,
}
