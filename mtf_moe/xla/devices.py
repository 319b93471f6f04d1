"""Runs a program on the devices that JAX sees. It imports no TensorFlow."""

from collections.abc import Collection, Mapping, Sequence
import math
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from mtf_moe.xla import folder
from mtf_moe.xla.folder import Manifest
from mtf_moe.xla.sharded_step import ShardedStep


def of_mesh(mesh: Mapping[str, int], devices: Sequence | None = None
            ) -> list[jax.Device]:
  """The devices of a mesh, one for each core.

  Args:
    mesh: the sizes of its axes, by name.
    devices: jax.Devices; None for all that JAX sees.

  Returns:
    the devices

  Raises:
    ValueError: if there are none, or more or fewer.
  """
  try:
    devices = list(jax.devices() if devices is None else devices)
  except (RuntimeError, AssertionError) as error:  # JAX has both.
    raise ValueError(
        f"JAX finds no device ({type(error).__name__}: {error}): look at "
        "JAX_PLATFORMS, and install JAX for the devices of this machine."
    ) from None
  cores = math.prod(mesh.values())
  if len(devices) != cores:
    shape = ",".join(f"{axis}:{size}" for axis, size in mesh.items())
    raise ValueError(
        f"run.mesh_shape = {shape!r} has {cores} cores, and JAX sees "
        f"{len(devices)} devices of the platform {devices[0].platform!r}: it "
        "takes a device for each core. Use another mesh, or run where there "
        "are as many.")
  return devices


class OnDevices:
  """A program, with its variables on devices.

      program = xla.load("my_program")
      program.set({"wi/kernel": array})
      outputs = program.step({"inputs": array})
      program.get()["wi/kernel"]
  """

  def __init__(self, module: bytes, manifest: Manifest, devices=None):
    """Prepares it; variables are zeros.

    Args:
      module: a serialized jax.export.Exported.
      manifest: its `Manifest`.
      devices: as many jax.Devices as the mesh has cores, or None for all.

    Raises:
      ValueError: if there are more or fewer devices.
    """
    self.manifest = manifest
    self._step = ShardedStep(
        module, manifest, of_mesh(manifest.mesh, devices))
    self.mesh = self._step.mesh
    self._variables = {
        name: self.put(name, np.zeros(part.shape or (), part.dtype))
        for name, part in manifest.variables().items()}
    self.global_step = 0

  def set(self, values: Mapping[str, np.ndarray]):
    """Gives variables their values.

    Args:
      values: whole arrays, by name. Others keep what they have; of those that
        the program does not use, nothing is kept.
    """
    for name, value in values.items():
      if name in self._variables:
        self._variables[name] = self.put(name, value)

  def draw(self, first_values: bytes, seed: int):
    """Gives all variables values that are drawn, where they are.

    Args:
      first_values: see `folder.first_values`.
      seed: an int32.
    """
    parts = self.manifest.variables()
    call = self._step.on_platform(first_values).call
    self._variables = dict(zip(parts, jax.jit(call, out_shardings=list(
        map(self._step.sharding, parts.values())))(np.int32(seed))))

  def take(self, other: "OnDevices"):
    """Takes the variables and the step of another program on these devices.

    They are not copied: the next step of the other gives them away.

    Args:
      other: a program that has all variables of this one, of the same shapes.

    Raises:
      ValueError: if it has not.
    """
    theirs = other.manifest.arguments
    for name, part in self.manifest.variables().items():
      if theirs.get(name) != part:
        raise ValueError(
            f"The variable {name!r} is {part} in a program that takes it from "
            f"another, and {theirs.get(name)} there: export both from the same "
            "configuration.")
    self._variables = {name: other._variables[name] for name in self._variables}
    self.global_step = other.global_step

  def get(self) -> dict[str, np.ndarray]:
    """The values of all variables, whole, by name."""
    return {name: _whole(value) for name, value in self._variables.items()}

  def put(self, name: str, value) -> jax.Array:
    """An array, of which every device has its part.

    Args:
      name: an argument's.
      value: what np.asarray takes, the whole.

    Raises:
      ValueError: if it has another shape.
    """
    part = self.manifest.arguments[name]
    value = np.asarray(value, part.dtype)
    if value.shape != (part.shape or ()):
      raise ValueError(
          f"{name!r} has the shape {list(part.shape or ())}, and was given an "
          f"array of {list(value.shape)}: pass the whole tensor.")
    return jax.make_array_from_callback(
        value.shape, self._step.sharding(part), lambda index: value[index])

  def step(self, inputs: Mapping[str, Any], update: bool = True,
           outputs: Collection[str] | None = None) -> dict[str, jax.Array]:
    """Runs the program once.

    Args:
      inputs: whole arrays by name, or what `put` has made of them.
      update: a boolean, whether variables and the step change.
      outputs: names of outputs. Others are not computed; for each choice of
        them the program is compiled once. None for all.

    Returns:
      the outputs, from before the update, by name

    Raises:
      ValueError: if an input is missing or unknown.
    """
    names = {name for name, part in self.manifest.arguments.items()
             if part.kind == "input"}
    if names - {*inputs}:
      raise ValueError(
          f"The inputs of the program are {sorted(names)}, and it was given "
          f"{sorted(inputs)}: pass all of them.")
    updates = self.manifest.updates() if update else {}
    wanted = [name for name, part in self.manifest.results.items()
              if part.kind == "output" and (outputs is None or name in outputs)]
    results = self._step(
        [self._argument(name, part, inputs)
         for name, part in self.manifest.arguments.items()],
        [*wanted, *updates.values()])
    for name, result in zip(updates, results[len(wanted):]):
      self._variables[name] = result
    self.global_step += update
    return dict(zip(wanted, results))

  def _argument(self, name, part, inputs):
    if part.kind == "input":
      value = inputs[name]
      return value if isinstance(value, jax.Array) else self.put(name, value)
    if part.kind == "step":
      return self.put(name, self.global_step)
    if part.kind == "core":
      return self._core_numbers(part)
    return self._variables[name]

  def lower(self):
    """The step as jax.stages.Lowered, to be looked at and compiled."""
    return self._step.lower()

  def _core_numbers(self, part):
    numbers = np.arange(self.mesh.size, dtype=np.int32)
    return jax.make_array_from_callback(
        numbers.shape, self._step.sharding(part), lambda index: numbers[index])


def _whole(value):
  """An array as one of NumPy; all processes ask for it together."""
  if value.is_fully_addressable or value.is_fully_replicated:
    # A copy: on a CPU it might else be what the next step gives away.
    return np.array(value)
  return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def load(directory: str, devices=None, seed: int = 0) -> OnDevices:
  """Loads a folder, with the values and the step that were saved.

  Args:
    directory: a path.
    devices: see `OnDevices`.
    seed: an integer. If no values were saved, they are drawn from it.

  Returns:
    an `OnDevices`
  """
  program = OnDevices(*folder.read(directory), devices)
  values = folder.values(directory)
  program.set(values)
  if not values and (drawn := folder.first_values(directory)) is not None:
    program.draw(drawn, seed)
  program.global_step = int(values.get("global_step", 0))
  return program
