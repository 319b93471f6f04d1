"""What is said where train_model.max_minutes ends training."""

from mtf_moe.run import gin_bindings
from mtf_moe.run import optimization

# Where the schedule ends below this share of the rate, training was cut short.
_STILL_DECAYS = 0.9


def told(step: int, train_steps: int, max_minutes: float) -> str:
  """Where training stands, and how to go on: one line.

  Args:
    step: the last one that was made.
    train_steps: the step to stop at.
    max_minutes: the limit.
  """
  rate, last = _rates(train_steps, step - 1, train_steps - 1)
  says = (f"time is up (train_model.max_minutes = {max_minutes:g}) at step "
          f"{step:,} of {train_steps:,}")
  goes_on = "the same command goes on from here"
  if rate is None:
    return f"{says}: {goes_on}"
  says += f", at a learning rate of {rate:.3g}"
  if last > _STILL_DECAYS * rate:
    return f"{says}: {goes_on}"
  return (f"{says}, where run.learning_rate_schedule would have come down to "
          f"{last:.3g}: {goes_on}; a run that ends with its schedule in as "
          f"much time has run.train_steps = {step}, in a new --model_dir")


def _rates(train_steps, *steps):
  """The learning rates of steps; None where the optimizer has its own."""
  given, total = (gin_bindings.bound("utils.run", name) for name in (
      "learning_rate_schedule", "total_run_steps"))
  if given is None:
    return [None for _ in steps]
  return optimization.rates(
      given, train_steps if total is None else total, steps)
