"""What the mixtures of a run are, kept beside its checkpoints in layers.json.

Who speaks of a run later (reports, and the warnings of training) names the
parameters of its layers as gin has them, and need not conclude from gin what
layers there are.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import os

from mtf_moe import gating
from mtf_moe.layer_records import LayerRecord
from mtf_moe.run import paths

FILE = "layers.json"

# What messages speak of: settings that a level may have for itself, and those
# of a whole layer. "capacity_factor" is the one of training.
OF_LEVELS = ("capacity_factor", "min_expert_capacity", "group_size",
              "second_policy_train", "z_loss")
OF_LAYERS = ("loss_coef", "dropout_rate", "summaries")


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter of a layer.

  Attributes:
    name: in gin, such as "wide/MoE2D.loss_coef".
    value: as gin writes it, such as "0.01"; None where it is not known.
  """

  name: str
  value: str | None = None

  def __str__(self):
    return self.name if self.value is None else (
        f"{self.name} (now {self.value})")


@dataclasses.dataclass(frozen=True)
class LevelFacts:
  """One level of a mixture, while training. None is what is not known.

  Attributes:
    name: in records, such as "outer".
    parameters: by what messages call them, such as "capacity_factor".
    router: its name.
    experts: among how many a token chooses.
    asked_group_size: the tokens of a group that were asked for.
    group_size: those that there are.
    capacity: the slots of an expert's buffer for a group.
    capacity_factors: what was asked for in training and at all other times.
  """

  name: str
  parameters: Mapping[str, Parameter]
  router: str | None = None
  experts: int | None = None
  asked_group_size: int | None = None
  group_size: int | None = None
  capacity: int | None = None
  capacity_factors: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class LayerFacts:
  """A mixture.

  Attributes:
    scope: its variable scope.
    called: how it is called in gin, such as "wide/MoE2D"; None where it is not
      of gin.
    levels: the first one first.
    parameters: of the whole layer, by what messages call them.
  """

  scope: str
  called: str | None
  levels: tuple[LevelFacts, ...]
  parameters: Mapping[str, Parameter]

  def parameter(self, name: str, number: int = 0) -> Parameter:
    """A parameter.

    Args:
      name: such as "loss_coef", or "capacity_factor" of a level.
      number: the level, 0 for the first.
    """
    found = self.parameters.get(name)
    return self.levels[number].parameters[name] if found is None else found

  def balanced_by(self, number: int = 0) -> Parameter | None:
    """Of what a larger value balances the experts of a level more.

    Args:
      number: the level, 0 for the first.

    Returns:
      a parameter, or None where none does
    """
    router = self.levels[number].router
    # One of another program is not known here; nearly all have a loss.
    name = (gating.find(router) if router in gating.names()
            else gating.Router()).balanced_by
    if name is None or name in self.parameters:
      return None if name is None else self.parameters[name]
    another = self.levels[number].parameters[OF_LEVELS[0]].name
    owner, dot, _ = another.rpartition(".")
    return Parameter(f"{owner}{dot}{'' if dot else 'moe_'}{name}")

  @classmethod
  def of(cls, record: LayerRecord) -> "LayerFacts":
    """What a layer has recorded of itself while it was built."""
    # A setting of the layer is its own also where levels have theirs.
    prefix = "moe_" if record.called is None else f"{record.called}."
    return cls(
        record.scope, record.called,
        tuple(_level(record, number) for number in range(len(record.levels))),
        {name: Parameter(prefix + name,
                         repr(getattr(record.hparams, f"moe_{name}")))
         for name in OF_LAYERS})


def _level(record, number):
  sized = record.levels[number]
  settings = sized.settings
  values = {"capacity_factor": settings.capacity_factor_train}
  return LevelFacts(
      sized.names.level,
      {name: Parameter(
          record.parameter(name, number),
          repr(values[name] if name in values else getattr(settings, name)))
       for name in OF_LEVELS},
      gating.name_of(settings.router), sized.experts.size, settings.group_size,
      sized.group_size.size, sized.capacity.size,
      (settings.capacity_factor_train, settings.capacity_factor_eval))


def parameters(layers: Iterable[LayerFacts] | None, name: str,
               number: int | None = None) -> list[Parameter]:
  """A parameter of several layers, once where it is the same.

  Args:
    layers: the layers, or None where they are not known.
    name: as of `LayerFacts.parameter`.
    number: the level, 0 for the first, or None for all of them.

  Returns:
    `Parameter`s, one at least: with no layer, there is its mere name
  """
  found = {}
  for layer in layers or ():
    for level in range(len(layer.levels)):
      if number in (None, level):
        one = layer.parameter(name, level)
        found.setdefault(one.name, one)
  return list(found.values()) or [Parameter(name)]


def settings(layers: Iterable[LayerFacts] | None, name: str, value) -> str:
  """A parameter of several layers, each set to a value.

  Args:
    layers, name: as of `parameters`.
    value: anything that gin can write.

  Returns:
    such as "MoE1D.z_loss = 0.001 and MoE2D.z_loss = 0.001"
  """
  return " and ".join(f"{parameter.name} = {value!r}"
                      for parameter in parameters(layers, name))


def keep(model_dir: str, layers: Iterable[LayerFacts]):
  """Writes the file, all of it or nothing.

  Args:
    model_dir: a string, a directory that exists.
    layers: those of the model.

  Raises:
    ValueError: if a directory is in its place.
  """
  content = {"layers": [dataclasses.asdict(layer) for layer in layers]}
  paths.replace_text(os.path.join(model_dir, FILE),
                     json.dumps(content, indent=1, default=str) + "\n")


def read(model_dir: str) -> tuple[LayerFacts, ...] | None:
  """Reads the file of a model directory.

  Args:
    model_dir: a string.

  Returns:
    the layers; None where there is no such file, as with older runs

  Raises:
    ValueError: if it is something else.
  """
  path = os.path.join(model_dir, FILE)
  text = paths.read_text(path)
  if text is None:
    return None
  try:
    return tuple(_layer_of(layer) for layer in json.loads(text)["layers"])
  except (ArithmeticError, AttributeError, LookupError, RecursionError,
          TypeError, ValueError) as error:  # Whatever it may be instead.
    raise ValueError(
        f"{path} is not what a run writes of its layers: remove it, and the "
        "next start of the run writes it again.") from error


def _layer_of(content):
  return LayerFacts(
      str(content["scope"]), content["called"] and str(content["called"]),
      tuple(_level_of(level) for level in content["levels"]),
      _parameters_of(content["parameters"], OF_LAYERS))


def _level_of(content):
  sizes = {name: int(content[name]) for name in (
      "experts", "asked_group_size", "group_size", "capacity")}
  if min(sizes.values()) < 1:
    raise ValueError("a size is no size")
  train, other = map(float, content["capacity_factors"])
  return LevelFacts(
      name=str(content["name"]), router=str(content["router"]), **sizes,
      capacity_factors=(train, other),
      parameters=_parameters_of(content["parameters"], OF_LEVELS))


def _parameters_of(content, names):
  return {name: Parameter(str(content[name]["name"]),
                          str(content[name]["value"])) for name in names}
