"""How busy the experts of a model were, from what its training recorded."""

from collections.abc import Sequence
import dataclasses
import math
import os

import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe import monitoring
from mtf_moe import tags
from mtf_moe.run import paths
from mtf_moe.surgery.layers import FeedForward

_EVENTS = r".*\.out\.tfevents\..*"
# A single step says little of an expert.
_RECORDED_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Loads:
  """The shares of tokens that experts had.

  Attributes:
    directory: a model directory, whose event files were read.
    steps: the recorded steps that they are means of, in their order.
    shares: of single experts by the scope of the layer, the number of the level
      (1 for the first) and the expert's index at each level up to that.
  """

  directory: str
  steps: tuple[int, ...]
  shares: dict[tuple[str, int, tuple[int, ...]], float]

  def of(self, layer: FeedForward, levels: Sequence[int], flag: str
         ) -> list[np.ndarray | None]:
    """The shares of a layer's experts.

    Args:
      layer: the layer.
      levels: the numbers of the levels that they are needed of, 1 the first.
      flag: of the command line, which wants them, for the message.

    Returns:
      of each level an array [x], [x, y] and so on; None where not needed

    Raises:
      ValueError: if nothing was recorded of one that is needed.
    """
    return [self._of_level(layer, number, flag) if number in levels else None
            for number in range(1, len(layer.experts) + 1)]

  def _of_level(self, layer, number, flag):
    shape = layer.experts[:number]
    try:
      return np.array([self.shares[layer.scope, number, index]
                       for index in np.ndindex(*shape)]).reshape(shape)
    except KeyError:
      pass
    too_many = (
        f" (levels of more than {monitoring.MAX_EXPERTS_SHOWN} experts have "
        "none)" if math.prod(shape) > monitoring.MAX_EXPERTS_SHOWN else "")
    raise ValueError(
        f"{flag} goes by the loads of single experts, and the event files in "
        f"{self.directory} have none of {layer.scope}, level {number}"
        f"{too_many}: set --fewer_experts=mean or first, which need none, or "
        "train for a step more with the layer's summaries = True, which "
        "records them.")


def read(directory: str, last_step: int | None) -> Loads:
  """Reads what training recorded of single experts.

  Args:
    directory: a model directory. Without event files, nothing was recorded.
    last_step: later ones do not count; None if all do.

  Returns:
    the means over the last recorded steps, 5 if there are as many
  """
  recorded: dict[int, dict[str, tuple[float, float]]] = {}
  for name in paths.names(directory, _EVENTS):
    path = os.path.join(directory, name)
    paths.check_plain(path)
    for event in _events(path):
      if last_step is not None and event.step > last_step:
        continue
      for value in event.summary.value:
        if tags.EXPERT_LOAD in value.tag and (
            share := _number(value)) is not None:
          # A run that was killed repeats steps: what was written last counts.
          of_step = recorded.setdefault(event.step, {})
          if of_step.get(value.tag, (-math.inf,))[0] <= event.wall_time:
            of_step[value.tag] = event.wall_time, share
  steps = tuple(sorted(recorded)[-_RECORDED_STEPS:])
  found: dict[tuple[str, int, tuple[int, ...]], list[float]] = {}
  for step in steps:
    for name, tag in tags.parse(recorded[step]).items():
      if (index := tags.expert_of(tag.metric)) is not None:
        found.setdefault((tag.scope, tags.number_of(tag.level), index),
                         []).append(recorded[step][name][1])
  return Loads(directory, steps, {
      place: float(np.mean(shares)) for place, shares in found.items()})


def _events(path):
  """The events of a file, up to a record that is cut off, if there is one."""
  try:
    yield from tf.train.summary_iterator(path)
  except tf.errors.DataLossError:
    return


def _number(value):
  """A scalar, which TPUs write as a tensor; None where it is not finite."""
  number = value.simple_value
  if value.HasField("tensor"):
    array = tf.make_ndarray(value.tensor)
    number = float(array) if array.ndim == 0 else math.nan
  return number if math.isfinite(number) else None
