"""Arrays of experts and routers, against what can be worked out by hand."""

import itertools

import numpy as np
import pytest

from mtf_moe.surgery import experts


def test_checkpoints_have_the_last_level_first():
  array = np.arange(24).reshape(4, 3, 2)  # [y, x, m]
  turned = experts.from_checkpoint(array, 2)
  for x, y in itertools.product(range(3), range(4)):
    np.testing.assert_array_equal(turned[x, y], array[y, x])
  np.testing.assert_array_equal(experts.to_checkpoint(turned, 2), array)


def test_levels_count_experts_through():
  flat = np.arange(12.0)[:, np.newaxis]
  two = experts.resized(flat, [12], [3, 4])
  assert two[2, 1, 0] == 2 * 4 + 1
  np.testing.assert_array_equal(experts.resized(two, [3, 4], [12]), flat)
  three = experts.resized(two, [3, 4], [3, 2, 2])
  assert three[2, 1, 0, 0] == (2 * 2 + 1) * 2
  np.testing.assert_array_equal(experts.resized(three, [3, 2, 2], [3, 4]), two)


def test_copies_and_means():
  two = np.array([[[1.0], [2.0]], [[3.0], [4.0]]])
  more = experts.resized(two, [2, 2], [4, 2])
  assert more[..., 0].tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
  inner = experts.resized(two, [2, 2], [2, 4])
  assert inner[..., 0].tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
  mixed = experts.resized(two, [2, 2], [1, 4])
  assert mixed[..., 0].tolist() == [[2, 2, 3, 3]]
  assert experts.resized(two, [2, 2], []).tolist() == [2.5]
  dense = experts.resized(np.array([7.0]), [], [2, 2])
  assert dense.tolist() == [[[7], [7]], [[7], [7]]]


def test_numbers_that_do_not_divide():
  with pytest.raises(ValueError, match="4 experts cannot become 6"):
    experts.resized(np.zeros([4, 1]), [4], [6])


def test_parts_add_up_to_the_dense_layer():
  rng = np.random.default_rng(0)
  wi, wo = rng.normal(size=(3, 8)), rng.normal(size=(8, 5))
  x = rng.normal(size=3)
  expected = np.maximum(x @ wi, 0) @ wo
  wis = experts.parts_of_hidden(wi, "wi/kernel", 2)
  wos = experts.parts_of_hidden(wo, "wo/kernel", 2)
  assert wis.shape == (4, 3, 2) and wos.shape == (4, 2, 5)
  outputs = [np.maximum(x @ one, 0) @ other for one, other in zip(wis, wos)]
  np.testing.assert_allclose(np.mean(outputs, 0), expected, rtol=1e-12)


def softmax(logits):
  shifted = np.exp(logits - logits.max(-1, keepdims=True))
  return shifted / shifted.sum(-1, keepdims=True)


@pytest.mark.parametrize("sizes", [(3, 4), (2, 3, 2)])
def test_routers_there_and_back(sizes):
  rng = np.random.default_rng(0)
  flat = rng.normal(size=(5, *sizes)).astype(np.float32)
  kernels = experts.routers_of_levels(flat)
  assert [k.shape for k in kernels] == [
      (5, *sizes[:n]) for n in range(1, len(sizes) + 1)]
  np.testing.assert_array_equal(experts.flat_router(kernels), flat)


def test_inside_of_a_group_chances_stay_as_they_are():
  rng = np.random.default_rng(1)
  flat = rng.normal(size=(5, 3, 4)).astype(np.float32)
  x = rng.normal(size=5)
  _, inner = experts.routers_of_levels(flat)
  joint = softmax(np.einsum("m,mxy->xy", x, flat).reshape(-1)).reshape(3, 4)
  np.testing.assert_allclose(
      softmax(np.einsum("m,mxy->xy", x, inner)),
      joint / joint.sum(-1, keepdims=True), rtol=1e-6)


