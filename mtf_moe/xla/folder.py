"""A program in a folder of plain files, which JAX and NumPy read and run.

    program.stablehlo   what a core computes in a step, as jax.export has it
    program.json        what it takes and gives back, on what mesh, and what it
                        was made from
    values.npz          first values of the variables, where they were saved,
    first_values.stablehlo  or else how they are drawn from a seed

This module imports no TensorFlow.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

# What a reader has to know; a change of the files that it would not understand
# has another number.
FORMAT = 1

_MODULE, _MANIFEST, _VALUES = "program.stablehlo", "program.json", "values.npz"
_FIRST_VALUES = "first_values.stablehlo"


@dataclasses.dataclass(frozen=True)
class Part:
  """A tensor of which every core has a part.

  Attributes:
    shape: the sizes of the whole, or None for a number.
    dtype: the name of its type.
    axes: for each dimension the name of the axis of the mesh that it is split
      over, or None.
    kind: "input", "variable", "step" or "core" for what goes in; "output" or
      "update" for what comes out.
  """

  shape: tuple[int, ...] | None
  dtype: str
  axes: tuple[str | None, ...]
  kind: str

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> "Part":
    shape = fields["shape"]
    return cls(None if shape is None else tuple(shape), fields["dtype"],
               tuple(fields["axes"]), fields["kind"])


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a program takes and gives back.

  Attributes:
    mesh: the sizes of the axes of its mesh, by name, in order.
    arguments: a `Part` for each argument of the module, by name, in order.
    results: a `Part` for each of its results.
    made_from: what it was made from, for people: releases and the like.
  """

  mesh: Mapping[str, int]
  arguments: Mapping[str, Part]
  results: Mapping[str, Part]
  made_from: Mapping[str, str]

  def variables(self) -> dict[str, Part]:
    """The arguments that are variables, by name."""
    return {name: part for name, part in self.arguments.items()
            if part.kind == "variable"}

  def updates(self) -> dict[str, str]:
    """For each variable that a step changes, the result with its next value."""
    return {name.removeprefix("next "): name
            for name, part in self.results.items() if part.kind == "update"}


def write(directory: str, module: bytes, manifest: Manifest,
          values: Mapping[str, np.ndarray] | None = None,
          first_values: bytes | None = None):
  """Writes a folder.

  Args:
    directory: its path; it is made if it is not there.
    module: a serialized jax.export.Exported.
    manifest: a `Manifest`.
    values: the whole values of variables, by name, or None.
    first_values: a serialized jax.export.Exported that draws them, or None;
      see `xla.first_values`.

  Raises:
    FileExistsError: if there is a program already.
  """
  folder = pathlib.Path(directory)
  if (folder / _MANIFEST).exists():
    raise FileExistsError(
        f"{folder} has a program already: name another folder, or delete it.")
  folder.mkdir(parents=True, exist_ok=True)
  (folder / _MODULE).write_bytes(module)
  if values is not None:
    np.savez(folder / _VALUES, **values)
  if first_values is not None:
    (folder / _FIRST_VALUES).write_bytes(first_values)
  # The last one, so that a folder that has it is complete.
  (folder / _MANIFEST).write_text(json.dumps(
      {"format": FORMAT, **dataclasses.asdict(manifest)}, indent=1) + "\n")


def read(directory: str) -> tuple[bytes, Manifest]:
  """Reads a folder.

  Args:
    directory: its path.

  Returns:
    the module and the `Manifest`

  Raises:
    ValueError: if it is no such folder, or that of another format.
  """
  folder = pathlib.Path(directory)
  try:
    fields = json.loads((folder / _MANIFEST).read_text())
    module = (folder / _MODULE).read_bytes()
  except (OSError, json.JSONDecodeError) as error:
    raise ValueError(
        f"{folder} is no folder with a program ({error}): name one that "
        "mtf_moe.xla.export has written to its end.") from None
  if fields.pop("format", None) != FORMAT:
    raise ValueError(
        f"{folder} was written by another release of mtf_moe, whose folders "
        "have another form: export the program again with this one.")
  for name in ("arguments", "results"):
    fields[name] = {
        key: Part.of(part) for key, part in fields[name].items()}
  return module, Manifest(**fields)


def values(directory: str) -> dict[str, np.ndarray]:
  """The values of the variables that were saved, by name; none without them."""
  path = pathlib.Path(directory) / _VALUES
  if not path.exists():
    return {}
  with np.load(path, allow_pickle=False) as arrays:
    return dict(arrays)


def first_values(directory: str) -> bytes | None:
  """The module that draws first values, or None."""
  path = pathlib.Path(directory) / _FIRST_VALUES
  return path.read_bytes() if path.exists() else None
