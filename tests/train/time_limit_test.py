"""What a run says that has no time left."""

import pytest

from mtf_moe.train import time_limit
from tests import gin_config

DECAY = ["linear_decay.steps_or_fraction = 1.0",
         "run.learning_rate_schedule = "
         "[0.5, @learning_rate_schedules.linear_decay]"]
STOPPED = "time is up (train_model.max_minutes = 1.5) at step 250 of 1,000"
GOES_ON = "the same command goes on from here"


def told(*bindings):
  gin_config.parse(bindings=bindings)
  return time_limit.told(250, 1000, 1.5)


def test_a_schedule_that_was_cut_short():
  # Of 1,000 steps 751 were left in the last one, and 1 in the last of all.
  assert told(*DECAY) == (
      f"{STOPPED}, at a learning rate of {0.5 * 0.751:.3g}, where "
      "run.learning_rate_schedule would have come down to 0.0005: "
      f"{GOES_ON}; a run that ends with its schedule in as much time has "
      "run.train_steps = 250, in a new --model_dir")


def test_a_schedule_for_more_steps_than_these():
  assert "at a learning rate of 0.438, where" in told(
      *DECAY, "run.total_run_steps = 2000")


@pytest.mark.parametrize("schedule, rate", [
    ("0.5", ", at a learning rate of 0.5"), ("None", "")])
def test_without_decay_nothing_is_missing(schedule, rate):
  assert told(f"run.learning_rate_schedule = {schedule}") == (
      f"{STOPPED}{rate}: {GOES_ON}")
