"""The sizes of the mixtures in a model, and how well balanced tokens fit them.
"""

from collections.abc import Sequence
import dataclasses
import fractions
import itertools
import math

import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import gating
from mtf_moe import layer
from mtf_moe import monitoring
from mtf_moe import tags
from mtf_moe.layer_records import LayerRecord

# Of the tokens whose routing is tried out, as many as make these groups at the
# first level, or the fewest that fill a group at the second.
_GROUPS = 16
# As many as a usual vocabulary has.
_NUM_IDS = 32_000


@dataclasses.dataclass(frozen=True)
class LevelSizes:
  """One level of a mixture.

  Attributes:
    name: such as "outer".
    router: its name.
    experts: x, or y of each x.
    groups: in a microbatch, on all cores; of each expert of the level above.
    group_size: s or t.
    capacity: c or d.
    asked_factor: the capacity factor that was asked for.
    asked_group_size: the group size that was asked for.
    least_capacity: the fewest slots that were asked for.
  """

  name: str
  router: str
  experts: int
  groups: int
  group_size: int
  capacity: int
  asked_factor: float
  asked_group_size: int
  least_capacity: int

  @property
  def group_size_text(self) -> str:
    """The size of a group, beside the one asked for where it is larger."""
    if self.group_size <= self.asked_group_size:
      return f"{self.group_size:,}"
    return f"{self.group_size:,} (asked for: {self.asked_group_size:,})"

  @property
  def real_factor(self) -> float:
    """The slots of all experts over the tokens of a group, after rounding."""
    return self.experts * self.capacity / self.group_size


