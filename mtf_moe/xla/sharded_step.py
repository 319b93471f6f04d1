"""The step of a program on a mesh of devices, which may be only described."""

from collections.abc import Sequence
import dataclasses

import jax
from jax import export as jax_export
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from mtf_moe.xla.folder import Manifest
from mtf_moe.xla.folder import Part


class ShardedStep:
  """A function of whole arrays, of which every device has its parts.

  It holds none, so that it can be lowered and compiled for devices that are not
  there.

  Attributes:
    mesh: the jax.sharding.Mesh.
  """

  def __init__(self, module: bytes, manifest: Manifest, devices: Sequence):
    """Prepares it.

    Args:
      module: a serialized jax.export.Exported.
      manifest: its `Manifest`.
      devices: as many jax.Devices as the mesh has cores, in its order.
    """
    self._manifest = manifest
    self.mesh = Mesh(
        np.array(devices).reshape(list(manifest.mesh.values())),
        tuple(manifest.mesh))
    self._whole = self._sharded(self.on_platform(module))
    # By the results that are wanted.
    self._jitted: dict[tuple[str, ...], jax.stages.Wrapped] = {}

  def __call__(self, arguments: Sequence[jax.Array], wanted: Sequence[str]
               ) -> list[jax.Array]:
    """Runs it, and computes nothing that the results do not need.

    Args:
      arguments: all of them, in the manifest's order. Those of variables that
        it changes are given away.
      wanted: names of results.

    Returns:
      the results
    """
    return self._of(tuple(wanted))(*arguments)

  def sharding(self, part: Part) -> NamedSharding:
    """How an argument or a result lies on the devices."""
    return NamedSharding(self.mesh, self._spec(part))

  def lower(self) -> jax.stages.Lowered:
    """The whole step, to be looked at and compiled."""
    return self._of(tuple(self._manifest.results)).lower(*[
        jax.ShapeDtypeStruct(
            (self.mesh.size,) if part.kind == "core" else (part.shape or ()),
            part.dtype, sharding=self.sharding(part))
        for part in self._manifest.arguments.values()])

  def _of(self, wanted):
    """The compiled function of some results."""
    if wanted not in self._jitted:
      names, updates = [*self._manifest.results], self._manifest.updates()
      places = [names.index(name) for name in wanted]

      def results(*arguments):
        everything = self._whole(*arguments)
        return [everything[place] for place in places]

      self._jitted[wanted] = jax.jit(results, donate_argnums=[
          number for number, name in enumerate(self._manifest.arguments)
          if updates.get(name) in wanted])
    return self._jitted[wanted]

  def on_platform(self, module: bytes) -> jax_export.Exported:
    """A module for the devices of the mesh; nothing in it is of a platform."""
    return dataclasses.replace(
        jax_export.deserialize(bytearray(module)),
        platforms=(_platform(self.mesh.devices.flat[0]),))

  def _sharded(self, exported):
    arguments = self._manifest.arguments.values()

    def of_core(*parts):
      return tuple(exported.call(*[
          value[0] if part.kind == "core" else value
          for part, value in zip(arguments, parts)]))

    return jax.shard_map(
        of_core, mesh=self.mesh, check_vma=False,
        in_specs=tuple(map(self._spec, arguments)),
        out_specs=tuple(map(self._spec, self._manifest.results.values())))

  def _spec(self, part):
    if part.kind == "core":  # One for each.
      return PartitionSpec(tuple(self._manifest.mesh))
    return PartitionSpec(*part.axes)


def _platform(device):
  """What a platform is called where programs are lowered."""
  if device.platform != "gpu":
    return device.platform
  made_by = device.client.platform_version.lower()
  return "rocm" if "rocm" in made_by else "cuda"
