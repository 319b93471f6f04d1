"""Groups and capacities: the integers that fix every shape of the layer.

A router works on one group of tokens at a time, and each expert has a buffer
of `capacity` slots for every group. Static shapes need these sizes up front.
"""

import logging

_logger = logging.getLogger(__name__)


def _split_into_groups(n, max_group_size, mesh_dim_size):
  """Splits n tokens into equal groups of about the size asked for.

  The number of groups is the smallest that divides n, is a multiple of
  `mesh_dim_size`, so that every slice of the mesh holds whole groups, and is no
  smaller than n // max_group_size. These are the groups of mesh_tensorflow, so
  that a checkpoint from there drops the same tokens here.

  `max_group_size` is a target and no bound: 1500 tokens at 1024 are one group
  of 1500. Where n has no suitable divisor the groups become much smaller, in
  the extreme one token each (2053 tokens at 1024). That is always correct, but
  a small group fills few of its experts' slots, so a warning tells about groups
  of less than half the size asked for.

  Args:
    n: an integer, the number of tokens.
    max_group_size: an integer, the size asked for.
    mesh_dim_size: an integer, the number of slices that the groups are split
      over.

  Returns:
    (num_groups, group_size), integers whose product is n.

  Raises:
    ValueError: if the mesh dimension does not divide n, or a size is not
      positive.
  """
  for name, value in (("n", n), ("max_group_size", max_group_size),
                      ("mesh_dim_size", mesh_dim_size)):
    if value <= 0:
      raise ValueError(f"{name}={value} must be a positive integer.")
  if n % mesh_dim_size:
    raise ValueError(
        f"{n} tokens cannot be split over {mesh_dim_size} slices of the mesh: "
        "make the number of tokens (run.batch_size times the sequence length, "
        "over tpu_estimator_model_fn.outer_batch_size) a multiple of "
        f"{mesh_dim_size}, or change run.mesh_shape.")
  fewest = max(1, n // max_group_size)
  first_multiple = -(-fewest // mesh_dim_size) * mesh_dim_size
  num_groups = next(number for number in range(
      first_multiple, n + 1, mesh_dim_size) if n % number == 0)
  group_size = n // num_groups
  if 2 * group_size < min(max_group_size, n // mesh_dim_size):
    _logger.warning(
        "%d tokens on %d mesh slices split into groups of only %d, where "
        "group_size = %d: small groups leave many expert slots empty. "
        "Choose a batch size with a divisor nearer to it.",
        n, mesh_dim_size, group_size, max_group_size)
  return num_groups, group_size


def expert_capacity(group_size, capacity_factor, num_experts, min_capacity):
  """Slots in one expert's buffer for one group.

  An even share of the group, times the factor, rounded down; no more than the
  whole group; and in any case the minimum, which may exceed the group.

  Args:
    group_size: an integer, tokens in a group.
    capacity_factor: a float, slots relative to an even share.
    num_experts: an integer, experts that share the group's tokens.
    min_capacity: an integer, the fewest slots.

  Returns:
    an integer, at least `min_capacity`.
  """
  even_share = int(group_size * capacity_factor / num_experts)
  return max(min(group_size, even_share), min_capacity)
