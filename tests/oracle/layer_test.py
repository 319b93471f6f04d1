"""The layer against mesh_tensorflow's own, on the same inputs and weights.

Output, loss, gradients with respect to the inputs and to every variable, and
the variables' names and shapes.
"""

import dataclasses

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from tests import harness

# Both sides do the same float32 arithmetic on the same routing, at most in
# another order; a token routed differently would show as an error of order 1.
# In bfloat16, rounding comes after it, and an order that differs shows as one
# unit in the last place, 2^-8.
TOLERANCE = {tf.float32: 1e-5, tf.bfloat16: 2.0 ** -8}

UNSPLIT_OUTER_LAYOUT = "batch:batch,expert_x:batch,expert_y:outer"


@dataclasses.dataclass(frozen=True)
class Case:
  """One configuration; the defaults drop some tokens at both levels.

  Sizes are chosen so that the reference keeps its groups within the group size,
  as ours always are.
  """

  shape: tuple[int, ...] = (2, 4, 8)
  depth: int = 6
  output_depth: int | None = None
  experts: tuple[int, int] = (4, 2)
  mesh: tuple[int, int] = (1, 1)
  layout: str = harness.CANONICAL_LAYOUT
  dtype: tf.DType = tf.float32
  train: bool = True
  padding: bool = True
  policy: str = "threshold"
  threshold: float = 0.3
  group_size: int = 16
  min_capacity: int = 1
  factors: tuple[float, float, float] = (1.0, 2.0, 1.0)
  second_place_loss: bool = False
  num_microbatches: int | None = None
  router_scale: float = 1.0
  seed: int = 0

  def __str__(self):
    """What differs from the defaults."""
    return " ".join(
        f"{field.name}={getattr(self, field.name)}"
        for field in dataclasses.fields(self)
        if getattr(self, field.name) != field.default) or "defaults"

  def hparams(self):
    """As the reference takes them."""
    return moe.HParams(
        moe_gating="top_2",
        moe_num_experts=list(self.experts),
        moe_loss_coef=0.1,
        moe_hidden_size=8,
        moe_group_size=self.group_size,
        moe_min_expert_capacity=self.min_capacity,
        moe_capacity_factor_train=self.factors[0],
        moe_capacity_factor_eval=self.factors[1],
        moe_capacity_factor_second_level=self.factors[2],
        moe_use_second_place_loss=self.second_place_loss,
        moe_second_policy_train=self.policy if self.train else "none",
        moe_second_policy_eval="none" if self.train else self.policy,
        moe_second_threshold_train=self.threshold if self.train else 0.9,
        moe_second_threshold_eval=0.9 if self.train else self.threshold,
        moe_word_embed_mode=None,
        moe_z_loss=None)

  def arrays(self):
    rng = np.random.default_rng(self.seed)
    dims = [mtf.Dimension(name, size) for name, size in zip(
        ("outer_batch", "batch", "length")[-len(self.shape):], self.shape)]
    inputs = rng.normal(size=(*self.shape, self.depth))
    padding = rng.random(self.shape) < (0.2 if self.padding else 0.0)
    return {
        "inputs": (inputs, dims + [mtf.Dimension("d_model", self.depth)]),
        "nonpadding": (1.0 - padding, dims)}


