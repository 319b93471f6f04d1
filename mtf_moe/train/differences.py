"""What a difference between two `MadeWith` means for a run.

Whatever changes what the weights mean is refused, since nothing sensible can
come of it. What may be meant is told. What people change on purpose between
training and evaluation (capacities, policies, the mesh, batches, the learning
rate) is let through.
"""

from collections.abc import Iterator
import dataclasses
import enum
import fnmatch
import functools
import os
from typing import Any

import gin

from mtf_moe.run import console
from mtf_moe.run import gin_bindings
from mtf_moe.train import made_with
from mtf_moe.train.made_with import MadeWith


class Use(enum.Enum):
  """What a run does with a checkpoint."""

  GO_ON = "training goes on from it"
  READ = "it is evaluated, decoded with or exported"
  BEGIN = "another model begins from it: run.init_checkpoint"
  CHANGE = "a checkpoint with other experts is made of it: mtf_moe.surgery"


class Severity(enum.IntEnum):
  """How a difference is answered."""

  NOTHING = 0
  SAY = 1
  WARN = 2
  REFUSE = 3


_NOTHING = (Severity.NOTHING,) * 4

# For each section of a MadeWith: parameters, and the answers where training
# goes on, the checkpoint is read, another model begins from it, or experts are
# made of others. The first pattern that fits counts.
_ANSWERS = {
    "model": [
        # What was trained as "lm" may go on as "delimited_lm".
        ("run.model_type", *(Severity.WARN,) * 4),
        # Of training alone, or free to be chosen for evaluation.
        *((f"*.{pattern}", *_NOTHING) for pattern in (
            "*dropout*", "capacity_factor*", "dropless*", "dispatch",
            "group_size", "min_expert_capacity", "*loss*", "second_*",
            "switch_*", "sigmoid_bias_rate", "fill_order", "summaries",
            "label_smoothing", "recompute_grads",
            "*init_scale", "*initializer_scale", "initial_value",
            # Of tables of positions, whose shapes are compared.
            "max_length")),
        # What becomes of these is the table of surgery.
        *((f"*.{pattern}", Severity.REFUSE, Severity.REFUSE, Severity.WARN,
           Severity.NOTHING) for pattern in (
               "expert_x", "expert_y", "num_experts", "hidden_size", "layers")),
        # They may have routers of their own.
        ("*.levels", Severity.REFUSE, Severity.REFUSE, Severity.WARN,
         Severity.SAY),
        *((f"{pattern}.*", *_NOTHING) for pattern in (
            "*Initializer", "*dropout", "*clip_activation_gradient")),
        ("*", Severity.REFUSE, Severity.REFUSE, *(Severity.WARN,) * 2),
    ],
    "own": [("*", *(Severity.WARN,) * 4)],
    "types": [
        # Of the checkpoint's own variables: these are compared themselves.
        ("*.master_dtype", *_NOTHING),
        ("*", Severity.WARN, Severity.SAY, *(Severity.NOTHING,) * 2),
    ],
    # What an optimizer keeps is compared itself.
    "optimizer": [("*", Severity.WARN, *(Severity.NOTHING,) * 3)],
    "vocabulary": [
        ("*", Severity.REFUSE, Severity.REFUSE, *(Severity.WARN,) * 2)],
    # Surgery reads none.
    "data": [
        # What was trained on may be held out now.
        ("*.held_out", Severity.WARN, Severity.WARN, Severity.SAY,
         Severity.NOTHING),
        ("*.glob", Severity.WARN, Severity.SAY, Severity.SAY, Severity.NOTHING),
        ("run.train_dataset_fn", Severity.WARN, Severity.SAY, Severity.SAY,
         Severity.NOTHING),
        ("*", Severity.WARN, Severity.SAY, *(Severity.NOTHING,) * 2),
    ],
    "place": [("*", Severity.WARN, *(Severity.NOTHING,) * 3)],
    "seed": [("*", Severity.WARN, *(Severity.NOTHING,) * 3)],
    "versions": [("*", Severity.SAY, *(Severity.NOTHING,) * 3)],
}

# What comes of some, where that is not plain.
_CONSEQUENCES = {
    "vocabulary": ": embeddings are of other pieces of text",
    "place": ": the data does not go on where it was (run.skip_seen_data)"}

_LONGEST = 100  # Characters of a value that are shown.
# In place of a value: not a string, which it could be.
_NOT_SET = ("not set",)


@dataclasses.dataclass(frozen=True)
class Difference:
  """A setting that is not what a checkpoint was made with.

  Attributes:
    name: of the setting, in gin where it has one there.
    before: its value as JSON has it, or `_NOT_SET`.
    now: likewise.
    severity: a Severity.
    consequence: what comes of it, to be read behind it.
  """

  name: str
  before: Any
  now: Any
  severity: Severity
  consequence: str = ""

  def __str__(self):
    macro = _macro_of(self.name)
    via = f"%{macro} = " if macro else ""
    text = (f"{self.name} = {via}{_shown(self.now)}, and was "
            f"{_shown(self.before)}{self.consequence}")
    # The file may be somebody else's.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@gin.configurable(module="mtf_moe")