@dataclasses.dataclass(frozen=True)
class Balanced:
  """What becomes of tokens that like all experts equally well, as shares.

  Attributes:
    empty_slots: of the slots of the experts' buffers, which are those of the
      last level.
    lost_tokens: of the tokens, those that reach no expert, by none of their
      choices at any level.
    experts_per_token: how many a token reaches, on average.
    fewer_experts: of the tokens, those that reach some expert, but not all that
      they choose.
    first_choices_lost: of the first choices at each level, those that find no
      slot; None where tokens do not choose.
  """

  empty_slots: float
  lost_tokens: float
  experts_per_token: float
  fewer_experts: float = 0.0
  first_choices_lost: tuple[float | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Mixture:
  """One or several layers of the same sizes.

  Attributes:
    layers: the names of the layers.
    levels: their levels.
    balanced: what balanced routing would make of it.
    slots_per_token: that the experts compute, in training.
    slots_per_token_in_use: where the model scores, decodes or is exported.
  """

  layers: tuple[str, ...]
  levels: tuple[LevelSizes, ...]
  balanced: Balanced
  slots_per_token: float
  slots_per_token_in_use: float

  @property
  def num_experts(self) -> int:
    """In each of the layers."""
    return math.prod(level.experts for level in self.levels)


def find(records: Sequence[LayerRecord]) -> list[Mixture]:
  """The mixtures of a model, those of the same sizes together.

  Args:
    records: those of its graph.

  Returns:
    a list of `Mixture`s
  """
  alike = {}
  for record in records:
    alike.setdefault(
        (_sizes(record.levels), repr(record.hparams)), []).append(record)
  return [
      Mixture(
          tuple(record.scope for record in same), sizes,
          balanced(same[0].levels, same[0].hparams),
          _slots_per_token(same[0].levels), _slots_per_token(same[0].in_use()))
      for (sizes, _), same in alike.items()]


def _slots_per_token(levels):
  last = levels[-1]
  slots = math.prod(dim.size for dim in (
      *last.expert_dims, *last.outer_dims, last.groups, last.capacity))
  return slots / math.prod(dim.size for dim in levels[0].token_dims)


def _sizes(levels):
  return tuple(
      LevelSizes(
          level.names.level, gating.name_of(level.settings.router),
          level.experts.size,
          math.prod(dim.size for dim in (*level.outer_dims, level.groups)),
          level.group_size.size, level.capacity.size,
          level.settings.capacity_factor(train=True),
          level.settings.group_size, level.settings.min_expert_capacity)
      for level in levels)


def balanced(levels, hparams) -> Balanced:
  """Routes random tokens, whose gates favour no expert, with the real layer.

  Logits are normal with a variance of 1, which matters to policies that look
  at the second gate.

  Args:
    levels: the `SizedLevel`s of the layer; their groups may be fewer here.
    hparams: its `MoeHparams`.

  Returns:
    a `Balanced`
  """
  levels = _some_groups(levels)
  # Tokens are their own logits, those of the routers of all levels.
  depth = mtf.Dimension(
      "logits", sum(level.experts.size for level in levels))
  kernels, first = {}, 0
  for level in levels:
    name = level.names.router or gating.scope_name(level.settings.router)
    above = [dim.size for dim in level.experts_above]
    kernels[f"{name}/kernel"] = np.broadcast_to(
        np.eye(depth.size, level.experts.size, -first),
        [*above, depth.size, level.experts.size])
    first += level.experts.size
  with tf.Graph().as_default():
    tf.set_random_seed(0)
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "balanced")
    shape = mtf.Shape(levels[0].token_dims + [depth])
    tokens = mtf.import_tf_tensor(
        mesh, tf.random.normal(shape.to_integer_list), shape)
    mixture = layer.Mixture(
        mtf.Dimension("share", 1),
        dataclasses.replace(hparams, moe_dispatch="index"),
        True, mtf.VariableDType(), mtf.VariableDType(), None, _ones)
    token_dims = mtf.Shape(levels[0].token_dims)
    ids = mtf.import_tf_tensor(
        mesh, tf.random.uniform(
            token_dims.to_integer_list, maxval=_NUM_IDS, dtype=tf.int32),
        token_dims)
    (outputs,), routings = mixture(
        [dataclasses.replace(level, settings=dataclasses.replace(
            level.settings, word_embed_mode=None)) for level in levels],
        layer.Arrivals(tokens, mtf.ones(mesh, token_dims), None, lambda: ids))
    ledgers = list(map(monitoring.ledger, routings))
    reached = monitoring.reached(levels, routings, tf.float32, "index")
    lost = mtf.reduce_mean(mtf.to_float(mtf.equal(outputs, 0.0)))
    lowering = mtf.Lowering(graph, {mesh: _one_slice()}, autostack=False)
    fetches = tf.nest.map_structure(
        lowering.export_to_tf_tensor, (ledgers, reached, lost))
    with tf.Session() as session:
      session.run(tf.global_variables_initializer())
      for variable in tf.global_variables():
        # Routers may have others, which stay as they begin.
        if (kernel := kernels.get(variable.op.name)) is not None:
          variable.load(kernel.reshape(variable.shape), session)
      session.run(lowering.copy_masters_to_slices())
      ledgers, reached, lost = session.run(fetches)
  num_tokens = shape.size / depth.size
  slots, empty = ledgers[-1]["slots"], ledgers[-1]["slots/empty"]
  return Balanced(
      float(empty / slots), float(lost), float((slots - empty) / num_tokens),
      float(reached[tags.FEWER_EXPERTS] / num_tokens),
      tuple(map(_first_choices_lost, ledgers)))


def _first_choices_lost(ledger):
  dropped = ledger.get("choices_1/dropped")
  if dropped is None:
    return None
  return float(dropped / max(ledger["choices_1/kept"] + dropped, 1))


def _some_groups(levels):
  """The same levels with fewer groups, of batches of one.

  There are as many as make whole groups at every level.
  """
  # Groups of a level for each group of the first one.
  ratios = [fractions.Fraction(1)]
  for before, level in itertools.pairwise(levels):
    ratios.append(
        ratios[-1] * before.capacity.size / level.group_size.size)
  whole = math.lcm(*(ratio.denominator for ratio in ratios))
  first = whole * -(-_GROUPS // whole)
  return [
      dataclasses.replace(
          level,
          outer_dims=[mtf.Dimension(dim.name, 1) for dim in level.outer_dims],
          groups=mtf.Dimension(level.groups.name, int(first * ratio)),
          groups_unsplit=mtf.Dimension(
              level.groups_unsplit.name, int(first * ratio)))
      for level, ratio in zip(levels, ratios)]


def _ones(inputs, output_dim, *unused_args):
  """Experts that do nothing: what comes back is above zero where one is."""
  return mtf.ones(
      inputs.mesh, mtf.Shape(inputs.shape.dims[:-1] + [output_dim]))


def _one_slice():
  return mtf.placement_mesh_impl.PlacementMeshImpl(
      mtf.Shape([]), mtf.LayoutRules([]), [""])
