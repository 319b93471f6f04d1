"""One configuration of the layer with its data, for all implementations.

Inputs and routers' weights lie on a grid, so that every logit is exact in
float32 and in float64, whatever the order of the sum: two logits are equal, or
so far apart that rounding cannot exchange them. Then implementations with
another arithmetic must still take every decision alike.
"""

import dataclasses

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
import numpy as np
import tensorflow.compat.v1 as tf

from tests import harness

# The factor 3 keeps the difference of two logits away from 1/128, at which a
# weight lies between two numbers of bfloat16.
_ROUTER_GRID = 3 / 128
_INPUT_GRID = 1 / 32

# (spacing of inputs, of the router's weights) by the kind of gates they make.
_GRIDS = {
    "usual": (_INPUT_GRID, _ROUTER_GRID),
    # Weights around 0.5, where bfloat16 decides whether a choice counts as the
    # preferred one at the second level.
    "near_equal": (_INPUT_GRID, _ROUTER_GRID / 64),
    "equal": (_INPUT_GRID, 0.0),
    "ties": (1.0, 1.0),
    "saturated": (1.0, 128.0),  # Gates of exactly zero and one.
}
ROUTERS = tuple(_GRIDS)
IMPORTANCES = ("absent", "ones", "zeros", "padding", "halves")


@dataclasses.dataclass(frozen=True)
class Case:
  """One configuration; the defaults drop some tokens at both levels.

  Attributes:
    shape: of the inputs without their depth, [a, b, l] or [b, l].
    depth: m.
    output_depth: n, or None for the dimension m.
    experts: (x, y).
    mesh: (rows, columns), the sizes of the mesh dimensions outer and batch.
    layout: layout rules.
    dtype: of the activations.
    importance: one of IMPORTANCES: "padding" has zeros and ones, "halves" 0.5
      as well.
    importance_dims: which of the dimensions of `shape` the importance has.
    router: the kind of gates, one of ROUTERS.
    factors: capacity factors in training, otherwise, and at the second level.
    seed: of all that is random.
  """

  shape: tuple[int, ...] = (2, 4, 8)
  depth: int = 6
  output_depth: int | None = None
  experts: tuple[int, int] = (4, 2)
  mesh: tuple[int, int] = (1, 1)
  layout: str = harness.CANONICAL_LAYOUT
  dtype: tf.DType = tf.float32
  train: bool = True
  importance: str = "padding"
  importance_dims: tuple[bool, ...] = (True, True, True)
  policy: str = "threshold"
  threshold: float = 0.3
  group_size: int = 16
  min_capacity: int = 1
  factors: tuple[float, float, float] = (1.0, 2.0, 1.0)
  second_place_loss: bool = False
  loss_coef: float = 0.1
  z_loss: float | None = None
  num_microbatches: int | None = None
  router: str = "usual"
  seed: int = 0

  def __str__(self):
    """What differs from the defaults."""
    return " ".join(
        f"{field.name}={getattr(self, field.name)}"
        for field in dataclasses.fields(self)
        if getattr(self, field.name) != field.default) or "defaults"

  def rng(self, *purpose):
    return np.random.default_rng([self.seed, *"".join(purpose).encode()])

  @property
  def capacity_factors(self):
    """Of the first and of the second level."""
    return self.factors[0 if self.train else 1], self.factors[2]

  def hparams(self, **changed):
    """As callers of mesh_tensorflow pass them."""
    chosen, other = ("train", "eval") if self.train else ("eval", "train")
    return moe.HParams(**{**{
        "moe_gating": "top_2",
        "moe_num_experts": list(self.experts),
        "moe_loss_coef": self.loss_coef,
        "moe_hidden_size": 8,
        "moe_group_size": self.group_size,
        "moe_min_expert_capacity": self.min_capacity,
        "moe_capacity_factor_train": self.factors[0],
        "moe_capacity_factor_eval": self.factors[1],
        "moe_capacity_factor_second_level": self.factors[2],
        "moe_use_second_place_loss": self.second_place_loss,
        f"moe_second_policy_{chosen}": self.policy,
        f"moe_second_policy_{other}": "none",
        f"moe_second_threshold_{chosen}": self.threshold,
        f"moe_second_threshold_{other}": 0.9,
        "moe_word_embed_mode": None,
        "moe_z_loss": self.z_loss,
        # Ours only, and a third more operations in the graph.
        "moe_summaries": False}, **changed})

  def token_dims(self):
    """The dimensions of `shape`."""
    names = ("outer_batch", "batch", "length")[-len(self.shape):]
    return [mtf.Dimension(*dim) for dim in zip(names, self.shape)]

  def inputs(self):
    """[*shape, depth]."""
    spacing, _ = _GRIDS[self.router]
    normal = self.rng("inputs").normal(size=(*self.shape, self.depth))
    return np.clip(np.round(normal / spacing), -128, 128) * spacing

  def importances(self):
    """(array, its dimensions), or None."""
    if self.importance == "absent":
      return None
    kept = [dim for dim, keep in zip(
        self.token_dims(), self.importance_dims[-len(self.shape):]) if keep]
    values, shares = {
        "ones": ([1.0], None), "zeros": ([0.0], None),
        "padding": ([0.0, 1.0], [0.2, 0.8]),
        "halves": ([0.0, 0.5, 1.0], [0.2, 0.3, 0.5])}[self.importance]
    return self.rng("importance").choice(
        values, size=[dim.size for dim in kept], p=shares), kept

  def weights(self, name, shape):
    """The value of the variable whose name in the layer is given."""
    normal = self.rng(name).normal(size=shape)
    if "gating" in name:
      _, spacing = _GRIDS[self.router]
      return np.clip(np.round(normal * 42), -85, 85) * spacing if (
          spacing < 1) else np.round(normal) * spacing
    # Exact in float32, so that all implementations start from the same.
    return (normal * shape[-2] ** -0.5).astype(np.float32).astype(np.float64)

  def uniforms(self, level, shape):
    """What the policy "random" draws at a level (0 or 1)."""
    draws = self.rng("uniforms", str(level)).integers(4096, size=shape)
    return (draws + 0.5) / 4096
