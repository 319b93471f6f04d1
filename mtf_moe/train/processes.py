"""Several processes that train together, on the devices of all of them.

Each builds the same program and reads the same batches; JAX runs the program on
all devices. The first process alone has the model directory: it tells the
others where to begin, and writes. To stop is decided together.
"""

import dataclasses
import functools
import json
from typing import Any

import numpy as np

from mtf_moe.run import console
from mtf_moe.train import lost_processes

# None where a process is alone.
_joined: "Joined | None" = None


@dataclasses.dataclass(frozen=True)
class Joined:
  """Processes that have found each other.

  Attributes:
    number: how many they are.
    index: which of them this one is.
    watch: ends this process when another is lost.
  """

  number: int
  index: int
  watch: lost_processes.Watch


def check_flags(coordinator: str | None, number: int | None, index: int | None):
  """Sees that flags are complete.

  Args:
    coordinator: the value of --coordinator.
    number: that of --num_processes.
    index: that of --process_id.

  Raises:
    ValueError: if they are not.
  """
  if coordinator is None:
    if number is not None or index is not None:
      raise ValueError(
          "--num_processes and --process_id are for several processes: name "
          "the first one by --coordinator=host:port, too, or leave them out.")
    return
  if coordinator == AUTO:
    return
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit() or number is None or index is None:
    raise ValueError(
        f"--coordinator={coordinator} needs the form host:port, a port of the "
        "first process's machine that is free, with --num_processes and "
        "--process_id; or it is `auto`, on a cluster that JAX knows.")
  if not 0 <= index < number:
    raise ValueError(
        f"--process_id={index} is none of --num_processes={number}: they are "
        f"counted from 0 to {number - 1}.")


AUTO = "auto"
_MINUTES_TO_JOIN = 5


def join(coordinator: str, number: int | None, index: int | None):
  """Waits for the other processes.

  Args:
    coordinator: the value of --coordinator.
    number: that of --num_processes.
    index: that of --process_id.

  Raises:
    ValueError: if they are not found.
  """
  global _joined
  import jax
  # A process that is lost ends the others by lost_processes, with a line.
  jax.config.update("jax_enable_recoverability", True)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  given = {} if coordinator == AUTO else {
      "coordinator_address": coordinator, "num_processes": number,
      "process_id": index}
  if given:
    console.say(f"process {index}: waiting for {number} processes at "
                f"{coordinator}")
  try:
    jax.distributed.initialize(
        **given, initialization_timeout=60 * _MINUTES_TO_JOIN)
  except (RuntimeError, ValueError) as error:
    raise ValueError(
        f"--coordinator={coordinator}: the processes have not found each "
        f"other ({str(error).splitlines()[0]}). Start all of them within "
        f"{_MINUTES_TO_JOIN} minutes, with the same --coordinator and "
        "--num_processes, each with another --process_id.") from error
  index, number = jax.process_index(), jax.process_count()
  host = None if coordinator == AUTO else coordinator.rpartition(":")[0]
  watch = lost_processes.Watch(index, number)
  watch.connect(_broadcast(watch.address(host)))
  _joined = Joined(number, index, watch)


def is_first() -> bool:
  """Whether this process has the model directory."""
  return _joined is None or _joined.index == 0


def number() -> int:
  """How many processes train together."""
  return 1 if _joined is None else _joined.number


def of_first(value: Any) -> Any:
  """What the first process has, as JSON has it."""
  return value if _joined is None else _broadcast(value)


def arrays_of_first(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of the first process; all have as many of the same shapes."""
  if _joined is None:
    return values
  from jax.experimental import multihost_utils
  return {name: np.asarray(multihost_utils.broadcast_one_to_all(value))
          for name, value in sorted(values.items())}


def check_same(settings: dict[str, Any]):
  """Sees that all processes have the same settings.

  Args:
    settings: by name.

  Raises:
    ValueError: if they do not, in all of them.
  """
  if _joined is None:
    return
  from jax.experimental import multihost_utils
  theirs = of_first(settings)
  settings = json.loads(json.dumps(settings))
  other = sorted(name for name in {*theirs, *settings}
                 if theirs.get(name) != settings.get(name))
  same = multihost_utils.process_allgather(np.int32(not other))
  if not same.all():
    left()
  if other:
    name = other[0]
    raise ValueError(
        f"process {_joined.index} has {name} = {settings.get(name)!r}, and "
        f"process 0 has {theirs.get(name)!r}: start all processes with the "
        "same configuration and releases.")
  if not same.all():
    raise ValueError(
        "other processes have another configuration (process "
        f"{', '.join(map(str, np.flatnonzero(same == 0)))} says which): start "
        "all of them with the same.")


class Vote:
  """Whether any process wants to stop.

  It is found out on the devices, after what they are at: whoever asks at once
  waits for that.
  """

  def __init__(self, wish: bool):
    self._result = wish if _joined is None else _any()(wish)

  def result(self) -> bool:
    return bool(self._result)


@functools.cache
def _any():
  """A function of a process's boolean, the same in all of them."""
  import jax
  from jax.sharding import Mesh
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec
  mesh = Mesh(np.array(jax.devices()), ("all",))
  one_each = NamedSharding(mesh, PartitionSpec("all"))
  found = jax.jit(jax.numpy.any, out_shardings=NamedSharding(
      mesh, PartitionSpec()))
  return lambda wish: found(jax.make_array_from_callback(
      (mesh.size,), one_each, lambda index: np.array([wish])))


def left():
  """Ends the work of all processes together, when all are done."""
  if _joined is None:
    return
  import jax
  from jax.experimental import multihost_utils
  multihost_utils.sync_global_devices("done")
  # The first process, which the others are connected to, is the last to go.
  if is_first():
    _joined.watch.close()
    jax.distributed.shutdown()
  else:
    jax.distributed.shutdown()
    _joined.watch.close()


def wait_for_news():
  """After an error that a lost process may have caused: the watch ends this."""
  if _joined is not None:
    _joined.watch.wait()


def _broadcast(value):
  """Sends what JSON has."""
  from jax.experimental import multihost_utils
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
  sent = np.resize(text, size)  # The others' is not looked at.
  return json.loads(np.asarray(
      multihost_utils.broadcast_one_to_all(sent), np.uint8).tobytes())
