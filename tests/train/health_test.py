"""What a run is warned of, from sequences of numbers with a known flaw."""

import math

import numpy as np
import pytest

from mtf_moe.train import health

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


def test_the_first_steps_may_be_wild():
  assert warnings(health.LossWatch(), [9.0] * 10 + [50.0] + [9.0] * 10) == []


def shares(*values, layer=LAYER):
  return {f"{layer}/inner/load/expert_{number // 2}_{number % 2}": value
          for number, value in enumerate(values)}


def test_a_starving_expert_is_warned_of_once():
  even = shares(0.25, 0.25, 0.25, 0.25)
  # Below a tenth of a quarter.
  starving = shares(0.4, 0.3, 0.28, 0.02)
  said, = warnings(health.StarvationWatch(), [
      even, starving, starving, even, *[starving] * 6])
  assert said.startswith(
      "hardly any token wants expert 1_1 of block_000/layer_001 inner: below a "
      "tenth of an even share in the last 3 records, up to step 7.")
  assert "MoE2D.loss_coef" in said


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
