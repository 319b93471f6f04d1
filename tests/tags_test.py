"""The grammar of tags, read back."""

import pytest

from mtf_moe import tags

LAYER = "moe/transformer/block_000/layer_001/MoE2D"
ENCODER = "moe/encoder/block_001/layer_002/MoE"


def parts(tag):
  return tag.layer, tag.level, tag.metric


def test_parts_of_tags():
  found = tags.parse([
      f"{LAYER}/outer/tokens/lost", "loss", "mine/outer/slots",
      f"{ENCODER}/level_12/slots", f"{LAYER}/layer/outputs/rms",
      "moe/mine/inner/slots", "moe/outer/tokens"])
  assert {name: parts(tag) for name, tag in found.items()} == {
      f"{LAYER}/outer/tokens/lost": (
          "block_000/layer_001", "outer", "tokens/lost"),
      f"{ENCODER}/level_12/slots": (
          "encoder/block_001/layer_002", "level_12", "slots"),
      f"{LAYER}/layer/outputs/rms": (
          "block_000/layer_001", tags.LAYER, "outputs/rms"),
      # A layer in a network of one's own, and one that is all of it.
      "moe/mine/inner/slots": ("mine", "inner", "slots"),
      "moe/outer/tokens": ("", "outer", "tokens")}
  assert all(str(tag) == name for name, tag in found.items())


def test_facts_of_the_whole_layer_in_older_runs():
  """They were filed under the first level."""
  for metric in (tags.NOT_FINITE, tags.OUTPUTS):
    tag, = tags.parse([f"{LAYER}/outer/{metric}"]).values()
    assert parts(tag) == ("block_000/layer_001", tags.LAYER, metric)


@pytest.mark.parametrize("metric, index", [
    ("load/expert_2", (2,)), ("load/expert_2_0_11", (2, 0, 11)),
    ("load/expert_of_the_day", None), ("load/expert_1_", None),
    ("load/max_over_mean", None)])
def test_whose_load(metric, index):
  assert tags.expert_of(metric) == index


@pytest.mark.parametrize("level, number, title", [
    ("outer", 1, "level one (outer)"), ("inner", 2, "level two (inner)"),
    ("level_1", 1, "level one"), ("level_3", 3, "level three"),
    ("level_9", 9, "level 9")])
def test_levels_for_people(level, number, title):
  assert tags.number_of(level) == number
  assert tags.title_of(level) == title
