"""Slices of TPUs that need not be there: to compile for, not to run on."""

from collections.abc import Sequence
import dataclasses
import os
import re

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
import numpy as np

# libtpu asks a machine of Google's cloud for its TPU, and lets one process have
# it, unless it is told that there is nothing to ask for.
_NO_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
           "TPU_HOST_BOUNDS": "1,1,1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a TPU.

  Attributes:
    name: as libtpu has it, such as "v5e:16x16".
    chip: the kind of its chips, as JAX has it, such as "TPU v5 lite".
    devices: its cores, in JAX's order; programs can be compiled for them.
    hbm_bytes: the memory of a core that a program may use, or None if it is
      not known.
  """
  name: str
  chip: str
  devices: Sequence
  hbm_bytes: int | None


def describe(name: str) -> Topology:
  """Describes a slice. It takes libtpu, which mtf_moe[tpu] brings.

  Args:
    name: see `Topology`.

  Returns:
    a `Topology`

  Raises:
    ValueError: if libtpu knows no such slice.
  """
  for variable, value in _NO_TPU.items():
    os.environ.setdefault(variable, value)
  try:
    devices = topologies.get_topology_desc(name, "tpu").devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
        f"{name!r} is no slice of a TPU that libtpu knows ({plain(error)}): "
        "write the chip, a colon, and how many chips there are along each "
        "dimension, such as v5e:2x2, v5e:16x16, v5p:2x2x1, v6e:4x4 or "
        "tpu7x:2x2x1.") from None
  return Topology(
      name, devices[0].device_kind, devices, _usable_memory(devices[0]))


def out_of_memory(error: jax.errors.JaxRuntimeError) -> str | None:
  """What the compiler says if it refuses a program that is too large, or None.
  """
  text = str(error)
  return plain(error) if text.startswith("RESOURCE_EXHAUSTED") else None


def plain(error: jax.errors.JaxRuntimeError) -> str:
  """The first line of what it says, without the code of the error."""
  first, *_ = str(error).splitlines()
  return re.sub(r"^[A-Z_]+: |\.? HLO module: .*|\.$", "", first)


_UNITS = {"K": 2 ** 10, "M": 2 ** 20, "G": 2 ** 30, "T": 2 ** 40}


def _usable_memory(device):
  """Asks the compiler for too much: nothing else tells how much there is."""
  enormous = jax.ShapeDtypeStruct(
      (2 ** 25, 2 ** 20), np.float32, sharding=SingleDeviceSharding(device))
  try:
    jax.jit(lambda x: x + 1).lower(enormous).compile()
  except jax.errors.JaxRuntimeError as error:
    found = re.search(r"available HBM \(([\d.]+)([KMGT])\)|"
                      r" of ([\d.]+)([KMGT]) hbm", str(error))
    if found:
      number, unit = filter(None, found.groups())
      return int(float(number) * _UNITS[unit])
  return None
