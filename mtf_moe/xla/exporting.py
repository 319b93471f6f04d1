"""Exports a program of simd as one that JAX runs on any devices."""

from collections.abc import Mapping
import dataclasses

import jax
import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf

from mtf_moe.simd import expansion
from mtf_moe.simd.program import Program
from mtf_moe.simd.slicing import Slicing
from mtf_moe.xla import core_function
from mtf_moe.xla import first_values
from mtf_moe.xla import folder
from mtf_moe.xla import stablehlo


def export(program: Program, float32_alltoall: bool = True
           ) -> tuple[bytes, folder.Manifest]:
  """Exports a program.

  Args:
    program: a simd.Program.
    float32_alltoall: a boolean. mtf's mesh exchanges float32 as bfloat16; True
      takes this rounding out, False keeps it: half as much is sent.

  Returns:
    a serialized jax.export.Exported, and the `folder.Manifest`

  Raises:
    ValueError: if it does something that cannot be exported.
  """
  if float32_alltoall:
    program = dataclasses.replace(
        program, graph_def=expansion.without_rounding(program.graph_def))
  function = core_function.cut_out(program)
  exported = stablehlo.lowered(function, program.slicing)
  parts = _Parts(program.slicing)
  return bytes(exported.serialize()), folder.Manifest(
      mesh={dim.name: dim.size for dim in program.slicing.mesh_shape.dims},
      arguments={
          **{name: parts.of(argument, "input")
             for name, argument in function.inputs.items()},
          **{name: parts.of(argument, _KINDS.get(name, "variable"))
             for name, argument in function.variables.items()}},
      results={
          **{name: parts.of(argument, "output")
             for name, argument in function.outputs.items()},
          **{f"next {name}": parts.of(argument, "update")
             for name, argument in function.updates.items()}},
      made_from={"tensorflow": tf.__version__, "jax": jax.__version__})


_KINDS = {core_function.STEP: "step", core_function.CORE: "core"}


def save(directory: str, program: Program,
         values: Mapping[str, np.ndarray] | None = None,
         float32_alltoall: bool = True):
  """Exports a program into a folder; see `folder`.

  Args:
    directory: a path.
    program: a simd.Program.
    values: the whole values of variables, by name; None saves how they are
      drawn.
    float32_alltoall: see `export`.
  """
  module, manifest = export(program, float32_alltoall)
  folder.write(
      directory, module, manifest, values,
      first_values.exported(program, manifest) if values is None else None)


@dataclasses.dataclass(frozen=True)
class _Parts:
  """How tensors lie on the mesh."""

  slicing: Slicing

  def of(self, argument, kind):
    dtype = stablehlo.narrow(argument.dtype).name
    if argument.shape is None:
      return folder.Part(None, dtype, (), kind)
    mesh_shape = self.slicing.mesh_shape
    layout = self.slicing.layout_rules.tensor_layout(
        mtf.Shape(argument.shape.dims), mesh_shape)
    return folder.Part(
        tuple(argument.shape.to_integer_list), dtype, tuple(
            None if axis is None else mesh_shape.dims[axis].name
            for axis in layout.tensor_axis_to_mesh_axis), kind)
