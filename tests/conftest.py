"""What all tests need: the compatibility patches, and TF1 graphs."""

import mtf_moe  # isort: skip  (must precede mesh_tensorflow)
import gc

import gin
import hypothesis
import pytest
import tensorflow.compat.v1 as tf

from tests.oracle import tally

assert mtf_moe
tf.disable_v2_behavior()

# Graphs are many objects that live until a test ends: to look through all of
# them every time some hundred more are made takes a tenth of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

# The same cases in every run, so that a change is what makes a test fail. Cases
# that build a graph take seconds: no deadline, and no search for a simpler one
# that fails as well, which would take minutes.
_COMMON = dict(
    derandomize=True, database=None, deadline=None, print_blob=False,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("ordinary", max_examples=28, **_COMMON)
hypothesis.settings.register_profile("deep", max_examples=190, **_COMMON)
hypothesis.settings.load_profile("ordinary")


@pytest.fixture(autouse=True)
def clear_gin():
  yield
  gin.clear_config()


@pytest.fixture
def heard(monkeypatch):
  """What is said and warned of."""
  lines = []
  for name in ("say", "warn"):
    monkeypatch.setattr(
        f"mtf_moe.run.console.{name}",
        lambda text, name=name: lines.append(f"{name}: {text}"))
  return lines


def pytest_terminal_summary(terminalreporter):
  """Shows what the generated comparisons counted."""
  total = tally.Tally()
  for report in terminalreporter.getreports("passed"):
    for name, value in report.user_properties:
      if name == tally.PROPERTY:
        total.merge(value)
  if total.cases:
    terminalreporter.section("generated comparison")
    for line in total.lines():
      terminalreporter.line(line)
