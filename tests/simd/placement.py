"""Runs a model of `simd.build` on a placement mesh, for comparison."""

import mesh_tensorflow as mtf
from mesh_tensorflow.placement_mesh_impl import PlacementMeshImpl
import tensorflow.compat.v1 as tf


class RoundingMeshImpl(PlacementMeshImpl):
  """Exchanges float32 as bfloat16, as SimdMeshImpl does."""

  def alltoall(self, x, mesh_axis, split_axis, concat_axis):
    slices = x.to_laid_out_tensor()
    dtype = slices.tensor_list[0].dtype
    if dtype == tf.float32:
      x = self.slicewise(lambda t: tf.cast(t, tf.bfloat16), slices)
    moved = super().alltoall(x, mesh_axis, split_axis, concat_axis)
    return self.slicewise(lambda t: tf.cast(t, dtype), moved)


def run(model_fn, mesh_shape, layout, inputs, feeds, weights, steps=1,
        impl_class=PlacementMeshImpl):
  """Trains a model.

  Args:
    model_fn: as for `simd.build`, like the next three.
    mesh_shape: an input to mtf.convert_to_shape.
    layout: an input to mtf.convert_to_layout_rules.
    inputs: for each name, a tf.DType and a shape.
    feeds: the arrays that are fed in each step, by name.
    weights: a function from the names of variables and their shapes to their
      values.
    steps: an integer, the updates.
    impl_class: PlacementMeshImpl or RoundingMeshImpl.

  Returns:
    the outputs of each step, a list of dicts, and the variables at the end, a
    dict
  """
  with tf.Graph().as_default():
    shape = mtf.convert_to_shape(mesh_shape)
    impl = impl_class(shape, mtf.convert_to_layout_rules(layout),
                      [""] * shape.size)
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    next_step = tf.assign_add(tf.train.get_or_create_global_step(), 1)
    placeholders = {
        name: tf.placeholder(dtype, mtf.convert_to_shape(shape).to_integer_list)
        for name, (dtype, shape) in inputs.items()}
    outputs, updates = model_fn({
        name: mtf.import_tf_tensor(mesh, placeholder, inputs[name][1])
        for name, placeholder in placeholders.items()})
    lowering = mtf.Lowering(graph, {mesh: impl}, autostack=False)
    fetches = {name: lowering.export_to_tf_tensor(t)
               for name, t in outputs.items()}
    # Nothing keeps a placement mesh from overwriting a variable before all have
    # read it, so what is assigned is computed first, and then fed.
    assigned = [
        t for op in updates for value in op.inputs
        for t in lowering.tensors[value].to_laid_out_tensor().all_slices]
    update = [lowering.lowered_operation(op) for op in updates]
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.Session(config=config) as session:
      session.run(tf.global_variables_initializer())
      for variable in tf.global_variables():
        variable.load(
            weights(variable.op.name, variable.shape.as_list()), session)
      session.run(lowering.copy_masters_to_slices())
      feed = {placeholders[name]: array for name, array in feeds.items()}
      results = []
      for _ in range(steps):
        outputs, values = session.run([fetches, assigned], feed)
        results.append(outputs)
        session.run([update], dict(zip(assigned, values)))
        session.run(next_step)
      session.run(lowering.copy_slices_to_masters())
      values = session.run({v.op.name: v for v in tf.global_variables()})
  return results, values
