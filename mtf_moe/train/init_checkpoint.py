"""Beginning from the checkpoint of another run: run.init_checkpoint.

mesh_tensorflow takes over, at the first start, what both the checkpoint and the
configuration have, the step included, and says nothing. Here all of it is
looked at before anything is built, and told. A run that is started again goes
on from its own checkpoint, without the other one, and with the data where it
was.
"""

import collections
import dataclasses
import inspect
import os
import re

import gin
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe.run import console
from mtf_moe.run import gin_bindings
from mtf_moe.run import paths
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.train import checkpoints
from mtf_moe.train import saved_variables
from mtf_moe.train.made_with import Beginning

_INDEX = re.compile(r".*-(\d+)\.index")
_SUFFIX = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")


@dataclasses.dataclass(frozen=True)
class TakenOver:
  """What a run begins from.

  Attributes:
    beginning: a Beginning, as it is kept.
    told: a line that tells all of it.
  """

  beginning: Beginning
  told: str


def check_options():
  """Tells of what has no effect.

  mesh_tensorflow's `run` gives the function that makes the model_fn most of
  its arguments, and what gin says of these is not heard.

  Raises:
    ValueError: if a checkpoint is given there.
  """
  bound = gin.get_bindings("tpu_estimator_model_fn", resolve_references=False)
  passed = inspect.signature(utils.get_estimator).parameters
  for name in sorted(bound.keys() & passed.keys()):
    said = (f"tpu_estimator_model_fn.{name} = {bound[name]!r} has no effect: "
            f"set run.{name} in its place")
    if name == "init_checkpoint" and gin_bindings.bound(
        "tpu_estimator_model_fn", name):
      raise ValueError(f"{said}.")
    console.warn(said)


def check_resumed(
    model_dir: str, began: Beginning | None, configured: ConfiguredModel):
  """Checks a run that goes on from its own checkpoint, and says how.

  Args:
    model_dir: a string, a directory with a checkpoint.
    began: a Beginning, what is known of the first start.
    configured: a ConfiguredModel.

  Raises:
    ValueError: if the data would not go on where it was.
  """
  given = configured.run.get("init_checkpoint")
  if began is not None:
    _check_data_position(configured.run, began.step)
  if not given:
    return
  is_known = began is not None and _names(given, began.init_checkpoint)
  newest = os.path.basename(checkpoints.newest(model_dir))
  if is_known:
    console.say(
        f"going on from {newest}; run.init_checkpoint was taken over at the "
        "first start, and is not needed any more")
    return
  of = "" if began is None else (
      f" of a run that began from {began.init_checkpoint}")
  console.warn(
      f"run.init_checkpoint = {given!r} is not taken over: --model_dir="
      f"{model_dir} holds {newest}{of}, and the run goes on from that. Choose "
      "a new --model_dir to begin from run.init_checkpoint.")


def find(configured: ConfiguredModel) -> TakenOver | None:
  """Checks what a run without a checkpoint begins from.

  Args:
    configured: a ConfiguredModel.

  Returns:
    a TakenOver; None where everything begins at random

  Raises:
    ValueError: if run.init_checkpoint cannot be taken over.
  """
  given = configured.run.get("init_checkpoint")
  if not given:
    return None
  path = path_of(given)
  saved = saved_variables.of_checkpoint(path)
  step = _step(path, saved)
  taken = _taken_over(configured, given, saved)
  first_step = step if saved_variables.STEP in taken else 0
  _check_data_position(configured.run, first_step)
  _check_steps(configured, given, first_step)
  return TakenOver(
      Beginning(path, first_step),
      _told(configured, path, step, first_step, taken, saved))


def sources(configured: ConfiguredModel, path: str) -> dict[str, str]:
  """What variables of a run that begins have in the checkpoint.

  Args:
    configured: a ConfiguredModel.
    path: the path of a checkpoint that `find` has found.

  Returns:
    a dict from variables of this run to those of the checkpoint
  """
  return _taken_over(configured, path, saved_variables.of_checkpoint(path))


