"""Groups and capacities, against the reference and by hand."""

import itertools

from mesh_tensorflow.transformer import moe
import pytest

import mtf_moe
from mtf_moe import grouping


@pytest.mark.parametrize("n, max_group_size, mesh_dim_size, expected", [
    (1024, 256, 1, (4, 256)),
    (1024, 256, 8, (8, 128)),  # 4 groups would cut some of them.
    (1000, 256, 1, (4, 250)),
    (35, 9, 1, (5, 7)),
    (12, 100, 1, (1, 12)),
    (12, 100, 4, (4, 3)),
    (1500, 1024, 1, (1, 1500)),  # More than asked for, but less than two.
    (1031, 1024, 1, (1, 1031)),  # A prime number is one group,
    (2053, 1024, 1, (2053, 1)),  # or, from two groups on, as many as it is.
    (12, 5, 4, (4, 3)),  # 2 groups would be enough, but for the mesh.
    (7, 1, 1, (7, 1)),
])
def test_by_hand(n, max_group_size, mesh_dim_size, expected):
  assert mtf_moe._split_into_groups(
      n, max_group_size, mesh_dim_size) == expected


def test_same_as_the_reference():
  """Above all for n between one and two group sizes, where they exceed it."""
  larger = 0
  for n, target, ways in itertools.product(
      range(1, 200), (1, 2, 3, 7, 8, 16, 33, 64, 100, 199), (1, 2, 3, 4)):
    if n % ways == 0:
      expected = moe._split_into_groups(n, target, ways)
      assert grouping._split_into_groups(n, target, ways) == expected
      larger += expected[1] > target
  assert larger > 400


@pytest.mark.parametrize("n, max_group_size, mesh_dim_size", [
    (10, 4, 4), (0, 4, 1), (8, 0, 1), (8, 4, 0), (8, -4, 2)])
def test_impossible_sizes(n, max_group_size, mesh_dim_size):
  with pytest.raises(ValueError, match=r"multiple of 4|positive integer"):
    grouping._split_into_groups(n, max_group_size, mesh_dim_size)


def test_small_groups_are_told(caplog):
  grouping._split_into_groups(2053, 1024, 1)
  assert "groups of only 1" in caplog.text
  assert "group_size = 1024" in caplog.text


def test_large_groups_are_not_told(caplog):
  grouping._split_into_groups(1024, 256, 8)  # 128 of 256 allowed.
  grouping._split_into_groups(12, 1000, 4)  # All that a slice has.
  assert not caplog.text


@pytest.mark.parametrize("group, factor, experts, minimum, expected", [
    (16, 1.0, 4, 1, 4),  # An even share.
    (16, 1.25, 4, 1, 5),
    (16, 1.2, 4, 1, 4),  # 4.8 is rounded down.
    (16, 8.0, 4, 1, 16),  # No more than the group,
    (16, 8.0, 4, 20, 20),  # but for the minimum.
    (16, 0.1, 4, 3, 3),
    (10, 1.0, 3, 1, 3),
])
def test_expert_capacity(group, factor, experts, minimum, expected):
  assert grouping.expert_capacity(group, factor, experts, minimum) == expected
