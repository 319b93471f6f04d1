"""The program of a TPU's cores on any devices that JAX runs on.

`simd` builds it, and here it becomes one module of StableHLO with collectives
in it, which JAX's runtime compiles for CPUs, GPUs and TPUs, on one host or
many:

    exporting.save("my_program", simd.build(...), values)   # With TensorFlow.

    program = devices.load("my_program")                    # Without.
    outputs = program.step({"inputs": array})
"""
