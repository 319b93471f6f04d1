"""Has the TPU's compiler compile the training step. It needs JAX and libtpu."""

import time

import jax

from mtf_moe.plan import hlo
from mtf_moe.plan.compiled import Compiled
from mtf_moe.plan.compiled import Memory
from mtf_moe.plan.compiled import Refused
from mtf_moe.plan.compiled import Target
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.xla import configured as configured_lib
from mtf_moe.xla import exporting
from mtf_moe.xla import topology as topology_lib
from mtf_moe.xla.sharded_step import ShardedStep
from mtf_moe.xla.topology import Topology


def topology_for(configured: ConfiguredModel, name: str) -> Topology:
  """The slice to compile for.

  Args:
    configured: the `ConfiguredModel`.
    name: such as "v5e:16x16".

  Returns:
    a `Topology`

  Raises:
    ValueError: if there is no such slice, or its cores are not as many as those
      of the mesh.
  """
  topology = topology_lib.describe(name)
  cores = configured.mesh_shape.size
  if len(topology.devices) != cores:
    shape = ",".join(f"{dim.name}:{dim.size}"
                     for dim in configured.mesh_shape.dims)
    raise ValueError(
        f"--compile_for={name} has {len(topology.devices)} cores, and "
        f"run.mesh_shape = {shape!r} has {cores}: name a slice of {cores}, or "
        "give a mesh of as many cores by --mesh_shape.")
  return topology


def compile_for(configured: ConfiguredModel, topology: Topology
                ) -> Compiled | Refused:
  """Compiles forward, backward and update, with the loop over microbatches.

  The cores of the mesh are those of the slice in JAX's order, as where a
  program runs.

  Args:
    configured: the `ConfiguredModel`.
    topology: of as many cores as its mesh has.

  Returns:
    what the compiler says

  Raises:
    ValueError: if the step cannot be exported, or the compiler refuses it for
      another reason than its size.
  """
  target = Target(topology.name, topology.chip, len(topology.devices),
                  topology.hbm_bytes)
  module, manifest = exporting.export(
      configured_lib.program(configured, 0, configured.data_dims))
  lowered = ShardedStep(module, manifest, topology.devices).lower()
  began = time.monotonic()
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    said = topology_lib.out_of_memory(error)
    if said is None:
      raise ValueError(
          f"the compiler of {target} refuses the step: "
          f"{topology_lib.plain(error)}") from None
    return Refused(target, time.monotonic() - began, said)
  seconds = time.monotonic() - began
  costs = executable.cost_analysis()
  return Compiled(
      target, seconds, _memory(executable.memory_analysis()),
      costs["flops"], costs["bytes accessed"],
      hlo.collectives(executable.as_text(), manifest.mesh))


def _memory(stats):
  return Memory(
      arguments=stats.argument_size_in_bytes,
      outputs=stats.output_size_in_bytes, aliased=stats.alias_size_in_bytes,
      temporaries=stats.temp_size_in_bytes,
      program=stats.generated_code_size_in_bytes,
      peak=stats.peak_memory_in_bytes)
