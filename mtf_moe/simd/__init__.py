"""The program of a TPU, built, counted, compiled and run without a TPU.

For any model in mesh_tensorflow:

    program = simd.build(
        model_fn, "rows:2,columns:2", "batch:rows,hidden:columns",
        {"inputs": (tf.float32, "batch:8,depth:16")})
    simd.collectives_of(program)  # What its cores tell each other.
    with simd.Cores(program) as cores:
      outputs = cores.step({"inputs": array})

It imports no private module of TensorFlow; what it relies on is the form of
the graphs that `tf.compat.v1.tpu.replicate` makes.
"""

from mtf_moe.simd.collectives import Collective
from mtf_moe.simd.collectives import collectives_of
from mtf_moe.simd.collectives import dynamic_shapes
from mtf_moe.simd.collectives import totals
from mtf_moe.simd.compilation import compile_and_run
from mtf_moe.simd.execution import Cores
from mtf_moe.simd.execution import Gathered
from mtf_moe.simd.expansion import expand
from mtf_moe.simd.expansion import one_core
from mtf_moe.simd.program import Program
from mtf_moe.simd.program import build

__all__ = [
    "Collective",
    "Cores",
    "Gathered",
    "Program",
    "build",
    "collectives_of",
    "compile_and_run",
    "dynamic_shapes",
    "expand",
    "one_core",
    "totals",
]
