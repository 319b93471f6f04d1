"""Tags of what was recorded, read back."""

from mtf_moe.train import records

LAYER = "moe/transformer/block_000/layer_001/MoE2D"
ENCODER = "moe/encoder/block_001/layer_002/MoE2D"


def test_busiest():
  assert records.busiest({}) is None
  assert records.busiest({
      f"{LAYER}/outer/load/max_over_mean": 1.5,
      f"{ENCODER}/inner/load/max_over_mean": 2.5,
      f"{LAYER}/inner/tokens": 9.0, "mine/load/max_over_mean": 9.0}) == (
          2.5, "encoder/block_001/layer_002 inner")


def test_vital_signs_are_in_the_order_of_the_forward_pass():
  def tags(layer, *levels):
    entropies = [f"{layer}/{level}/router/entropy" for level in levels]
    return [f"{layer}/layer/outputs/rms", f"{layer}/{levels[0]}/tokens",
            *reversed(entropies), f"{layer}/{levels[-1]}/slots",
            f"{layer}/layer/tokens/not_finite"]

  def expected(layer, *levels):
    return [f"{layer}/layer/tokens/not_finite",
            *(f"{layer}/{level}/router/entropy" for level in levels),
            f"{layer}/layer/outputs/rms"]

  two = "outer", "inner"
  many = [f"level_{k}" for k in range(1, 12)]
  assert records.vital_signs([
      "mine", *tags(LAYER, *two), *tags(ENCODER, *many),
      *tags(f"{LAYER}_b", "level_1")]) == (
          expected(LAYER, *two) + expected(ENCODER, *many)
          + expected(f"{LAYER}_b", "level_1"))


def test_relative_loads_of_any_number_of_levels():
  three = [f"{ENCODER}/level_3/load/expert_{x}_{y}_0"
           for x in range(2) for y in range(2)]
  found = records.relative_loads({
      **dict(zip(three, [0.5, 0.25, 0.25, 0.0])),
      f"{LAYER}/level_1/load/expert_0": 0.25,
      f"{LAYER}/level_1/load/expert_1": 0.75,
      # Which is told by its experts, too.
      f"{LAYER}/level_1/load/min_over_mean": 0.5,
      f"{ENCODER}/level_1/load/min_over_mean": 0.125})
  assert {str(tag): value for tag, value in found.items()} == {
      **dict(zip(three, [2, 1, 1, 0])),
      f"{LAYER}/level_1/load/expert_0": 0.5,
      f"{LAYER}/level_1/load/expert_1": 1.5,
      f"{ENCODER}/level_1/load/min_over_mean": 0.125}


def test_what_vital_signs_mean():
  assert records.meaning(f"{LAYER}/level_3/router/entropy") == (
      "the level_3 router of block_000/layer_001")
  assert records.meaning(f"{ENCODER}/layer/outputs/rms") == (
      "the experts of encoder/block_001/layer_002")
