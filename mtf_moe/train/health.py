"""What is wrong with a run, from what it reports: no TensorFlow here."""

from collections.abc import Mapping, Sequence
import math

from mtf_moe import tags
from mtf_moe.run import layer_facts
from mtf_moe.run.layer_facts import LayerFacts
from mtf_moe.train import records as records_lib

# What the watches below know of a model: its mixtures, or None.
_Layers = Sequence[LayerFacts] | None


class LossNotFinite(Exception):
  """The loss became NaN or infinite.

  Attributes:
    message: what happened. Gin appends to the text of an exception.
  """

  def __init__(self, message):
    super().__init__(message)
    self.message = message


def z_loss_setting(layers: _Layers) -> str:
  """What keeps routers from extremes, in gin; "" where there are no routers.

  Args:
    layers: the mixtures of the model, or None where they are not known.
  """
  if layers is not None and not layers:
    return ""
  return layer_facts.settings(layers, "z_loss", 0.001)


class LossWatch:
  """Warns once, when the loss leaps far above where it was.

  The loss is compared with its moving average, in moving standard deviations.
  """

  _DECAY = 0.98  # An average over the last 50 steps or so.
  _FIRST_STEPS = 50
  _DEVIATIONS = 8.0
  _RATIO = 1.1  # Where the loss hardly moves, deviations are small.

  def __init__(self, layers: _Layers = None):
    self._z_loss = z_loss_setting(layers)
    self._steps = 0
    self._mean = self._variance = 0.0
    self._warned = False

  def observe(self, step: int, loss: float) -> str | None:
    """Takes note of a finite loss; returns a warning, or None."""
    warning = None
    if self._is_spike(loss):
      warning = (
          f"the loss leapt to {loss:.3f} at step {step:,}, from "
          f"{self._mean:.3f} on average before: if it stays there, go back to "
          "an earlier checkpoint with a lower run.learning_rate_schedule"
          + (f", or set {self._z_loss}" if self._z_loss else "")
          + ". (Warned of once.)")
      self._warned = True
    decay = min(self._DECAY, self._steps / (self._steps + 1))
    difference = loss - self._mean
    self._mean += (1 - decay) * difference
    self._variance = decay * (
        self._variance + (1 - decay) * difference * difference)
    self._steps += 1
    return warning

  def _is_spike(self, loss):
    if self._warned or self._steps < self._FIRST_STEPS:
      return False
    limit = self._mean + self._DEVIATIONS * math.sqrt(self._variance)
    return loss > max(limit, self._RATIO * self._mean)


class StarvationWatch:
  """Warns once of each expert that hardly any token wants for a while."""

  _SHARE = 0.1  # Of an even share.
  _RECORDS = 3

  def __init__(self, layers: _Layers = None):
    self._layers = layers or ()
    self._starving = {}  # In how many records so far, by expert.

  def observe(self, step: int, records: Mapping[str, float]) -> str | None:
    """Takes note of what was recorded; returns a warning, or None.

    Args:
      step: an integer.
      records: values by tag, as `monitoring.record` names them.
    """
    new = []
    for expert, share in records_lib.relative_loads(records).items():
      if share >= self._SHARE:
        self._starving[expert] = min(0, self._starving.get(expert, 0))
        continue
      self._starving[expert] = self._starving.get(expert, 0) + 1
      if self._starving[expert] == self._RECORDS:
        self._starving[expert] = -math.inf  # Not again.
        new.append(expert)
    if not new:
      return None
    return (
        f"hardly any token wants {', '.join(map(_named, new))}: below a tenth "
        f"of an even share in the last {self._RECORDS} records, up to step "
        f"{step:,}.{self._remedy(new)} (Warned of once.)")

  def _remedy(self, starving):
    """A sentence, if there is something that balances these experts."""
    places = {(tag.scope, tag.level) for tag in starving}
    found = [layer.balanced_by(number) for layer in self._layers
             for number, level in enumerate(layer.levels)
             if (layer.scope, level.name) in places]
    if not found:  # Of layers that are not known.
      found = [layer_facts.Parameter("loss_coef")]
    names = dict.fromkeys(parameter.name for parameter in found if parameter)
    return f" A larger {' or '.join(names)} balances more." if names else ""


def _named(tag):
  """An expert, by the tag of its load."""
  index = tags.expert_of(tag.metric)
  return (f"some experts of {tag.place}" if index is None else
          f"expert {'_'.join(map(str, index))} of {tag.place}")


class OriginWatch:
  """Remembers what was the first thing in a model that was not finite."""

  def __init__(self, layers: _Layers = None):
    self._layers = layers
    self._first = None
    self._watches = False

  def observe(self, step: int, vital_signs: Mapping[str, float]):
    """Takes note of a step.

    Args:
      step: an integer.
      vital_signs: values by tag, in the order of the forward pass.
    """
    self._watches = bool(vital_signs)
    if self._first is None:
      for tag, value in vital_signs.items():
        if not math.isfinite(value) or (
            tag.endswith(tags.NOT_FINITE) and value):
          self._first = step, tag
          return

  def describe(self) -> str:
    """A sentence."""
    if not self._watches:
      return f"What was first is not known: {self._why_not_watched()}."
    if self._first is None:
      return ("The inputs, routers and outputs of all mixtures were finite, so "
              "it began elsewhere.")
    step, tag = self._first
    return f"First to go, at step {step:,}: {records_lib.meaning(tag)}."

  def _why_not_watched(self):
    if self._layers is not None and not self._layers:
      return "only mixtures are watched, and the model has none"
    return ("mixtures are watched but on a TensorFlow TPU, without "
            "microbatches, with "
            + layer_facts.settings(self._layers, "summaries", True))
