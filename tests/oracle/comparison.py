"""Runs a case in our layer, in mesh_tensorflow's, and in plain loops.
"""

import contextlib
import dataclasses

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import mtf_moe
from tests import harness
from tests.oracle import loops

# Ours and the reference do the same arithmetic on the same routing, at most in
# another order; a token routed differently would show as an error of order 1.
# In bfloat16, rounding comes after it, and an order that differs shows as one
# unit in the last place, 2^-8. The loss is float32 until its last rounding.
REFERENCE_TOLERANCE = {tf.float32: 1e-5, tf.bfloat16: 2.0 ** -8}
LOSS_TOLERANCE = 1e-5
# With a z-loss, which the reference adds before that rounding, and ours, having
# a weight of its own, after it, in another scale: four roundings differ.
Z_LOSS_TOLERANCE = {tf.float32: 1e-5, tf.bfloat16: 4 * 2.0 ** -8}
# The loops round to bfloat16 where the layer does, but sum in float64: hidden
# units, outputs and the sums of both levels may each be a unit, 2^-7, apart.
LOOPS_TOLERANCE = {tf.float32: 1e-5, tf.bfloat16: 4 * 2.0 ** -7}
# Two rounded losses, their sum and the product.
LOOPS_LOSS_TOLERANCE = {tf.float32: 1e-5, tf.bfloat16: 4 * 2.0 ** -8}
# The error of float32 gradients of some hundred terms, relative to the whole
# gradient's length; that of the difference in float64 is far below.
SLOPE_TOLERANCE = 1e-5
_STEP = 1e-7
# What is below this times the tolerance is rounding: routers' gradients, those
# of a single expert most of all, are differences of terms of order 1.
_SMALLEST_GRADIENT = 0.1


def compare(case):
  """Runs all three and compares all that they give.

  Args:
    case: a Case.

  Returns:
    the largest error of each kind, relative to the largest element, by name,
    such as "reference: output"
  """
  results = run(case, "ours", "theirs")
  ours, theirs = results["ours"], results["theirs"]
  assert ours.variables == theirs.variables
  if case.z_loss is not None and np.isnan(theirs.loss):
    # Their z-loss is divided by the number of tokens of importance 1, which is
    # zero: all but the z-loss is compared, and the loops have that.
    assert np.isfinite(ours.loss)
    return {**compare(dataclasses.replace(case, z_loss=None)),
            **compare_with_loops(case, ours)}
  tolerance, loss_tolerance = REFERENCE_TOLERANCE[case.dtype], LOSS_TOLERANCE
  if case.train and case.z_loss is not None:
    tolerance = loss_tolerance = Z_LOSS_TOLERANCE[case.dtype]
  errors = {
      # No loss is in the outputs.
      "reference: output": _error(
          ours.output, theirs.output, REFERENCE_TOLERANCE[case.dtype]),
      "reference: loss": _error(ours.loss, theirs.loss, loss_tolerance),
      "reference: gradient of inputs": _error(
          ours.input_gradient, theirs.input_gradient, tolerance)}
  for name, gradient in theirs.gradients.items():
    errors[f"reference: gradient of {name}"] = _error(
        ours.gradients[name], gradient, tolerance)
  return {**errors, **compare_with_loops(case, ours)}


def run(case, *names, inputs=None):
  """Runs layers on a case.

  Args:
    case: the Case.
    *names: "ours" and "theirs", or one of them.
    inputs: other inputs than the case's, or None.

  Returns:
    a harness.Result for each layer, by name
  """
  impl = harness.mesh_impl(*case.mesh, layout=case.layout)

  def layer(function, hparams, num_microbatches, ones_for_absent=False):
    def call(tensors):
      inputs = tensors["inputs"]
      nonpadding = tensors.get("nonpadding")
      if nonpadding is None and ones_for_absent:
        nonpadding = mtf.ones(
            inputs.mesh, mtf.Shape(case.token_dims()), case.dtype)
      return function(
          inputs, output_dim(case), hparams, case.train,
          harness.variable_dtype(case.dtype), layout=impl.layout_rules,
          mesh_shape=impl.shape, nonpadding=nonpadding,
          num_microbatches=num_microbatches)
    return call

  # Theirs cannot train without importance, multiplies the z-loss by the other
  # losses' coefficient, and cannot divide it by None, which means one part.
  weight = None if case.z_loss is None else case.z_loss / case.loss_coef
  layers = {
      "ours": layer(mtf_moe.transformer_moe_layer_v2, case.hparams(),
                    case.num_microbatches),
      "theirs": layer(moe.transformer_moe_layer_v2,
                      case.hparams(moe_z_loss=weight),
                      case.num_microbatches or 1, ones_for_absent=case.train)}
  with shared_draws(case):
    return harness.run_layers(
        {name: layers[name] for name in names}, arrays(case, inputs), impl,
        case.weights, case.dtype, case.seed)


def arrays(case, inputs=None):
  """What `harness.evaluate` takes, of a case, or with other inputs."""
  if inputs is None:
    inputs = case.inputs()
  dims = case.token_dims()
  given = {"inputs": (inputs, [*dims, mtf.Dimension("d_model", case.depth)])}
  importances = case.importances()
  if importances is not None:
    given["nonpadding"] = importances
  return given