def test_a_flat_router_has_the_chances_of_two_where_groups_are_even():
  """Within groups logits are permutations of the same: their sums are equal."""
  outer, inner = np.array([[1.0, -0.5]]), np.array([[[0.0, 2.0], [2.0, 0.0]]])
  flat = experts.flat_router([outer, inner])
  expected = softmax(outer[0])[:, np.newaxis] * softmax(inner[0])
  np.testing.assert_allclose(
      softmax(flat[0].reshape(-1)).reshape(2, 2), expected, rtol=1e-12)


def test_routers_of_checkpoints():
  kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # [y, x, m, z]
  turned = experts.router_from_checkpoint(kernel)
  assert turned[3, 2, 1, 4] == kernel[1, 2, 3, 4]  # [m, x, y, z]
  np.testing.assert_array_equal(
      experts.router_to_checkpoint(turned), kernel)


def column(*values):
  """Experts of one number each."""
  return np.array(values)[..., np.newaxis]


def test_the_busiest_stay_in_their_order():
  """Of each group its own; of two that are as busy, the first."""
  loads = [None, np.array([[0.1, 0.3, 0.2], [0.1, 0.1, 0.2]])]
  fewer = experts.Fewer(experts.BUSIEST, loads)
  array = column([1, 2, 3], [4, 5, 6])
  kept = experts.resized(array, [2, 3], [2, 2], fewer)
  assert kept[..., 0].tolist() == [[2, 3], [4, 6]]
  flat = experts.resized(array, [2, 3], [4], fewer)
  assert flat[..., 0].tolist() == [1, 2, 3, 6]
  assert experts.resized(array, [2, 3], [], fewer).tolist() == [2]
  both = experts.Fewer(experts.BUSIEST, [np.array([0.4, 0.6]), loads[1]])
  # Of the groups the second, whose third expert is the busiest.
  assert experts.resized(array, [2, 3], [1, 1], both).tolist() == [[[6]]]
  assert experts.resized(array, [2, 3], [1, 6], both)[..., 0].tolist() == [
      [4, 4, 5, 5, 6, 6]]


def test_the_first_stay():
  fewer = experts.Fewer(experts.FIRST)
  array = column([1, 2, 3], [4, 5, 6])
  assert experts.resized(array, [2, 3], [1, 2], fewer)[..., 0].tolist() == [
      [1, 2]]
  assert experts.resized(array, [2, 3], [4], fewer)[..., 0].tolist() == [
      1, 2, 3, 4]


def test_means_by_load():
  loads = np.array([0.1, 0.3, 0.0, 0.0])
  fewer = experts.Fewer(experts.WEIGHTED, [loads])
  array = column(1.0, 5.0, 2.0, 4.0)
  merged = experts.resized(array, [4], [2], fewer)
  # (0.1 * 1 + 0.3 * 5) / 0.4; where nobody came, the plain mean.
  np.testing.assert_allclose(merged[:, 0], [4.0, 3.0], rtol=1e-12)


def test_means_by_load_of_groups_and_of_their_experts():
  """The experts of merged groups have the tokens of both."""
  outer = np.array([0.25, 0.75])
  inner = np.array([[0.2, 0.2], [0.1, 0.5]])
  fewer = experts.Fewer(experts.WEIGHTED, [outer, inner])
  merged = experts.resized(
      column([1.0, 2.0], [3.0, 4.0]), [2, 2], [1, 1], fewer)
  first, second = 0.25 * 1 + 0.75 * 3, 0.25 * 2 + 0.75 * 4
  np.testing.assert_allclose(
      merged.reshape(-1), (0.3 * first + 0.7 * second) / 1.0, rtol=1e-12)


def test_what_is_kept_need_not_divide():
  loads = np.array([0.1, 0.4, 0.2, 0.3])
  fewer = experts.Fewer(experts.BUSIEST, [loads])
  assert experts.resized(column(1, 2, 3, 4), [4], [3], fewer)[
      ..., 0].tolist() == [2, 3, 4]
  with pytest.raises(ValueError, match="4 experts cannot become 6"):
    experts.resized(column(1, 2, 3, 4), [4], [6], fewer)
  with pytest.raises(ValueError, match="--fewer_experts=busiest or first"):
    experts.resized(column(1, 2, 3, 4), [4], [3])
