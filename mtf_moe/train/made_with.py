"""What a checkpoint was made with, kept beside it in made_with.json.

Shapes of variables tell little of a model: another router, another number of
heads of as much width, other weights for other pieces of text fit as well, and
what comes out is wrong without a word.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
from typing import Any

import gin
from mesh_tensorflow.transformer import utils
import tensorflow.compat.v1 as tf

from mtf_moe.run import console
from mtf_moe.run import gin_bindings
from mtf_moe.run import paths
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.text import text_data
from mtf_moe.text import text_files
from mtf_moe.train import fingerprints
from mtf_moe.train import run_mode

FILE = "made_with.json"
# Of the order of the data.
SHUFFLE_SEED = "text_dataset.shuffle_seed"
_DEFAULT_SHUFFLE_SEED = 0

# Packages that are a model's own; what others define is a user's.
_KNOWN = ("mesh_tensorflow.", "mtf_moe.")
_PACKAGES = ("mesh-tensorflow", "mtf-moe")


@dataclasses.dataclass(frozen=True)
class MadeWith:
  """The settings that a checkpoint depends on.

  Each attribute is a dict from the name of a setting, in gin where it has one
  there, to its value as JSON has it.

  Attributes:
    model: the parameters of the model, defaults included.
    own: those of layers, and the like, that a user has defined.
    types: of variables and activations.
    optimizer: its class.
    vocabulary: a fingerprint, of each where there are two.
    data: the data set, and of local text a fingerprint.
    place: what the place in the data depends on beside the step, in training
      that goes on there.
    seed: of what is random.
    versions: of the packages.
  """

  model: dict[str, Any] = dataclasses.field(default_factory=dict)
  own: dict[str, Any] = dataclasses.field(default_factory=dict)
  types: dict[str, Any] = dataclasses.field(default_factory=dict)
  optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)
  vocabulary: dict[str, Any] = dataclasses.field(default_factory=dict)
  data: dict[str, Any] = dataclasses.field(default_factory=dict)
  place: dict[str, Any] = dataclasses.field(default_factory=dict)
  seed: dict[str, Any] = dataclasses.field(default_factory=dict)
  versions: dict[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def configured(cls, configured: ConfiguredModel | None,
                 reads_data: bool = True) -> "MadeWith":
    """The settings of this run.

    Args:
      configured: the ConfiguredModel, or None where it is not known.
      reads_data: whether the run reads what its data set is made of.

    Returns:
      a MadeWith
    """
    run = gin.get_bindings("utils.run") if configured is None else (
        configured.run)
    model, own = _model(configured, run)
    types = utils.get_variable_dtype()
    return cls(
        model, own,
        {f"get_variable_dtype.{name}": getattr(types, name).name
         for name in ("master_dtype", "slice_dtype", "activation_dtype")},
        {"run.optimizer": gin_bindings.described(_raw_run().get("optimizer"))},
        _vocabulary(run.get("vocabulary")),
        _data(run) if reads_data else {},
        _place(configured, run),
        {"train_model.seed": _seed()}, versions())

  @property
  def seeds(self) -> dict[str, Any]:
    """Of all that is random, and of the order of text, by name."""
    order = {SHUFFLE_SEED: self.data[SHUFFLE_SEED]} if (
        SHUFFLE_SEED in self.data) else {}
    return self.seed | order

  def flat(self) -> dict[str, Any]:
    """All settings, by name."""
    return {name: value for field in dataclasses.fields(self)
            for name, value in getattr(self, field.name).items()}


@dataclasses.dataclass(frozen=True)
class Beginning:
  """What a run took over from the checkpoint run.init_checkpoint.

  Attributes:
    init_checkpoint: a string, its path.
    step: the step that the run started at.
  """

  init_checkpoint: str
  step: int


@dataclasses.dataclass(frozen=True)
class Record:
  """The file.

  Attributes:
    settings: a MadeWith, of the last run.
    began: a Beginning; None where all variables began at random.
    history: dicts, of runs that went on with other settings: "step" and
      "changed", from a name to what it was.
    configuration: a fingerprint of all that the last run was configured with,
      but for seeds and what has no say in what is learnt.
  """

  settings: MadeWith
  began: Beginning | None = None
  history: tuple[dict, ...] = ()
  configuration: str | None = None

  def updated(self, now: MadeWith, step: int) -> "Record":
    """The file for a run that goes on from a step.

    Args:
      now: the MadeWith of the run.
      step: an integer.

    Returns:
      a Record, which remembers what was otherwise
    """
    changed = {
        name: value
        for field in dataclasses.fields(MadeWith)
        for name, value in getattr(self.settings, field.name).items()
        if getattr(now, field.name).get(name) != value}
    history = self.history
    if changed:
      history += ({"step": step, "changed": changed},)
    return Record(now, self.began, history, configuration_of(now))


def read(model_dir: str) -> Record | None:
  """Reads the file of a model directory.

  Args:
    model_dir: a string.

  Returns:
    a Record; None where there is none, as with checkpoints that another
    program wrote, or it cannot be read, which is told.
  """
  path = os.path.join(model_dir, FILE)
  try:
    text = paths.read_text(path)
    return None if text is None else _record(json.loads(text))
  except (AttributeError, KeyError, OSError, OverflowError, RecursionError,
          TypeError, ValueError, tf.errors.OpError) as error:
    console.warn(
        f"{path} cannot be read ({str(error).splitlines()[0]}), so that only "
        "variables are compared with the checkpoint")
    return None


def keep(model_dir: str, record: Record):
  """Writes the file, all of it or nothing.

  Args:
    model_dir: a string, a directory that exists.
    record: a Record.

  Raises:
    ValueError: if a directory is in its place.
  """
  paths.replace_text(
      os.path.join(model_dir, FILE),
      json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True,
                 default=str) + "\n")


def _record(content):
  """A Record of what the file has; sections that are unknown are left out."""
  names = [field.name for field in dataclasses.fields(MadeWith)]
  settings = {name: dict(content["settings"].get(name, {})) for name in names}
  if "TextFiles.glob" in settings["data"]:  # Of text_dataset; older ones lack
    settings["data"].setdefault(SHUFFLE_SEED, _DEFAULT_SHUFFLE_SEED)  # it.
  began = content.get("began")
  if began is not None:
    began = Beginning(str(began["init_checkpoint"]), int(began["step"]))
  return Record(
      MadeWith(**settings), began, tuple(content.get("history", ())),
      content.get("configuration"))


# What is bound without a say in what is learnt; and seeds.
_NOT_OF_CONFIGURATION = re.compile(
    r"train_model\.(seed|max_minutes|seconds_per_line|steps_per_record|"
    r"evaluate_at_end)|text_dataset\.shuffle_seed|"
    r"run\.(save_checkpoints_steps|keep_checkpoint_max|eval_\w+|"
    r"perplexity_eval_steps)|evaluate\.\w+|continue_prompts\.\w+|"
    # Their contents count, which `MadeWith` has.
    r"TextFiles\.glob|SentencePieceVocabulary\.path")


def configuration_of(settings: MadeWith) -> str:
  """A fingerprint of these settings and of all that gin binds.

  Runs that differ in their seeds have the same.

  Args:
    settings: a MadeWith, of this run.
  """
  bound = dataclasses.replace(settings, seed={}, versions={}).flat()
  bound.pop(SHUFFLE_SEED, None)
  for line in gin.config_str(max_line_length=10 ** 6).splitlines():
    name, is_binding, value = line.partition(" = ")
    if is_binding and not name.startswith("#") and not (
        _NOT_OF_CONFIGURATION.fullmatch(name)):
      bound[f"gin {name}"] = value
  return fingerprints.of_strings([
      json.dumps([name, value], default=str)
      for name, value in sorted(bound.items())])


def _model(configured, run):
  """The parameters of the model: known ones, and the user's own."""
  calls = configured.parameters if configured is not None else {}
  known, own = {"run.model_type": run.get("model_type", "bitransformer")}, {}
  for call, parameters in calls.items():
    scope, _, selector = call.rpartition("/")
    kind = known if selector.startswith(_KNOWN) else own
    name = "/".join(filter(None, [scope, selector.rpartition(".")[2]]))
    kind.update({f"{name}.{parameter}": gin_bindings.described(value)
                 for parameter, value in parameters.items()})
  return known, own


