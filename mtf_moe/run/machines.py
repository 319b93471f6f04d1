"""The machines that a run is on: one, and whatever TPUs it drives."""

import json
import os

import tensorflow.compat.v1 as tf

_VARIABLE = "TF_CONFIG"


def check_only_one():
  """Sees that TensorFlow is not told to work together with other machines.

  It would wait for them without a word.

  Raises:
    ValueError: if the environment variable TF_CONFIG has a cluster, or makes
      this machine a part of one, or cannot be read.
  """
  text = os.environ.get(_VARIABLE)
  if text is None:
    return
  remedy = (f"mtf_moe.train works with others by --tpu or --coordinator: unset "
            f"{_VARIABLE}.")
  shown = text if len(text) <= 200 else text[:200] + "..."
  try:
    config = json.loads(text)
  except (ValueError, RecursionError):
    config = None
  if not isinstance(config, dict):
    raise ValueError(
        f"the environment variable {_VARIABLE} = {shown!r} is no JSON object. "
        f"{remedy}")
  key = _about_others(config)
  if key is not None:
    raise ValueError(
        f"the environment variable {_VARIABLE} = {shown!r} has {key!r}, for "
        f"work on several machines. {remedy}")


def check_tpu(tpu: str | None, zone: str | None, project: str | None):
  """Sees that a TPU is found, as it will be when the run begins.

  Args:
    tpu: the value of --tpu; without one, nothing is looked for.
    zone: that of --tpu_zone.
    project: that of --gcp_project.

  Raises:
    ValueError: if there is none of this name.
  """
  if not tpu:
    return
  try:
    tf.distribute.cluster_resolver.TPUClusterResolver(
        tpu, zone=zone, project=project).master()
  except Exception as error:  # Of the network, or of Google's client.
    raise ValueError(
        f"--tpu={tpu} was not found ({type(error).__name__}: "
        f"{str(error).partition(chr(10))[0]}): give the name of a Cloud TPU, "
        "with --tpu_zone and --gcp_project where it is elsewhere, or its "
        "address, such as grpc://10.0.0.2:8470; without --tpu, this machine "
        "computes.") from error


def _about_others(config):
  """The first key that makes TensorFlow look for other machines, or None."""
  for key in ("cluster", "service", "session_master", "eval_session_master",
              "model_dir"):
    if config.get(key, {}) not in ({}, ""):
      return key
  task = config.get("task", {})
  if (not isinstance(task, dict) or task.get("type", "worker") != "worker"
      or str(task.get("index", 0)) != "0"):
    return "task"
  return None
