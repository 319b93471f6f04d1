"""Reads what a run left in its directory: event files, configuration, plan."""

from collections.abc import Sequence
import dataclasses
import json
import math
import os
import re

import numpy as np
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tb_logging
from tensorboard.util import tensor_util
import tensorflow.compat.v1 as tf

from mtf_moe.report import plans
from mtf_moe.run import layer_facts
from mtf_moe.run import paths
from mtf_moe.run.layer_facts import LayerFacts


@dataclasses.dataclass(frozen=True)
class Series:
  """A scalar over the steps in which it was recorded.

  Attributes:
    steps: integers, increasing, [n].
    values: floats, [n].
  """

  steps: np.ndarray
  values: np.ndarray

  @property
  def last(self) -> float:
    return float(self.values[-1])


@dataclasses.dataclass(frozen=True)
class Run:
  """What is known of one run.

  Attributes:
    name: short, different from those of other runs.
    directory: the model directory.
    scalars: a dict from tag to `Series`, of training.
    evaluations: a dict from the name of an evaluation to such a dict.
    config: the operative gin configuration, or None.
    plan: what `mtf_moe.plan --json` printed, or None.
    layers: what its mixtures are, or None where it has not kept that.
  """

  name: str
  directory: str
  scalars: dict[str, Series]
  evaluations: dict[str, dict[str, Series]]
  config: str | None = None
  plan: dict | None = None
  layers: tuple[LayerFacts, ...] | None = None

  @property
  def last_step(self) -> int:
    return int(max(series.steps[-1] for series in self.scalars.values()))

  def parameter(self, name: str) -> str | None:
    """A parameter as the operative configuration has it, such as "1.25".

    Args:
      name: such as "MoE2D.capacity_factor_train".

    Returns:
      a string, or None where it is not set to one value on one line
    """
    # Gin writes modules where the rest of a name would be of two things.
    scope, slash, plain = name.rpartition("/")
    found = re.findall(
        rf"^{re.escape(scope + slash)}(?:mtf_moe\.)?{re.escape(plain)} = "
        r"(\S.*)$", self.config or "", re.MULTILINE)
    return found[0] if len(found) == 1 and found[0] != "\\" else None


def read(directories: Sequence[str]) -> list[Run]:
  """Reads runs; says which, as large event files take some seconds.

  Args:
    directories: the model directories. One that is given twice is read once.

  Returns:
    a list of `Run`s

  Raises:
    ValueError: if one of them does not exist or holds no scalars, or if its
      plan or its layers are none.
  """
  check(directories)
  directories = list(dict.fromkeys(map(_without_slash, directories)))
  return [_read_run(directory, name)
          for directory, name in zip(directories, _names(directories))]


def check(directories: Sequence[str]):
  """Looks for event files, without reading them.

  Args:
    directories: the model directories.

  Raises:
    ValueError: if there are none.
  """
  for directory in directories:
    if not tf.io.gfile.isdir(directory):
      raise ValueError(
          f"--model_dir={directory} is no directory: give the --model_dir of a "
          "run of mtf_moe.train.")
    if not _event_files(directory):
      raise ValueError(
          f"--model_dir={directory} has no event files "
          "(events.out.tfevents.*): training writes them in its first step. "
          "Was another directory meant?")


def _without_slash(directory):
  return directory.rstrip("/") or "/"


def _names(directories):
  """The last parts of the paths, as many as tell them apart."""
  parts = [directory.split("/") for directory in directories]
  for number in range(1, max(map(len, parts)) + 1):
    names = ["/".join(part[-number:]) for part in parts]
    if len(set(names)) == len(names):
      break
  return names


