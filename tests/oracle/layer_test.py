"""Chosen cases of ours, mesh_tensorflow's layer, and the plain loops.

Output, loss, gradients with respect to the inputs and to every variable, and
the variables' names and shapes.
"""

import pytest
import tensorflow.compat.v1 as tf

from tests.oracle.case import Case
from tests.oracle.comparison import compare

UNSPLIT_OUTER_LAYOUT = "batch:batch,expert_x:batch,expert_y:outer"


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("policy", ["all", "none", "threshold", "random"])
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
    Case(importance="ones"),
    Case(importance="zeros"),
    Case(importance="halves"),
    Case(importance="halves", importance_dims=(True, False, True)),
    Case(factors=(0.5, 0.5, 0.5)),  # Most tokens are dropped.
    Case(factors=(3.0, 3.0, 3.0)),  # None is.
    Case(factors=(0.1, 0.1, 0.1), min_capacity=3),  # The minimum decides.
    Case(min_capacity=40),  # It even exceeds the group.
    Case(num_microbatches=1),
    Case(num_microbatches=4),
    Case(second_place_loss=True),
    Case(second_place_loss=True, num_microbatches=2, train=False,
         group_size=32),
    Case(z_loss=0.01, num_microbatches=1),
    Case(z_loss=0.01, num_microbatches=4, importance="halves"),
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
    Case(router="near_equal", dtype=tf.bfloat16, policy="all",
         factors=(2.0, 2.0, 2.0)),
    Case(router="equal", policy="all"),
    Case(router="equal", policy="all", dtype=tf.bfloat16),
    Case(router="ties", dtype=tf.bfloat16),
    Case(router="saturated", policy="all"),
], ids=str)
def test_special_cases(case):
  compare(case)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)], ids=str)
def test_without_nonpadding_all_tokens_count(mesh):
  """The reference needs ones, and crashes in training without them."""
  compare(Case(importance="absent", mesh=mesh))
