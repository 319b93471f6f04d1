"""The form of the graphs that TensorFlow replicates over the cores of a TPU.

Their nodes are of three kinds: the code of the cores, which has an attribute
that says so; what surrounds it, such as variables; and between both, a few
nodes with one input or output for each core.
"""

import tensorflow.compat.v1 as tf

CORE_CODE = "_tpu_replicate"
INPUT, OUTPUT = "TPUReplicatedInput", "TPUReplicatedOutput"
METADATA = "TPUReplicateMetadata"
BETWEEN = (INPUT, OUTPUT, METADATA, "TPUCompilationResult")
# The operations in which cores exchange data.
ALL_TO_ALL = "AllToAll"
SUM = "CrossReplicaSum"
PERMUTATION = "CollectivePermute"


def is_core_code(node: tf.NodeDef) -> bool:
  """Whether a node belongs to the program that every core runs."""
  return CORE_CODE in node.attr and node.op not in BETWEEN


def node_name(name: str) -> str:
  """The node that an input, which may be a control input, comes from."""
  return name.removeprefix("^").partition(":")[0]


def group_table(node: tf.NodeDef, nodes: dict[str, tf.NodeDef]
                ) -> list[list[int]]:
  """Which cores take part in a collective together.

  Args:
    node: the collective.
    nodes: all nodes of its graph, by name.

  Returns:
    the physical cores of each group, in the group's order; of a permutation,
    pairs of source and target

  Raises:
    ValueError: if the graph computes the groups instead of stating them.
  """
  table = nodes[node_name(node.input[1])]
  if table.op != "Const":
    raise ValueError(
        f"The groups of {node.name!r} are the result of a {table.op}, and have "
        "to be a constant.")
  return tf.make_ndarray(table.attr["value"].tensor).tolist()
