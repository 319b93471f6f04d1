"""What a run is warned of, from sequences of numbers with a known flaw."""

import math

import numpy as np
import pytest

from mtf_moe.train import health
from tests import described_layers

LAYER = "moe/transformer/block_000/layer_001/MoE2D"
OTHER = "moe/transformer/block_001/layer_001/MoE2D"


def warnings(watch, values):
  """What a watch says of each value."""
  return [said for step, value in enumerate(values, 1)
          if (said := watch.observe(step, value))]


def noisy_losses(num_steps):
  """A loss that falls as usual, from 9 to 3, with the noise of batches."""
  steps = np.arange(num_steps)
  noise = np.random.RandomState(0).normal(scale=0.1, size=num_steps)
  return list(3 + 6 * np.exp(-steps / 100) + noise)


def test_a_loss_that_falls_is_no_spike():
  assert warnings(health.LossWatch(), noisy_losses(2000)) == []


def test_a_spike_is_warned_of_once():
  losses = noisy_losses(500)
  losses[400] = losses[450] = 9.0
  said, = warnings(health.LossWatch(), losses)
  assert said.startswith("the loss leapt to 9.000 at step 401, from 3.")
  assert "run.learning_rate_schedule" in said


@pytest.mark.parametrize("layers, or_z_loss", [
    (None, ", or set z_loss = 0.001"), ([], ""),
    ([described_layers.layer("a", "MoE1D", 4),
      described_layers.layer("b", "wide/MoE2D"),
      described_layers.layer("c", "wide/MoE2D")],
     ", or set MoE1D.z_loss = 0.001 and wide/MoE2D.z_loss = 0.001")])
def test_a_spike_is_told_with_the_parameters_of_the_layers(layers, or_z_loss):
  said, = warnings(health.LossWatch(layers), [3.0] * 100 + [9.0])
  assert said.endswith(
      f"with a lower run.learning_rate_schedule{or_z_loss}. (Warned of once.)")


def test_the_first_steps_may_be_wild():
  assert warnings(health.LossWatch(), [9.0] * 10 + [50.0] + [9.0] * 10) == []


def shares(*values, layer=LAYER):
  return {f"{layer}/inner/load/expert_{number // 2}_{number % 2}": value
          for number, value in enumerate(values)}


def test_a_starving_expert_is_warned_of_once():
  even = shares(0.25, 0.25, 0.25, 0.25)
  # Below a tenth of a quarter.
  starving = shares(0.4, 0.3, 0.28, 0.02)
  layers = [
      described_layers.layer(OTHER.removeprefix("moe/"), "MoE2D"),
      described_layers.layer(LAYER.removeprefix("moe/"), "wide/MoE2D")]
  said, = warnings(health.StarvationWatch(layers), [
      even, starving, starving, even, *[starving] * 6])
  assert said.startswith(
      "hardly any token wants expert 1_1 of block_000/layer_001 inner: below a "
      "tenth of an even share in the last 3 records, up to step 7.")
  assert "A larger wide/MoE2D.loss_coef balances more." in said


def test_each_starving_expert_is_warned_of():
  first = shares(0.5, 0.5, 0.0, 0.0)
  second = shares(0.0, 1.0, 0.0, 0.0, layer=OTHER)
  said = warnings(health.StarvationWatch(), [first] * 3 + [first | second] * 4)
  assert len(said) == 2
  assert "expert 1_0 of block_000/layer_001 inner, expert 1_1" in said[0]
  assert "expert 0_0 of block_001/layer_001 inner" in said[1]
  assert "block_000" not in said[1]


def test_experts_that_are_not_recorded_one_by_one():
  least = {f"{LAYER}/outer/load/min_over_mean": 0.05}
  said, = warnings(health.StarvationWatch(), [least] * 5)
  assert "wants some experts of block_000/layer_001 outer:" in said
  # No layer is known.
  assert "A larger loss_coef balances more." in said


def test_experts_of_three_levels():
  starving = {f"{LAYER}/level_3/load/expert_{index}": share
              for index, share in [("0_0_0", 1.0), ("0_0_1", 0.0)]}
  said, = warnings(health.StarvationWatch(), [starving] * 3)
  assert "wants expert 0_0_1 of block_000/layer_001 level_3:" in said


SIGNS = {
    f"{LAYER}/layer/tokens/not_finite": 0.0, f"{LAYER}/outer/router/entropy": 1,
    f"{LAYER}/inner/router/entropy": 1.0, f"{LAYER}/layer/outputs/rms": 1.0,
    f"{OTHER}/layer/tokens/not_finite": 0.0,
    f"{OTHER}/outer/router/entropy": 1.0}


@pytest.mark.parametrize("changed, named", [
    ({f"{LAYER}/inner/router/entropy": math.nan},
     "the inner router of block_000/layer_001"),
    ({f"{LAYER}/layer/outputs/rms": math.inf,
      f"{OTHER}/layer/tokens/not_finite": 64.0},
     "the experts of block_000/layer_001"),
    ({f"{OTHER}/layer/tokens/not_finite": 1.0,
      f"{OTHER}/outer/router/entropy": math.nan},
     "what entered the mixture of block_001/layer_001, from the layers before"),
])
def test_what_was_first(changed, named):
  """The earliest step, and in it the earliest in the forward pass."""
  watch = health.OriginWatch()
  watch.observe(6, SIGNS)
  watch.observe(7, SIGNS | changed)
  watch.observe(8, dict.fromkeys(SIGNS, math.nan))
  assert watch.describe().startswith(f"First to go, at step 7: {named}")


def test_nothing_in_the_mixtures():
  watch = health.OriginWatch()
  watch.observe(6, SIGNS)
  assert "began elsewhere" in watch.describe()


def test_mixtures_that_are_not_watched():
  watch = health.OriginWatch()
  watch.observe(6, {})
  assert "not known: mixtures are watched" in watch.describe()
  assert watch.describe().endswith("with summaries = True.")


def test_mixtures_that_may_not_be_watched():
  watch = health.OriginWatch([described_layers.layer("a", "wide/MoE2D")])
  assert watch.describe().endswith("with wide/MoE2D.summaries = True.")
  assert "the model has none." in health.OriginWatch([]).describe()