def path_of(given: str) -> str:
  """The checkpoint that run.init_checkpoint names.

  Args:
    given: a string: the path of a checkpoint (/model/model.ckpt-100), of one of
      its files, or of a directory, whose newest is meant.

  Returns:
    the path of a checkpoint

  Raises:
    ValueError: if there is none, or it is not whole.
  """
  path = path_or_none(given)
  if path is not None:
    path = paths.usable(path, "run.init_checkpoint")
  else:
    raise ValueError(
        f"run.init_checkpoint = {given!r} is no checkpoint: give the path of "
        "one, without the end that its files have, such as "
        '"other_model/model.ckpt-1000", or a directory with checkpoints, whose '
        "newest is taken.")
  problem = checkpoints.problem(path) if _is_read() else None
  if problem:
    raise ValueError(
        f"run.init_checkpoint = {given!r}: {path} cannot be taken over: "
        f"{problem}. Give another checkpoint.")
  return path


def _is_read():
  """Whether checkpoints are read before they are used."""
  return gin.get_bindings("mtf_moe.set_aside_damaged").get("enabled", True)


def path_or_none(given) -> str | None:
  """The checkpoint that a value names, as for `path_of`; None if none is there.
  """
  if not isinstance(given, str):
    return None
  given = os.path.expanduser(given)
  found = [_SUFFIX.sub("", given)]
  if tf.io.gfile.isdir(given):
    state = tf.train.get_checkpoint_state(given)
    found = [state.model_checkpoint_path] if state else []
    # What was copied may come without TensorFlow's account of it.
    steps = {int(match[1]): match[0].removesuffix(".index")
             for match in map(_INDEX.fullmatch, paths.names(given, ".*"))
             if match}
    found += [os.path.join(given, steps[max(steps)])] if steps else []
  for path in found:
    if tf.io.gfile.exists(f"{path}.index"):
      return path
  return None


def _names(given, path):
  """Whether run.init_checkpoint names a checkpoint that may be gone."""
  if not isinstance(given, str):
    return False
  given = _absolute(_SUFFIX.sub("", given))
  return given in (_absolute(path), _absolute(os.path.dirname(path)))


def _absolute(path):
  if paths.is_remote(path):
    return path.rstrip("/")
  return os.path.abspath(os.path.expanduser(path))


def _step(path, saved):
  """The step of a checkpoint, or 0 where it has none."""
  if saved_variables.STEP not in saved:
    return 0
  return int(tf.train.load_variable(path, saved_variables.STEP))


def _taken_over(configured, given, saved):
  """Finds what mesh_tensorflow will take over, by its rules.

  Args:
    configured: a ConfiguredModel.
    given: the value of run.init_checkpoint.
    saved: a dict from name to Variable, of the checkpoint.

  Returns:
    a dict from variables of this run to those of the checkpoint

  Raises:
    ValueError: if something would not fit.
  """
  pattern = _pattern()
  graph = configured.training_graph
  expected = saved_variables.of_graph(graph)
  taken = {}
  with graph.as_default():  # Which mappings may ask for its variables.
    for name in sorted(expected):
      source = _source(name)
      if source in saved and pattern.search(source):
        _check_fits(name, expected[name], source, saved[source], given)
        taken[name] = source
  uses = collections.Counter(taken.values())
  for name, source in taken.items():
    if uses[source] > 1:
      raise ValueError(
          f"init_checkpoint_variable_mapping maps {name} to {source}, as it "
          "does another variable, and only one of them would be taken over: "
          "map each to a variable of its own.")
  if not taken.keys() & configured.variables.keys():
    raise ValueError(
        f"run.init_checkpoint = {given!r} has no variable of this model: it "
        f"has {saved_variables.names_of(saved)}, and this model "
        f"{saved_variables.names_of(configured.variables)}. Give a checkpoint "
        "of a model like this one, and see that "
        "tpu_estimator_model_fn.init_variable_filter and "
        "should_load_variable.filter_fn leave something.")
  return taken


def _pattern():
  given = gin.get_bindings("tpu_estimator_model_fn").get(
      "init_variable_filter") or ""
  try:
    return re.compile(given)
  except (re.error, TypeError) as error:
    raise ValueError(
        f"tpu_estimator_model_fn.init_variable_filter = {given!r} is no "
        f"regular expression ({error}): give one that finds the names of the "
        'variables to take over, or "" for all of them.') from error


def _source(name):
  """The name that a variable has in the checkpoint, None if it is not wanted.
  """
  try:
    if not utils.should_load_variable(name):
      return None
    return utils.init_checkpoint_variable_mapping(name)
  except Exception as error:  # It is the user's, or asks for a checkpoint.
    raise ValueError(
        f"init_checkpoint_variable_mapping.mapping_fn (or should_load_variable."
        f"filter_fn) fails for the variable {name}: "
        f"{type(error).__name__}: {str(error).partition(chr(10))[0]}. Let "
        "should_load_variable.filter_fn leave out what cannot be mapped."
    ) from error