def compare(case, nonpadding_for_ours=True):
  """Runs both layers and compares all that they give.

  Args:
    case: a Case.
    nonpadding_for_ours: whether our layer gets the nonpadding, without which
      the reference does not train.

  Returns:
    our Result
  """
  impl = harness.mesh_impl(*case.mesh, layout=case.layout)

  def layer(function, use_nonpadding):
    def call(tensors):
      depth = case.output_depth
      return function(
          tensors["inputs"],
          mtf.Dimension("d_out", depth) if depth
          else tensors["inputs"].shape.dims[-1],
          case.hparams(), case.train, harness.variable_dtype(case.dtype),
          layout=impl.layout_rules, mesh_shape=impl.shape,
          nonpadding=tensors["nonpadding"] if use_nonpadding else None,
          num_microbatches=case.num_microbatches)
    return call

  results = harness.run_layers(
      {"ours": layer(mtf_moe.transformer_moe_layer_v2, nonpadding_for_ours),
       "theirs": layer(moe.transformer_moe_layer_v2, True)},
      case.arrays(), impl, case.dtype, case.seed, case.router_scale)
  ours, theirs = results["ours"], results["theirs"]
  assert ours.variables == theirs.variables
  assert_close(ours.output, theirs.output, case.dtype)
  # Computed in float32, and rounded as often.
  assert_close(ours.loss, theirs.loss, tf.float32)
  assert_close(ours.input_gradient, theirs.input_gradient, case.dtype)
  for name, gradient in theirs.gradients.items():
    assert_close(ours.gradients[name], gradient, case.dtype)
  return ours


def assert_close(actual, expected, dtype):
  """Compares relative to the largest element; the reference's is not zero."""
  scale = np.abs(expected).max()
  assert scale > 0
  np.testing.assert_allclose(
      actual, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("policy", ["all", "none", "threshold"])
def test_policies(policy, train, dtype, rank):
  compare(Case(policy=policy, train=train, dtype=dtype,
               shape=(2, 4, 8)[-rank + 1:]))


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("mesh", [(1, 2), (2, 1), (2, 2)], ids=str)
def test_meshes(mesh, train, dtype):
  compare(Case(mesh=mesh, train=train, dtype=dtype, policy="all"))


def test_meshes_hold_whole_groups():
  """16 tokens would be one group, but two slices need one each."""
  compare(Case(mesh=(1, 2), shape=(1, 2, 8), group_size=16))


def test_3d_input_on_a_mesh():
  compare(Case(mesh=(2, 2), shape=(4, 8), layout=UNSPLIT_OUTER_LAYOUT))


@pytest.mark.parametrize("case", [
    Case(padding=False),
    Case(factors=(0.5, 0.5, 0.5)),  # Most tokens are dropped.
    Case(factors=(3.0, 3.0, 3.0)),  # None is.
    Case(factors=(0.1, 0.1, 0.1), min_capacity=3),  # The minimum decides.
    Case(min_capacity=40),  # It even exceeds the group.
    Case(num_microbatches=1),
    Case(num_microbatches=4),
    Case(second_place_loss=True),
    Case(second_place_loss=True, num_microbatches=2, train=False,
         group_size=32),
    Case(shape=(1, 6, 10), group_size=30),  # 60 tokens, in two groups.
    Case(shape=(3, 5, 7), group_size=9, min_capacity=3),  # 35: groups of 7.
    Case(shape=(2, 6, 5), mesh=(2, 2), group_size=7),
    Case(group_size=1000),  # More than all tokens.
    Case(output_depth=3),
    Case(output_depth=3, mesh=(2, 2)),
    Case(experts=(1, 4)),  # No second choice at the first level.
    Case(experts=(4, 1)),  # Nor at the second.
    Case(experts=(2, 8)),
    Case(threshold=0.0),
    # Nearly equal gates: weights around 0.5, where bfloat16 decides whether a
    # choice counts as the preferred one at the second level.
    Case(router_scale=0.02, dtype=tf.bfloat16, policy="all",
         factors=(2.0, 2.0, 2.0)),
    Case(router_scale=0.0, policy="all"),  # Equal gates: all ties.
    Case(router_scale=30.0, policy="all"),  # Gates of exactly zero and one.
], ids=str)
def test_special_cases(case):
  compare(case)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)], ids=str)
def test_without_nonpadding_all_tokens_count(mesh):
  """The reference needs ones, and crashes in training without them."""
  compare(Case(padding=False, mesh=mesh), nonpadding_for_ours=False)
