"""Builds the program that every core of a TPU runs, without a TPU.

mesh_tensorflow lowers a graph for TPUs as one program for all cores (SIMD:
single program, multiple data), with collective operations where cores exchange
data. TensorFlow builds it for hardware that is only described, not present.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
from typing import Any

import mesh_tensorflow as mtf
from mesh_tensorflow.simd_mesh_impl import SimdMeshImpl
import tensorflow.compat.v1 as tf

from mtf_moe.run import draws
from mtf_moe.simd.slicing import Slicing


@dataclasses.dataclass(frozen=True)
class Input:
  """A tensor that is fed.

  Attributes:
    shape: its mtf.Shape.
    placeholders: the name of each core's placeholder, which takes its slice.
  """

  shape: mtf.Shape
  placeholders: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Output:
  """A tensor that each core computes a slice of.

  Attributes:
    shape: its mtf.Shape.
    tensor: its name in the core's program.
  """

  shape: mtf.Shape
  tensor: str


@dataclasses.dataclass(frozen=True)
class Variable:
  """A variable as checkpoints have it, whole; mtf calls it the master.

  Attributes:
    initializer: the name of the operation that gives it its first value.
    initial_value: the name of the tensor with that value, which can be fed.
    value: the name of the tensor that reads it.
    shape: its sizes.
  """

  initializer: str
  initial_value: str
  value: str
  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SliceVariables:
  """The variables that the cores work on, each with its slice of a master.

  Attributes:
    shape: the mtf.Shape of the whole. Where autostack joined several masters,
      it starts with the dimension "stacked".
    values: the name of the tensor that reads each core's slice.
  """

  shape: mtf.Shape
  values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Program:
  """A SIMD program, and where to find things in it.

  Attributes:
    graph_def: the tf.GraphDef, with shapes. Nodes with the attribute
      `_tpu_replicate` are the code that every core runs.
    slicing: the `Slicing` of tensors over the cores.
    inputs: an `Input` for each name.
    outputs: an `Output` for each name.
    variables: a `Variable` for each name.
    slices: `SliceVariables` for each name of an mtf variable.
    update: the name of the operation, in the core's program, that updates the
      slices.
    initializer: the name of the operation that initializes all `variables`.
    copy_masters_to_slices: the name of that operation; it also initializes the
      slices.
    copy_slices_to_masters: the name of that operation.
    next_step: the name of the operation that counts the global step.
    counters: what mtf.Lowering counted: pairs of a name and a number, summed
      over all cores.
  """

  graph_def: tf.GraphDef
  slicing: Slicing
  inputs: Mapping[str, Input]
  outputs: Mapping[str, Output]
  variables: Mapping[str, Variable]
  slices: Mapping[str, SliceVariables]
  update: str
  initializer: str
  copy_masters_to_slices: str
  copy_slices_to_masters: str
  next_step: str
  counters: tuple[tuple[str, int], ...]


def build(
    model_fn: Callable[[dict[str, mtf.Tensor]], tuple[dict, list]],
    mesh_shape, layout_rules, inputs: Mapping[str, tuple[Any, Any]],
    logical_to_physical=None, autostack: bool = False, seed: int | None = None
    ) -> Program:
  """Builds the SIMD program of a model for a mesh of any size.

  Args:
    model_fn: a function from the inputs, mtf.Tensors by name, to the outputs,
      a dict of mtf.Tensors of any layout, and a list of mtf update operations,
      such as an optimizer's `apply_grads` returns. It may use the global step,
      which counts updates.
    mesh_shape: an input to mtf.convert_to_shape.
    layout_rules: an input to mtf.convert_to_layout_rules.
    inputs: for each name, a tf.DType and an input to mtf.convert_to_shape.
    logical_to_physical: a permutation, the physical number of each core of the
      mesh, or None for the same order.
    autostack: a boolean, whether mtf joins small variables of the same shape.
    seed: an integer, for initial values, and for random numbers that depend on
      it and on the global step (see `run.draws`); None for mtf's own, which no
      device repeats.

  Returns:
    a Program

  Raises:
    ValueError: if TensorFlow is not in its TF1 mode, `logical_to_physical` is
      no permutation, or the mesh does not divide a tensor.
  """
  if tf.control_flow_v2_enabled():
    raise ValueError(
        "Control flow v2 is enabled, and in its loops collectives could not be "
        "found: call tf.compat.v1.disable_v2_behavior() at the start of the "
        "program, as everything built on mesh_tensorflow does.")
  slicing = Slicing.of(mesh_shape, layout_rules, logical_to_physical)
  shapes = {name: mtf.convert_to_shape(shape)
            for name, (_, shape) in inputs.items()}
  graph = tf.Graph()
  with graph.as_default():
    if seed is not None:
      tf.set_random_seed(seed)
    next_step = tf.assign_add(
        tf.train.get_or_create_global_step(), 1, name="simd/next_step")
    fed = {name: [
        tf.placeholder(dtype, slicing.slice_shape(shapes[name]),
                       name=f"simd/inputs/{name}/core_{core}")
        for core in range(slicing.num_cores)]
           for name, (dtype, _) in inputs.items()}
    outputs, update, lowering = _replicate(
        model_fn, slicing, fed, shapes, autostack, seed)
    return Program(
        slicing=slicing,
        inputs={name: Input(shapes[name], tuple(t.name for t in placeholders))
                for name, placeholders in fed.items()},
        outputs=outputs,
        variables=_masters(),
        slices=_slices(lowering, slicing.num_cores),
        update=update,
        initializer=tf.variables_initializer(
            tf.global_variables(), name="simd/initializer").name,
        copy_masters_to_slices=tf.group(
            lowering.copy_masters_to_slices(), name="simd/to_slices").name,
        copy_slices_to_masters=tf.group(
            lowering.copy_slices_to_masters(), name="simd/to_masters").name,
        next_step=next_step.op.name,
        counters=tuple(lowering.counters),
        graph_def=graph.as_graph_def(add_shapes=True))


def _replicate(model_fn, slicing, fed, shapes, autostack, seed):
  """Lowers a model in the current graph, inside of a replicated computation.

  Args:
    model_fn: see `build`.
    slicing: a `Slicing`.
    fed: a list of tf.Tensors, one a core, for each name of an input.
    shapes: a mtf.Shape for each name of an input.
    autostack: a boolean.
    seed: an integer, or None.

  Returns:
    an `Output` for each name, the name of the update, and the mtf.Lowering
  """
  assignment = _device_assignment(slicing.num_cores)
  names, cores = list(fed), range(slicing.num_cores)
  results = []

  def core_program(*tensors):
    impl = SimdMeshImpl(
        slicing.mesh_shape, slicing.layout_rules, device_assignment=assignment,
        logical_to_physical=list(slicing.logical_to_physical))
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    outputs, updates = model_fn({
        name: mtf.import_laid_out_tensor(
            mesh, impl.LaidOutTensor([tensor]), shapes[name], name)
        for name, tensor in zip(names, tensors)})
    with contextlib.ExitStack() as stack:
      if seed is not None:
        stack.enter_context(draws.by_step(
            seed, tf.cast(tf.train.get_global_step(), tf.int64)))
      lowering = mtf.Lowering(graph, {mesh: impl}, autostack=autostack)
    tensors = {name: lowering.tensors[t].to_laid_out_tensor().one_slice
               for name, t in outputs.items()}
    update = tf.group([lowering.lowered_operation(op) for op in updates])
    results.extend([
        {name: Output(outputs[name].shape, tensor.name)
         for name, tensor in tensors.items()}, update.name, lowering])
    return [*tensors.values(), update]

  tf.tpu.replicate(
      core_program, [[fed[name][core] for name in names] for core in cores],
      device_assignment=assignment)
  return results


def _device_assignment(num_cores):
  """Cores in a row, one on each of as many chips."""
  coordinates = [[core, 0, 0, 0] for core in range(num_cores)]
  topology = tf.tpu.experimental.Topology(
      mesh_shape=[num_cores, 1, 1, 1], device_coordinates=[coordinates])
  return tf.tpu.experimental.DeviceAssignment(
      topology, [[place] for place in coordinates])


def _masters():
  return {
      v.op.name: Variable(
          v.initializer.name, v.initializer.inputs[1].name, v.value().name,
          tuple(v.shape.as_list()))
      for v in tf.global_variables()}


def _slices(lowering, num_cores):
  # mtf collects the slices of one variable after the other.
  slices = tf.get_collection("TPU_VAR")
  return {
      variable.name: SliceVariables(
          variable.shape,
          tuple(v.value().name for v in slices[i:i + num_cores]))
      for variable, i in zip(
          lowering.variables, range(0, len(slices), num_cores))}
