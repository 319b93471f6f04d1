"""What runs the steps of training: TensorFlow, or the devices that JAX sees."""

import importlib.metadata
import importlib.util
import os
from typing import Any

import gin
import tensorflow.compat.v1 as tf

from mtf_moe.run import console
from mtf_moe.run import gin_bindings
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.train import made_with
from mtf_moe.train import processes

TENSORFLOW, XLA = "tensorflow", "xla"
RUNTIMES = (TENSORFLOW, XLA)


def get() -> str:
  """The value of train_model.runtime.

  Raises:
    ValueError: if it is none that is known.
  """
  runtime = gin_bindings.bound("mtf_moe.train_model", "runtime", TENSORFLOW)
  if runtime not in RUNTIMES:
    raise ValueError(
        f"train_model.runtime = {runtime!r} is not known. Choose one of: "
        f"{', '.join(map(repr, RUNTIMES))}.")
  return runtime


def prepare(configured: ConfiguredModel, tpu: str | None,
            joined=(None,) * 3):
  """Makes the runtime ready, and sees that it can train the model.

  Args:
    configured: the configuration.
    tpu: the value of --tpu.
    joined: the values of --coordinator, --num_processes and --process_id.

  Raises:
    ValueError: if it cannot.
  """
  coordinator, number, _ = joined
  if get() != XLA:
    if coordinator is not None:
      raise ValueError(
          f"--coordinator={coordinator} is for several processes, which train "
          "with --runtime=xla only: set that, too, or leave it out.")
    return
  if tpu:
    raise ValueError(
        f"--tpu={tpu} names a TPU for TensorFlow, and --runtime=xla trains on "
        "the devices that JAX sees: leave out one of the two, and run on the "
        "machine that has the TPU.")
  if importlib.util.find_spec("jax") is None:
    raise ValueError(
        "--runtime=xla needs JAX, which is not installed: pip install "
        '"mtf_moe[xla]", with Python 3.12 or a later one; or train with '
        "--runtime=tensorflow.")
  _check(configured.run)
  # Where there is no other device, a CPU is as many as the mesh has cores. On
  # one that waits for others, no step is begun before the last one is over.
  import jax
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if _COUNT not in os.environ.get("XLA_FLAGS", ""):
    cores = configured.mesh_shape.size
    jax.config.update("jax_num_cpu_devices", max(1, cores // (number or 1)))
  tf.config.set_visible_devices([], "GPU")  # They are JAX's.
  if coordinator is not None:
    processes.join(*joined)
  from mtf_moe.xla import devices
  devices.of_mesh({dim.name: dim.size for dim in configured.mesh_shape.dims})
  if not jax.__version__.startswith(f"{_TESTED}."):
    console.warn(
        f"JAX {jax.__version__} is installed, and {_TESTED} is what was tested "
        "with --runtime=xla.")


def settings(configured: ConfiguredModel) -> dict[str, Any]:
  """All that processes that train together must have in common, by name."""
  found = made_with.MadeWith.configured(configured).flat()
  for line in gin.config_str(max_line_length=10 ** 6).splitlines():
    name, is_binding, value = line.partition(" = ")
    if is_binding and not name.startswith("#"):
      found[name] = value
  if get() == XLA:
    found["version of JAX"] = importlib.metadata.version("jax")
  return found


def described() -> str:
  """What trains, with --runtime=xla, in a line."""
  import jax
  found = jax.devices()
  among = (f" of {processes.number()} processes" if processes.are_several()
           else "")
  return (f"training on {len(found)} devices ({found[0].device_kind}){among} "
          f"with JAX {jax.__version__}")


def _check(run):
  """Sees that nothing is asked for that only an Estimator does."""
  if run.get("checkpoint_input_pipeline"):
    raise ValueError(
        "run.checkpoint_input_pipeline = True is not for --runtime=xla: set "
        "run.skip_seen_data = True, which goes on with the same data.")
  if run.get("ensemble_inputs"):
    raise ValueError(
        f"run.ensemble_inputs = {run['ensemble_inputs']!r} is not for "
        "--runtime=xla: leave it out, or train with --runtime=tensorflow.")


_TESTED = "0.11"
_COUNT = "xla_force_host_platform_device_count"