def compare_made_with(refuse: bool = True) -> bool:
  """Whether a checkpoint of another model is refused, for gin.

  A function of its own: gin would add lines to an error that comes through it.

  Args:
    refuse: a boolean. False warns where it would refuse.

  Returns:
    the same
  """
  return refuse


def refuses() -> bool:
  """Whether a checkpoint of another model is refused, as gin says.

  Raises:
    ValueError: if that is no boolean.
  """
  refuse = compare_made_with()
  if not isinstance(refuse, bool):
    raise ValueError(
        f"compare_made_with.refuse = {refuse!r} is neither on nor off: set it "
        "to True or False.")
  return refuse


def compare(before: MadeWith, now: MadeWith, use: Use, place: str):
  """Tells what is not as it was when a checkpoint was made.

  Args:
    before: a MadeWith, of the checkpoint.
    now: a MadeWith, of this run.
    use: a Use.
    place: what holds the checkpoint, as a user gave it, for the messages.

  Raises:
    ValueError: if the checkpoint cannot be meant, with all reasons.
  """
  found = sorted(_differences(before, now, use), key=lambda d: d.name)
  refused = [d for d in found if d.severity == Severity.REFUSE]
  if refused and refuses():
    raise ValueError(
        f"{place} holds a checkpoint of another model: "
        f"{'; '.join(map(str, refused))}. Set back what is not meant to "
        "differ; compare_made_with.refuse = False goes on all the same, and "
        "run.init_checkpoint begins another model, in another --model_dir, "
        "from these weights.")
  for difference in found:
    tell = console.say if difference.severity == Severity.SAY else console.warn
    tell(f"not as when the checkpoint in {place} was made: {difference}")


def compare_source(
    path: str, now: MadeWith, use: Use) -> made_with.Record | None:
  """Warns of what is not as in the run that another begins from.

  Args:
    path: a string, the path of its checkpoint.
    now: a MadeWith, of this run.
    use: a Use.

  Returns:
    the Record of that run; None where it kept none
  """
  directory = os.path.dirname(path)
  record = made_with.read(directory)
  if record is not None:
    compare(record.settings, now, use, directory)
  return record


def _differences(before, now, use) -> Iterator[Difference]:
  """Those that are to be told."""
  for section, answers in _ANSWERS.items():
    old, new = getattr(before, section), getattr(now, section)
    if not old or not new:
      continue  # Not known, or not of interest in this mode.
    for name in old.keys() | new.keys():
      severity = _severity(answers, name, use)
      if severity and _differ(section, name, old, new):
        yield Difference(
            name, old.get(name, _NOT_SET), new.get(name, _NOT_SET), severity,
            _CONSEQUENCES.get(section, ""))


def _severity(answers, name, use):
  bare = name.rpartition("/")[2]  # Without the scope.
  for pattern, *by_use in answers:
    if fnmatch.fnmatchcase(bare, pattern):
      return by_use[list(Use).index(use)]
  raise AssertionError(name)


def _differ(section, name, old, new):
  if name in old and name in new:
    return _meaning(old[name]) != _meaning(new[name])
  if section in ("data", "optimizer"):
    return True
  # A layer that is there in one of the two only shows in the list of layers,
  # and a release may add parameters. But a default that gin cannot write, such
  # as a function, is left out of what is known, and a reference then differs.
  value = old.get(name, new.get(name))
  configurable = name.rpartition(".")[0] + "."
  return (isinstance(value, str) and value.startswith("@")
          and all(any(key.startswith(configurable) for key in known)
                  for known in (old, new)))


def _meaning(value):
  """What counts of a fingerprint: not where it is from."""
  if isinstance(value, dict) and "content" in value:
    return value.get("size"), value["content"]
  return value


@functools.singledispatch
def _shown(value):
  text = repr(value)
  return text if len(text) <= _LONGEST else text[:_LONGEST - 3] + "..."


@_shown.register
def _(value: dict):
  return ", ".join(f"{key} {str(part)[:_LONGEST]}"
                   for key, part in sorted(value.items()))


@_shown.register
def _(value: tuple):
  return value[0]


@_shown.register
def _(value: str):
  return (value if value.startswith("@") else repr(value))[:_LONGEST]


def _macro_of(name):
  """The macro that a parameter is set by, or None."""
  configurable, _, parameter = name.rpartition(".")
  try:
    bindings = gin.get_bindings(configurable, resolve_references=False)
  except ValueError:
    return None
  return gin_bindings.macro_name(bindings.get(parameter))
