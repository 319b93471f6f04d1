"""What training cost and what evaluations found, as data beside the model.

`training.json` has what training has cost up to its last step, and
`results.jsonl` a line for every evaluation.
"""

import collections
from collections.abc import Mapping
import dataclasses
import datetime
import json
import math
import os
import statistics
import time
from typing import Any

from mtf_moe import tags as tags_lib
from mtf_moe.run import console
from mtf_moe.run import paths
from mtf_moe.train import made_with

FILE = "results.jsonl"
TRAINING_FILE = "training.json"

_STEPS_OF_LOSS = 100
_RECORDED_STEPS = 5
_BEGAN = time.monotonic()


@dataclasses.dataclass(frozen=True)
class Training:
  """What a model was trained with, in all runs that went on from one another.

  Attributes:
    step: the last one.
    tokens: in the batches of all steps, padding included.
    loss: with all that is added to it, the mean of the last steps, 100 where
      one run made as many.
    loss_without_auxiliary: the same without what mixtures added to it in the
      last step that was recorded; None where they record nothing.
    cpu_seconds: of the processes, of all their threads, from the first step to
      the last; None where a run was killed, and with it what it took.
    seconds: likewise, on the clock.
    records: what mixtures recorded, by level and metric, such as
      "inner/load/max_over_mean": the mean over layers and the last recorded
      steps, 5 where one run recorded as many; None where they record nothing.
  """

  step: int
  tokens: int
  loss: float | None = None
  loss_without_auxiliary: float | None = None
  cpu_seconds: float | None = None
  seconds: float | None = None
  records: dict[str, float] | None = None


def read_training(model_dir: str) -> Training | None:
  """What `keep_training` wrote; None where there is none, or it is damaged."""
  path = os.path.join(model_dir, TRAINING_FILE)
  try:
    text = paths.read_text(path)
    return None if text is None else Training(**json.loads(text))
  except (OSError, TypeError, ValueError) as error:
    console.warn(f"{path} cannot be read ({error}), so that it is not known "
                 "what the training before took")
    return None


def keep_training(model_dir: str, training: Training):
  """Writes the file, all of it or nothing."""
  paths.replace_text(
      os.path.join(model_dir, TRAINING_FILE),
      json.dumps(dataclasses.asdict(training), indent=1) + "\n")


class Meter:
  """Measures a training process, and adds it to those before."""

  def __init__(self, before: Training | None, data_step: int,
               tokens_per_step: int):
    """Makes it.

    Args:
      before: what is known of the runs before.
      data_step: the step at which the data began, that of a checkpoint where
        the run began from one.
      tokens_per_step: the tokens of a batch.
    """
    self._before = before
    self._data_step = data_step
    self._tokens_per_step = tokens_per_step
    self._losses = collections.deque(maxlen=_STEPS_OF_LOSS)
    self._auxiliary = None
    self._records = collections.deque(maxlen=_RECORDED_STEPS)

  def begin(self, first_step: int):
    """Starts the clocks, before the step after `first_step`."""
    before = self._before
    if before is None or before.step != first_step:
      # All steps before had as many tokens, as far as is known.
      nothing = 0.0 if first_step == self._data_step else None
      before = Training(
          first_step, (first_step - self._data_step) * self._tokens_per_step,
          cpu_seconds=nothing, seconds=nothing)
    self._before = before
    self._began = time.process_time(), time.monotonic()

  def observe(self, loss: float, records: Mapping[str, float]):
    """Takes note of a step, and of what was recorded of it, if anything was."""
    self._losses.append(loss)
    tags = tags_lib.parse(records)
    auxiliary = [
        float(records[name]) for name, tag in tags.items()
        if tag.metric == tags_lib.AUXILIARY_LOSS]
    if auxiliary:
      self._auxiliary = math.fsum(auxiliary)
    if tags:
      self._records.append(_means_by_level(records, tags))

  def end(self, step: int) -> Training:
    """All of it, up to a step."""
    before, (cpu, clock) = self._before, self._began
    loss = statistics.fmean(self._losses) if self._losses else before.loss
    return dataclasses.replace(
        before, step=step,
        tokens=before.tokens + (step - before.step) * self._tokens_per_step,
        cpu_seconds=_sum(before.cpu_seconds, time.process_time() - cpu),
        seconds=_sum(before.seconds, time.monotonic() - clock),
        loss=loss, loss_without_auxiliary=(
            None if self._auxiliary is None else loss - self._auxiliary),
        records=_means(self._records) if self._records else before.records)


def _means_by_level(records, tags):
  """What is recorded of levels and layers, not of single experts."""
  return _means(
      {f"{tag.level}/{tag.metric}": float(records[name])}
      for name, tag in tags.items()
      if tags_lib.expert_of(tag.metric) is None)


def _means(found):
  """The mean of each name's values in dicts, rounded for people."""
  values = collections.defaultdict(list)
  for one in found:
    for name, value in one.items():
      values[name].append(value)
  return {name: round(statistics.fmean(each), 6)
          for name, each in values.items()}


def _sum(before, seconds):
  return None if before is None else round(before + seconds, 3)


def append(model_dir: str, found: Mapping[str, Any]):
  """Adds a line to the results of a model directory.

  Beside what was found, it has what the model is: "tokens_seen", "training" (a
  `Training`, where that is known of the step), "seeds", "configuration" (the
  same for all seeds) and "versions"; and of this process, "cpu_seconds" and
  "seconds" up to now, and "written", the time.

  Args:
    model_dir: a string.
    found: what JSON has, by name; "step" is that of the checkpoint.
  """
  training = read_training(model_dir)
  if training is not None and training.step != found["step"]:
    training = None
  record = made_with.read(model_dir)
  line = json.dumps({
      **found,
      "tokens_seen": training and training.tokens,
      "training": training and dataclasses.asdict(training),
      "cpu_seconds": round(time.process_time(), 3),
      "seconds": round(time.monotonic() - _BEGAN, 3),
      "seeds": record and record.settings.seeds,
      "configuration": record and record.configuration,
      "versions": made_with.versions(),
      "written": datetime.datetime.now(datetime.UTC).isoformat(
          timespec="seconds")}) + "\n"
  path = os.path.join(model_dir, FILE)
  if paths.is_remote(path):  # Where nothing can be appended.
    paths.replace_text(path, (paths.read_text(path) or "") + line)
    return
  with open(path, "a") as f:
    f.write(line)


def read(model_dir: str) -> list[dict[str, Any]]:
  """The lines of a model directory, the first one first."""
  text = paths.read_text(os.path.join(model_dir, FILE)) or ""
  return [json.loads(line) for line in text.splitlines()]
