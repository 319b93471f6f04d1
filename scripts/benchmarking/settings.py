"""The settings of the benchmark, and the shapes that follow from them."""

import argparse
import dataclasses
import functools
import itertools

import mesh_tensorflow as mtf

from mtf_moe import levels
from mtf_moe import mesh_split
from mtf_moe.hparams import MoeHparams

LAYOUT = levels.canonical_layout(2, ["outer", "inner"])

# Of both levels, where nothing else is said.
CAPACITY_FACTOR = 1.25

# Small, so that the last step is much like the first: nothing is learned.
LEARNING_RATE = 1e-6


@dataclasses.dataclass(frozen=True)
class Setting:
  """One size of the layer, on one mesh.

  Attributes:
    tokens: in a step.
    d_model: m, the depth of inputs and outputs.
    hidden: units in the hidden layer of one expert.
    experts: (x, y), of the first and of the second level.
    group: tokens in a group of the first level; the most in one of the second.
    mesh: (rows, columns), slices along the outer and the inner axis.
    capacity_factors: of both levels.
  """

  tokens: int
  d_model: int
  hidden: int
  experts: tuple[int, int]
  group: int
  mesh: tuple[int, int] = (1, 1)
  capacity_factors: tuple[float, float] = (CAPACITY_FACTOR, CAPACITY_FACTOR)

  def __str__(self):
    return f"{self.family}, group {self.group}"

  @property
  def family(self):
    """All but the group size, as text."""
    return (f"{self.tokens} tokens, d_model {self.d_model}, hidden "
            f"{self.hidden}, experts {pair(self.experts)}, mesh "
            f"{pair(self.mesh)}")

  @property
  def mesh_shape(self):
    return mtf.convert_to_shape(list(zip(("outer", "inner"), self.mesh)))

  @property
  def token_dims(self):
    """[a0, b1, l], as few sequences as the mesh allows."""
    rows, columns = self.mesh
    return [mtf.Dimension("outer_batch", rows), mtf.Dimension("batch", columns),
            mtf.Dimension("length", self.tokens // (rows * columns))]

  @property
  def model_dim(self):
    return mtf.Dimension("d_model", self.d_model)

  def hparams(self, dispatch="einsum"):
    """A `MoeHparams`, which mesh_tensorflow's layer takes as well."""
    return MoeHparams(
        moe_num_experts=self.experts, moe_hidden_size=self.hidden,
        moe_group_size=self.group, moe_min_expert_capacity=4,
        moe_capacity_factor_train=self.capacity_factors[0],
        moe_capacity_factor_second_level=self.capacity_factors[1],
        moe_second_policy_train="all", moe_dispatch=dispatch,
        # The reference records other things, and neither is what is compared.
        moe_summaries=False)

  @functools.cached_property
  def levels(self):
    """The `SizedLevel`s of the layer."""
    *batch_dims, length = self.token_dims
    return levels.size(
        batch_dims, length, self.hparams(), True,
        mesh_split.MeshSplit(LAYOUT, self.mesh_shape))

  @property
  def group_sizes(self):
    """(s, t), those of both levels."""
    return tuple(level.group_size.size for level in self.levels)

  @property
  def expert_input_dims(self):
    """[y0, x1, h, d, m], what the experts of the layer get."""
    outer, inner = self.levels
    return [inner.experts, outer.experts, inner.groups_unsplit, inner.capacity,
            self.model_dim]

  @property
  def slots(self):
    """Of all experts together: the rows that they transform."""
    return mtf.Shape(self.expert_input_dims[:-1]).size

  @property
  def dense_hidden(self):
    """Units of a dense layer whose products equal those of all experts."""
    return max(1, round(self.slots * self.hidden / self.tokens))

  def check(self):
    """Raises ValueError, with the options to change, where it cannot be run."""
    (x, y), (rows, columns) = self.experts, self.mesh
    slices = rows * columns
    if x % columns or y % rows:
      raise ValueError(
          f"--experts {pair(self.experts)} cannot be split over --meshes "
          f"{pair(self.mesh)}: make the first number a multiple of {columns} "
          f"and the second of {rows}, or choose another mesh.")
    if self.tokens % slices:
      raise ValueError(
          f"--tokens {self.tokens} cannot be split over the {slices} slices of "
          f"--meshes {pair(self.mesh)}: make it a multiple of {slices}.")
    in_slice = self.tokens // slices
    if in_slice % self.group:
      fits = max(n for n in range(1, self.group + 1) if in_slice % n == 0)
      raise ValueError(
          f"--groups {self.group} does not divide the {in_slice} tokens of a "
          f"slice (--tokens {self.tokens}, --meshes {pair(self.mesh)}): choose "
          f"a size that does, such as {fits}.")
    # Otherwise another size than that in the table would be measured.
    assert self.group_sizes[0] == self.group


def pair(numbers):
  """(2, 4) as "2x4"."""
  return "x".join(map(str, numbers))


def parse_pair(text):
  """The argparse type of two positive integers, such as "2x4"."""
  try:
    first, second = (positive(part) for part in text.split("x"))
  except (ValueError, argparse.ArgumentTypeError):
    raise argparse.ArgumentTypeError(
        f"{text!r} is not two positive integers with an x between them; write "
        'it as in "4x4"') from None
  return first, second


def positive(text):
  """The argparse type of a positive integer."""
  if not (text.isascii() and text.isdecimal() and int(text)):
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a positive integer; write it as in 256")
  return int(text)


def product(groups, meshes, **sizes):
  """A Setting for each group size on each mesh."""
  return [Setting(group=group, mesh=mesh, **sizes)
          for mesh, group in itertools.product(meshes, groups)]


SIZES = {"tokens": 4096, "d_model": 256, "hidden": 1024, "experts": (4, 4)}

PRESETS = {
    # From small groups to large ones; how the cost grows with the group where
    # experts are cheap; and a mesh.
    "issue": [
        *product([256, 1024, 2048], [(1, 1)], **SIZES),
        *product([256, 4096], [(1, 1)],
                 **{**SIZES, "tokens": 8192, "hidden": 512}),
        *product([512], [(2, 2)], **SIZES)],
}
