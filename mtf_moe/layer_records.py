"""What the mixtures of a model are, as they have said it of themselves.

A layer that is built adds a record to its mtf graph. Who wants to know about
layers (plan, training, reports) reads those, and need not conclude from gin
what there may be: layers in scopes of gin, encoders, models with different
layers.
"""

import dataclasses
import weakref

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe import levels as levels_lib
from mtf_moe.hparams import Level
from mtf_moe.hparams import MoeHparams
from mtf_moe.levels import SizedLevel
from mtf_moe.mesh_split import MeshSplit


@dataclasses.dataclass(frozen=True)
class LayerRecord:
  """A mixture.

  Attributes:
    scope: its variable scope, such as "decoder/block_000/layer_002/MoE2D".
    called: how it is called in gin, such as "MoE2D", or "wide/MoE2D" in a
      scope; None where a program has called a function.
    levels: the dimensions and the settings of each level.
    hparams: what holds for the whole layer.
    batch_dims: those of its inputs, with the ones that were inserted.
    length: what was merged with the last of them.
    mesh: a `MeshSplit`.
  """

  scope: str
  called: str | None
  levels: tuple[SizedLevel, ...]
  hparams: MoeHparams
  batch_dims: tuple[mtf.Dimension, ...]
  length: mtf.Dimension
  mesh: MeshSplit

  def in_use(self) -> list[SizedLevel]:
    """The levels where the model scores, decodes or is exported."""
    return levels_lib.size(
        list(self.batch_dims), self.length, self.hparams.for_inference(), False,
        self.mesh)

  def parameter(self, name: str, number: int = 0) -> str:
    """What a setting of a level is called.

    Args:
      name: of a knob, or "capacity_factor" for the one in training.
      number: the level, 0 for the first.
    """
    of_its_own = self.hparams.moe_levels is not None
    if name == "capacity_factor":
      name = ("capacity_factor_second_level" if number and not of_its_own
              else "capacity_factor_train")
    by_level = of_its_own and name in Level.__dataclass_fields__
    if self.called is None:
      return f"moe_{name}"
    return f"{self.called}." + (
        f"levels[{number}].{name}" if by_level else name)


_records: "weakref.WeakKeyDictionary[mtf.Graph, dict[str, LayerRecord]]" = (
    weakref.WeakKeyDictionary())


def add(graph: mtf.Graph, **record):
  """Records the layer that is being built in the current variable scope.

  Args:
    graph: the mtf.Graph.
    **record: the fields of its `LayerRecord`, but for the scope.
  """
  scope = tf.get_variable_scope().name
  _records.setdefault(graph, {})[scope] = LayerRecord(scope=scope, **record)


def of(graph: mtf.Graph) -> list[LayerRecord]:
  """The mixtures of a graph, in the order in which they were built.

  Args:
    graph: a mtf.Graph.

  Returns:
    a list of `LayerRecord`s; one of each variable scope, the last one that was
    built there
  """
  return list(_records.get(graph, {}).values())