def _read_run(directory, name):
  print(f"reading {directory}", flush=True)
  scalars = merge_restarts([_points(f) for f in _event_files(directory)])
  if not scalars:
    raise ValueError(
        f"--model_dir={directory} has event files without scalars: no step "
        "has been recorded yet. Try again when training has begun.")
  evaluations = {}
  for path in _paths(directory, "eval_.*"):
    points = [point for f in _event_files(path) for point in _points(f)]
    if points:
      evaluations[os.path.basename(path)] = _series(points)
  return Run(
      name=name, directory=directory, scalars=scalars, evaluations=evaluations,
      config=paths.read_text(f"{directory}/operative_config.gin"),
      plan=_plan(f"{directory}/plan.json"),
      layers=layer_facts.read(directory))


@dataclasses.dataclass(frozen=True)
class Point:
  """One scalar of an event file."""

  tag: str
  step: int
  value: float
  wall_time: float


def _event_files(directory):
  files = _paths(directory, r".*\.out\.tfevents\..*")
  for file in files:
    paths.check_plain(file)
  return files


def _paths(directory, pattern):
  return [os.path.join(directory, name)
          for name in paths.names(directory, pattern)]


def _points(path) -> list[Point]:
  """All scalars of a file, up to a record that is cut off, if there is one."""
  # It warns of graphs that are written twice, as Estimators do.
  tb_logging.get_logger().setLevel("ERROR")
  events = event_accumulator.EventAccumulator(
      path, purge_orphaned_data=True, size_guidance={
          event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}).Reload()
  tags = events.Tags()
  points = [Point(tag, event.step, event.value, event.wall_time)
            for tag in tags[event_accumulator.SCALARS]
            for event in events.Scalars(tag)]
  # On a TPU, mesh_tensorflow writes scalars as tensors.
  points += [
      Point(tag, event.step, value, event.wall_time)
      for tag in tags[event_accumulator.TENSORS] if _is_scalar(events, tag)
      for event in events.Tensors(tag)
      if (value := _as_float(event.tensor_proto)) is not None]
  return points


def _as_float(tensor_proto):
  """The value of a tensor, or None where it is no number."""
  try:
    return float(tensor_util.make_ndarray(tensor_proto))
  except (TypeError, ValueError):
    return None


def _is_scalar(events, tag):
  """Whether a tensor is one; evaluations write a path of a checkpoint, too."""
  try:
    return tag in events.PluginTagToContent("scalars")
  except KeyError:  # There are none in this file.
    return False


def merge_restarts(files: Sequence[Sequence[Point]]) -> dict[str, Series]:
  """What a run recorded, where each start of it has written a file.

  A run that was killed goes on from its last checkpoint and repeats the steps
  behind it: what an earlier file has of them is of a model that is lost. A file
  is earlier if it ended before the other began. Some runs write two files at
  the same time, of which neither is.

  Args:
    files: the points of each file.

  Returns:
    a dict from tag to `Series`
  """
  files = [points for points in files if points]
  starts = [(min(point.wall_time for point in points),
             min(point.step for point in points)) for points in files]
  kept = []
  for points in files:
    end = max(point.wall_time for point in points)
    repeated = min((step for start, step in starts if end < start),
                   default=math.inf)
    kept += [point for point in points if point.step < repeated]
  return _series(kept)


def _series(points) -> dict[str, Series]:
  """Of several values for a step, the one that was written last counts."""
  by_tag = {}
  for point in sorted(points, key=lambda point: point.wall_time):
    by_tag.setdefault(point.tag, {})[point.step] = point.value
  return {
      tag: Series(np.array(sorted(values)),
                  np.array([values[step] for step in sorted(values)]))
      for tag, values in by_tag.items()}


def _plan(path):
  text = paths.read_text(path)
  if text is None:
    return None
  try:
    plan = json.loads(text)
    plans.tables(plan)
  except (ArithmeticError, AttributeError, LookupError, RecursionError,
          TypeError, ValueError) as error:  # Whatever it may be instead.
    raise ValueError(
        f"{path} is not the plan of one configuration: write it again with "
        f"python -m mtf_moe.plan ... --json > {path}, without --suggest, or "
        "remove it.") from error
  return plan