@contextlib.contextmanager
def shared_draws(case):
  """A context in which each level draws the case's numbers, in every layer."""
  def draw(mesh, shape, **unused_kwargs):
    level = 0 if shape.dims[-1].name == "group_size_x" else 1
    return mtf.import_fully_replicated(
        mesh, tf.constant(
            case.uniforms(level, shape.to_integer_list), tf.float32),
        shape, f"uniforms_{level}")

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mtf, "random_uniform", draw)
    yield


@contextlib.contextmanager
def same_draws():
  """A context in which all draw the same numbers for the same shape and range.
  """
  def drawn(mesh, shape, dtype, values):
    return mtf.import_fully_replicated(
        mesh, tf.constant(values, dtype), shape, "draws")

  def uniform(mesh, shape, minval=0.0, maxval=1.0, dtype=tf.float32, **_):
    shape = mtf.Shape(shape)
    numbers = np.random.default_rng(shape.size).integers(
        4096, size=shape.to_integer_list)
    return drawn(mesh, shape, dtype,
                 minval + (maxval - minval) * (numbers + 0.5) / 4096)

  def normal(mesh, shape, dtype=tf.float32, **_):
    shape = mtf.Shape(shape)
    return drawn(mesh, shape, dtype, np.random.default_rng(shape.size).normal(
        size=shape.to_integer_list))

  with pytest.MonkeyPatch.context() as patch:
    for module in (mtf, mtf.ops, mtf.layers.mtf):  # Three namespaces.
      patch.setattr(module, "random_uniform", uniform)
      patch.setattr(module, "random_normal", normal)
    yield


def compare_with_loops(case, ours):
  """Compares a Result of ours with the loops.

  Args:
    case: the Case.
    ours: a harness.Result.

  Returns:
    errors by name; none where float32 may decide otherwise than the loops
  """
  inputs, importance, weights = loops_arguments(case)
  plain = loops.layer(case, inputs, importance, weights)
  if plain.undecided:
    return {}
  errors = {
      "loops: output": _error(
          ours.output, plain.output.reshape(ours.output.shape),
          LOOPS_TOLERANCE[case.dtype]),
      "loops: loss": _error(
          ours.loss, plain.loss, LOOPS_LOSS_TOLERANCE[case.dtype])}
  if case.dtype != tf.float32 or case.router != "usual":
    # With rounding, or where equal gates part, nothing has a slope.
    return errors

  direction = harness.output_direction(case.seed, plain.output.shape)
  decisions = plain.decisions()

  def objective(**changed):
    result = loops.layer(
        case, changed.pop("inputs", inputs), importance, {**weights, **changed})
    return np.sum(result.output * direction) + result.loss, result.decisions()

  gradients = {"inputs": ours.input_gradient, **ours.gradients}
  for name, gradient in gradients.items():
    value = inputs if name == "inputs" else weights[name]
    along = case.rng("slope", name).normal(size=value.shape)
    (lower, before), (upper, after) = (
        objective(**{name: value + step * along}) for step in (-_STEP, _STEP))
    if not before == after == decisions:
      continue  # The routing changes within the step: no slope.
    slope = (upper - lower) / (2 * _STEP)
    errors[f"loops: slope along {name}"] = _error(
        np.sum(gradient.reshape(value.shape) * along), slope, SLOPE_TOLERANCE,
        scale=max(np.linalg.norm(gradient), _SMALLEST_GRADIENT))
  return errors


def run_loops(case):
  """The loops.Result of a case."""
  return loops.layer(case, *loops_arguments(case))


def loops_arguments(case):
  """(inputs [a, b, l, m], importance [a, b, l], weights) for `loops.layer`."""
  inputs = case.inputs()
  importance = np.ones(case.shape)
  importances = case.importances()
  if importances is not None:
    values, kept = importances
    importance = importance * values.reshape(
        [dim.size if dim in kept else 1 for dim in case.token_dims()])
  if len(case.shape) == 2:
    inputs, importance = inputs[None], importance[None]
  m, n, (x, y) = case.depth, output_dim(case).size, case.experts
  hidden = case.hparams().moe_hidden_size
  shapes = {
      "outer_gating/kernel": (m, x), "inner_gating/kernel": (x, m, y),
      "wi/kernel": (y, x, m, hidden), "wo/kernel": (y, x, hidden, n)}
  return inputs, importance, {
      name: case.weights(name, shape) for name, shape in shapes.items()}


def output_dim(case):
  if case.output_depth is None:
    return mtf.Dimension("d_model", case.depth)
  return mtf.Dimension("d_out", case.output_depth)


def _error(actual, expected, tolerance, scale=None):
  """The largest error, relative to `scale`, which must be within tolerance."""
  if scale is None:
    scale = np.abs(expected).max()
  difference = np.abs(actual - expected).max()
  assert difference <= tolerance * scale, (
      f"{difference} is more than {tolerance} of {scale}")
  return float(difference / scale) if scale else 0.0
