"""The program of a TPU's cores on any devices that JAX runs on.

`simd` builds it, and here it becomes one module of StableHLO with collectives
in it, which JAX's runtime compiles for CPUs, GPUs and TPUs, on one host or
many:

    exporting.save("my_program", simd.build(...), values)   # With TensorFlow.

    program = devices.load("my_program")                    # Without.
    outputs = program.step({"inputs": array})
"""

import importlib.util

if importlib.util.find_spec("jax") is None:
  raise ImportError(
      "mtf_moe.xla needs JAX, which is not installed: pip install "
      '"mtf_moe[xla]", with Python 3.12 or a later one.',
      name=__name__)  # By which `python -m` knows to say it in one line.
