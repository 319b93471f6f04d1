"""Tags of what was recorded, read back."""

from mtf_moe.train import records

LAYER = "moe/transformer/block_000/layer_001/MoE2D"
ENCODER = "moe/encoder/block_001/layer_002/MoE2D"


def test_tags():
  assert records.parse([
      f"{LAYER}/outer/tokens/lost", "loss", "mine/outer/slots",
      f"{ENCODER}/inner/slots", "moe/mine/outer/slots"]) == {
          f"{LAYER}/outer/tokens/lost": records.Tag(
              "block_000/layer_001", "outer", "tokens/lost"),
          f"{ENCODER}/inner/slots": records.Tag(
              "encoder/block_001/layer_002", "inner", "slots"),
          # A layer in a network of one's own.
          "moe/mine/outer/slots": records.Tag("mine", "outer", "slots")}


def test_busiest():
  assert records.busiest({}) is None
  assert records.busiest({
      f"{LAYER}/outer/load/max_over_mean": 1.5,
      f"{ENCODER}/inner/load/max_over_mean": 2.5,
      f"{LAYER}/inner/tokens": 9.0, "mine/load/max_over_mean": 9.0}) == (
          2.5, "encoder/block_001/layer_002 inner")


def test_vital_signs_are_in_the_order_of_the_forward_pass():
  def tags(layer):
    return [f"{layer}/outer/tokens/not_finite", f"{layer}/outer/outputs/rms",
            f"{layer}/outer/tokens", f"{layer}/outer/router/entropy",
            f"{layer}/inner/slots", f"{layer}/inner/router/entropy"]

  def expected(layer):
    return [f"{layer}/outer/tokens/not_finite", f"{layer}/outer/router/entropy",
            f"{layer}/inner/router/entropy", f"{layer}/outer/outputs/rms"]

  assert records.vital_signs(["mine", *tags(LAYER), *tags(ENCODER)]) == (
      expected(LAYER) + expected(ENCODER))