def _raw_run():
  return gin.get_bindings("utils.run", resolve_references=False)


def _vocabulary(vocabulary):
  if vocabulary is None:
    return {}
  if not isinstance(vocabulary, tuple):
    return {"run.vocabulary": fingerprints.of_vocabulary(vocabulary)}
  names = ("inputs", "targets")
  return {f"run.vocabulary ({name})": fingerprints.of_vocabulary(part)
          for name, part in zip(names, vocabulary)}


def _data(run):
  """Of modes that read what they were trained on, or the like of it."""
  reference, _ = gin_bindings.resolved(_raw_run().get("train_dataset_fn"))
  if reference is None or run_mode.get() not in ("train", "perplexity_eval") or(
      run_mode.get() != "train" and run.get("eval_dataset_fn") is not None):
    return {}
  data = {"run.train_dataset_fn": gin_bindings.described(reference)}
  if isinstance(reference, gin.config.ConfigurableReference):
    selector = reference.configurable.selector
    name = selector.rpartition(".")[2]
    data.update({
        f"{name}.{parameter}": gin_bindings.described(value)
        for parameter, value in gin.get_bindings(
            selector, resolve_references=False).items()})
  if run.get("train_dataset_fn") is text_data.text_dataset:
    files = gin.get_bindings("mtf_moe.text_dataset").get(
        "files") or text_files.TextFiles()
    data.setdefault(SHUFFLE_SEED, _DEFAULT_SHUFFLE_SEED)
    data["TextFiles.held_out"] = gin_bindings.described(files.held_out)
    data["TextFiles.glob"] = fingerprints.of_text(files)
  return data


def _place(configured, run):
  """Of training that skips as many batches as the run has taken steps."""
  if configured is None or run_mode.get() != "train" or not (
      run.get("skip_seen_data")):
    return {}
  return {
      "run.batch_size (in sequences)":
          configured.num_sequences * (run.get("ensemble_inputs") or 1),
      "run.sequence_length": configured.lengths}


def _seed():
  try:
    bindings = gin.get_bindings("mtf_moe.train_model")
  except ValueError:  # Another function trains.
    bindings = {}
  return bindings.get("seed", 0)


def versions() -> dict[str, str]:
  """The releases of this package and of those that it stands on."""
  found = {"tensorflow": tf.__version__}
  for package in _PACKAGES:
    # Run from a checkout, it may not be installed.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found
