"""What is drawn in a step, and when the step is increased."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow_estimator import estimator as tf_estimator

from mtf_moe.train import reproducible

X = mtf.Dimension("x", 8)
BATCH = mtf.Dimension("batch", 4)


def draws(seed, steps, mesh_shape="rows:1,columns:1", num_microbatches=1):
  """What a model_fn draws in the given steps.

  Args:
    seed: an integer.
    steps: a list of integers, the numbers of steps before a session.run.
    mesh_shape: a string.
    num_microbatches: an integer.

  Returns:
    a dict from name to an array [steps, ...]
  """
  with tf.Graph().as_default():
    step = tf.train.create_global_step()
    found = {}

    def model_fn(features, labels, mode, config):
      del features, labels, mode, config
      graph = mtf.Graph()
      mesh = mtf.Mesh(graph, "mesh")

      def draw(features):
        del features
        noise = mtf.random_uniform(mesh, [BATCH, X], minval=1.0, maxval=2.0)
        other = mtf.random_normal(mesh, [X])
        return {"loss": mtf.reduce_sum(noise), "uniform": noise,
                "normal": other}

      if num_microbatches > 1:
        whole = mtf.Dimension("batch", BATCH.size * num_microbatches)
        weights = mtf.get_variable(mesh, "weights", [X])

        def loss(features):
          drawn = draw(features)
          drawn["loss"] += mtf.reduce_sum(weights)
          return drawn
        _, outputs = mtf.serialize_training_step(
            {"x": mtf.zeros(mesh, [whole])}, loss, whole, num_microbatches)
      else:
        outputs = draw(None)
      lowering = mtf.Lowering(graph, {mesh: mtf.placement_mesh_impl.
                                      PlacementMeshImpl(
          mesh_shape, "x:columns", [""] * mtf.convert_to_shape(
              mesh_shape).size)})
      found.update({name: lowering.export_to_tf_tensor(tensor)
                    for name, tensor in outputs.items()})
      # So late that nothing but an order keeps it before the increment.
      with tf.control_dependencies([_slow()]):
        read = step.read_value()
      found["step"] = read
      return tf_estimator.EstimatorSpec(
          "train", loss=found["loss"],
          train_op=tf.group([tf.group(found["loss"]), tf.assign_add(step, 1)]))

    spec = reproducible.reproducible(model_fn, seed)({}, None, "train", None)
    found["step_after"] = reproducible.step_after()
    with tf.Session() as session:
      session.run(tf.global_variables_initializer())
      results = []
      for number in steps:
        step.load(number, session)
        results.append(session.run((found, spec.train_op))[0])
        assert session.run(step) == number + 1
  return {name: np.stack([result[name] for result in results])
          for name in found}


def _slow():
  """A tensor that takes some milliseconds."""
  matrix = tf.random.uniform([600, 600])
  for _ in range(4):
    matrix = tf.matmul(matrix, matrix)
  return matrix


@pytest.fixture(autouse=True)
def resource_variables():
  """As the program has them."""
  tf.enable_resource_variables()
  yield
  tf.disable_resource_variables()


def test_draws_depend_on_seed_and_step_only():
  first = draws(0, [0, 1, 2])
  again = draws(0, [2, 0, 1])
  for name in ("uniform", "normal"):
    np.testing.assert_array_equal(first[name], again[name][[1, 2, 0]])
    for one, other in ((0, 1), (0, 2), (1, 2)):
      assert (first[name][one] != first[name][other]).all()
    assert (first[name] != draws(1, [0, 1, 2])[name]).all()
  assert (first["uniform"] >= 1).all() and (first["uniform"] < 2).all()
  # Of 96 numbers each: five standard deviations.
  assert abs(first["uniform"].mean() - 1.5) < 5 * 0.29 / 96 ** 0.5
  assert abs(first["normal"].mean()) < 5 / 24 ** 0.5


def test_the_step_is_increased_last():
  found = draws(0, list(range(5, 25)))
  np.testing.assert_array_equal(found["step"], range(5, 25))
  np.testing.assert_array_equal(found["step_after"], range(6, 26))


def test_slices_with_the_same_part_draw_the_same():
  """The one tensor is split over the columns, and repeated over the rows."""
  found = draws(0, [0], "rows:2,columns:2")["uniform"][0]
  assert len(np.unique(found)) == BATCH.size * X.size


def test_microbatches_draw_anew():
  found = draws(0, [0, 1], num_microbatches=3)["uniform"]
  assert found.shape == (2, 3 * BATCH.size, X.size)
  assert len(np.unique(found)) == found.size
