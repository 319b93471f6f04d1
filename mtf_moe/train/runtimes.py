"""What runs the steps of training: TensorFlow, or the devices that JAX sees."""

import importlib.util
import os

import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf

from mtf_moe.run import console
from mtf_moe.run import gin_bindings
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


def prepare(mesh_shape: mtf.Shape, tpu: str | None, joined=(None,) * 3):
  """Makes the runtime ready, and sees that it can train on a mesh.

  Args:
    mesh_shape: that of the configuration.
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
  # Where there is no other device, a CPU is as many as the mesh has cores. On
  # one that waits for others, no step is begun before the last one is over.
  import jax
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if _COUNT not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update(
        "jax_num_cpu_devices", max(1, mesh_shape.size // (number or 1)))
  tf.config.set_visible_devices([], "GPU")  # They are JAX's.
  if coordinator is not None:
    processes.join(*joined)
  from mtf_moe.xla import devices
  found = devices.of_mesh({dim.name: dim.size for dim in mesh_shape.dims})
  if not jax.__version__.startswith(f"{_TESTED}."):
    console.warn(
        f"JAX {jax.__version__} is installed, and {_TESTED} is what was tested "
        "with --runtime=xla.")
  among = f" of {processes.number()} processes" if coordinator else ""
  console.say(f"training on {len(found)} devices ({found[0].device_kind})"
              f"{among} with JAX {jax.__version__}")


_TESTED = "0.11"
_COUNT = "xla_force_host_platform_device_count"