def _check_fits(name, variable, source, there, given):
  where = name if name == source else f"{name} (there {source})"
  remedy = ("leave it out with tpu_estimator_model_fn.init_variable_filter = "
            f'"^(?!{source})", so that it starts anew')
  if there.shape != variable.shape:
    raise ValueError(
        f"run.init_checkpoint = {given!r} does not fit: variable {where} has "
        f"the shape {variable.shape} in this configuration, and {there.shape} "
        "in the checkpoint. Set the sizes as they are there; or, for other "
        "experts, make a checkpoint that fits with python -m mtf_moe.surgery "
        f"--from={given}; or {remedy}.")
  # Floating-point numbers are rounded.
  if there.dtype != variable.dtype and not (
      there.dtype.is_floating and variable.dtype.is_floating):
    raise ValueError(
        f"run.init_checkpoint = {given!r} does not fit: variable {where} is "
        f"{variable.dtype.name} in this configuration, and {there.dtype.name} "
        "in the checkpoint. Set get_variable_dtype.master_dtype = "
        f'"{there.dtype.name}", or {remedy}.')


def _check_data_position(run, first_step):
  """The data begins at its beginning, whatever the number of the first step."""
  given = run.get("seen_data_init_step", 0)
  if run.get("skip_seen_data") and given and given != first_step:
    raise ValueError(
        f"run.seen_data_init_step = {given!r}, and this run starts at step "
        f"{first_step:,}: started again, it would go on with other data. Leave "
        "it out, which goes on where the data was.")


def _check_steps(configured, given, first_step):
  steps = configured.train_steps
  if steps <= first_step:
    raise ValueError(
        f"run.train_steps = {steps} leaves nothing to train: the run starts at "
        f"step {first_step:,}, that of run.init_checkpoint = {given!r}. Set "
        f"it above {first_step}, or start at step 0 with "
        "tpu_estimator_model_fn.init_variable_filter = "
        f'"^(?!{saved_variables.STEP}$)".')


def _told(configured, path, step, first_step, taken, saved):
  """What a run begins with, in a line."""
  model = configured.variables.keys()
  random = model - taken.keys()
  variables = saved_variables.of_graph(configured.training_graph)
  slots = variables.keys() - model - {saved_variables.STEP}
  models_there = saved_variables.without_slots(saved)
  unused = models_there - set(taken.values())
  parts = [
      f"{len(model) - len(random)} of {len(model)} variables taken over (of "
      f"step {step:,})"]
  parts += _other_types(variables, taken, saved)
  if random:
    parts.append(f"{len(random)} start anew: "
                 f"{saved_variables.names_of(random)}")
  if slots:
    parts.append(
        f"{len(slots & taken.keys())} of {len(slots)} optimizer slots taken "
        "over" + (", the others start at zero" if slots - taken.keys() else ""))
  slots_there = saved.keys() - models_there - {saved_variables.STEP}
  # Those of variables that are not used are no news.
  left = {name for name in slots_there - set(taken.values()) - variables.keys()
          if not any(name.startswith(other) for other in unused)}
  if left:
    parts.append(
        f"{len(left)} optimizer slots of the checkpoint not used, which "
        f"run.optimizer = {saved_variables.optimizer_name(configured)} does "
        f"not have: {saved_variables.names_of(left)}")
  if unused:
    parts.append(f"{len(unused)} of the checkpoint not used: "
                 f"{saved_variables.names_of(unused)}")
  if _are_feed_forward(random) and _are_feed_forward(unused):
    parts.append("python -m mtf_moe.surgery makes experts from other "
                 "feed-forward layers")
  parts.append(f"the run starts at step {first_step:,}, at the beginning of "
               "its data")
  return f"run.init_checkpoint = {path}: {'; '.join(parts)}"


def _other_types(variables, taken, saved):
  """What is rounded, or is given more digits, a part for each pair of types."""
  pairs = collections.Counter(
      (saved[source].dtype.name, variables[name].dtype.name)
      for name, source in taken.items()
      if saved[source].dtype != variables[name].dtype)
  return [f"{count} of them in {there}, read as {here}"
          for (there, here), count in sorted(pairs.items())]


def _are_feed_forward(names):
  """Whether some are weights of feed-forward layers."""
  return any(re.search("/w[io](_[0-9]+)?/kernel$", name) for name in names)
