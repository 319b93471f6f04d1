"""Runs a program on the devices that JAX sees. It imports no TensorFlow."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mtf_moe.xla import folder
from mtf_moe.xla.folder import Manifest
from mtf_moe.xla.sharded_step import ShardedStep


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
    devices = list(jax.devices() if devices is None else devices)
    sizes = list(manifest.mesh.values())
    if len(devices) != np.prod(sizes, dtype=int):
      shape = ",".join(f"{axis}:{n}" for axis, n in manifest.mesh.items())
      raise ValueError(
          f"run.mesh_shape = {shape!r} has {np.prod(sizes, dtype=int)} cores, "
          f"and JAX sees {len(devices)} devices of the platform "
          f"{devices[0].platform!r}: it takes a device for each core. Export "
          "for another mesh, or run where there are as many.")
    self._step = ShardedStep(module, manifest, devices)
    self.mesh = self._step.mesh
    self._variables = {
        name: self.put(name, np.zeros(part.shape or (), part.dtype))
        for name, part in manifest.arguments.items() if part.kind == "variable"}
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

  def get(self) -> dict[str, np.ndarray]:
    """The values of all variables, whole, by name."""
    return {name: np.asarray(value)
            for name, value in self._variables.items()}

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

  def step(self, inputs: Mapping[str, Any], update: bool = True
           ) -> dict[str, jax.Array]:
    """Runs the program once.

    Args:
      inputs: whole arrays by name, or what `put` has made of them.
      update: a boolean, whether variables and the step change.

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
    given = []
    for name, part in self.manifest.arguments.items():
      if part.kind == "input":
        value = inputs[name]
        given.append(value if isinstance(value, jax.Array)
                     else self.put(name, value))
      elif part.kind == "step":
        given.append(self.put(name, self.global_step))
      elif part.kind == "core":
        given.append(self._core_numbers(part))
      else:
        given.append(self._variables[name] if update
                     else self._variables[name].copy())
    results = dict(zip(self.manifest.results, self._step(*given)))
    if update:
      for name, result in self.manifest.updates().items():
        self._variables[name] = results[result]
      self.global_step += 1
    return {name: results[name] for name, part in self.manifest.results.items()
            if part.kind == "output"}

  def lower(self):
    """The step as jax.stages.Lowered, to be looked at and compiled."""
    return self._step.lower()

  def _core_numbers(self, part):
    numbers = np.arange(self.mesh.size, dtype=np.int32)
    return jax.make_array_from_callback(
        numbers.shape, self._step.sharding(part), lambda index: numbers[index])


def load(directory: str, devices=None) -> OnDevices:
  """Loads a folder, with the values and the step that were saved.

  Args:
    directory: a path.
    devices: see `OnDevices`.

  Returns:
    an `OnDevices`
  """
  program = OnDevices(*folder.read(directory), devices)
  values = folder.values(directory)
  program.set(values)
  program.global_step = int(values.get("global_step", 0))
  return program
