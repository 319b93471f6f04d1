"""Several processes that train together, on the devices of all of them.

Each builds the same program and reads the same batches; JAX runs the program on
all devices. The first process alone has the model directory: it tells the
others where to begin, and writes. To stop is decided together.
"""

import atexit
import dataclasses
import functools
import json
import re
import signal
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
    if number is not None or index is not None:
      raise ValueError(
          f"--coordinator={AUTO} finds --num_processes and --process_id: leave "
          "both out.")
    return
  host, _, port = coordinator.rpartition(":")
  if (not host or not re.fullmatch("[0-9]{1,5}", port)
      or not 0 < int(port) < 2 ** 16 or number is None or index is None):
    raise ValueError(
        f"--coordinator={coordinator} needs the form host:port, a port of the "
        "first process's machine that is free, with --num_processes and "
        "--process_id; or it is `auto`, on a cluster that JAX knows.")
  if number < 1:
    raise ValueError(
        f"--num_processes={number} must be how many there are, 1 or more.")
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
  host, _, port = coordinator.rpartition(":")
  host = host.strip("[]")
  if index == 0:
    lost_processes.check_port(host, int(port))
  # A process that is lost ends the others by lost_processes, with a line.
  jax.config.update("jax_enable_recoverability", True)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # Which takes SIGTERM away.
  jax.config.update("jax_enable_preemption_service", False)
  given = {} if coordinator == AUTO else {
      "coordinator_address": coordinator, "num_processes": number,
      "process_id": index}
  if host in lost_processes.LOOPBACK:
    given["coordinator_bind_address"] = coordinator
  if coordinator != AUTO:
    console.say(f"process {index}: waiting for {number} processes at "
                f"{coordinator}")
  # Until it is over, Python would not hear of Ctrl-C.
  before = signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    jax.distributed.initialize(
        **given, initialization_timeout=60 * _MINUTES_TO_JOIN)
  except (RuntimeError, ValueError) as error:
    raise ValueError(
        f"--coordinator={coordinator}: the processes have not found each "
        f"other ({str(error).splitlines()[0]}). Start all of them within "
        f"{_MINUTES_TO_JOIN} minutes, with the same --coordinator and "
        "--num_processes, each with another --process_id.") from error
  finally:
    signal.signal(signal.SIGINT, before)
  index, number = jax.process_index(), jax.process_count()
  watch = lost_processes.Watch(index, number)
  watch.connect(_broadcast(watch.address(host)))
  _joined = Joined(number, index, watch)
  atexit.register(watch.abandon)


def are_several() -> bool:
  """Whether this process is not alone."""
  return _joined is not None


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
  return {name: np.asarray(  # JAX has no numbers of 64 bits.
      multihost_utils.broadcast_one_to_all(value), value.dtype)
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
    left(1)
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
  """The largest wish of all processes, a number.

  It is found out on the devices, after what they are at: whoever asks at once
  waits for that.
  """

  def __init__(self, wish: int):
    self._result = wish if _joined is None else _largest()(wish)

  def result(self) -> int:
    return int(self._result)


@functools.cache
def _largest():
  """A function of a process's number, the same in all of them."""
  import jax
  from jax.sharding import Mesh
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec
  mesh = Mesh(np.array(jax.devices()), ("all",))
  one_each = NamedSharding(mesh, PartitionSpec("all"))
  found = jax.jit(jax.numpy.max, out_shardings=NamedSharding(
      mesh, PartitionSpec()))
  return lambda wish: found(jax.make_array_from_callback(
      (mesh.size,), one_each, lambda index: np.array([wish], np.int32)))


def left(status: int):
  """Ends the work of all processes together; called in all of them.

  Args:
    status: that with which this one will exit.
  """
  if _joined is None:
    return
  from jax.experimental import multihost_utils
  multihost_utils.sync_global_devices("done")
  _joined.watch.close()
  atexit.register(lost_processes.end_at_once, status)


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
