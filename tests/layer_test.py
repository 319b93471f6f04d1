"""The layer where the reference does not work, or says nothing."""

import mesh_tensorflow as mtf
import numpy as np
import pytest

import mtf_moe
from tests import harness

DEPTH = mtf.Dimension("d_model", 6)
DIMS = [mtf.Dimension("outer_batch", 2), mtf.Dimension("batch", 4),
        mtf.Dimension("length", 8)]
# Slots for all, and groups of 8 tokens, so that the mesh makes no difference.
ROOM_FOR_ALL = {
    "moe_num_experts": (4, 2), "moe_hidden_size": 8, "moe_group_size": 8,
    "moe_capacity_factor_train": 4.0, "moe_capacity_factor_second_level": 2.0,
    "moe_second_policy_train": "all"}


def run(dims, impl, layout=None, mesh_shape=None, **hparams):
  """Runs the layer in training on random inputs with the given dimensions."""
  usual = {} if "moe_levels" in hparams else ROOM_FOR_ALL

  def layer(tensors):
    return mtf_moe.transformer_moe_layer_v2(
        tensors["inputs"], DEPTH, mtf_moe.MoeHparams(**{**usual, **hparams}),
        True, harness.variable_dtype(), layout=layout, mesh_shape=mesh_shape)

  shape = [dim.size for dim in [*dims, DEPTH]]
  inputs = np.random.default_rng(0).normal(size=shape)
  return harness.run_layers(
      {"layer": layer}, {"inputs": (inputs, [*dims, DEPTH])}, impl,
      weights)["layer"]


def weights(name, shape):
  return harness.random_weights(name, shape) * (
      1.0 if "gating" in name else shape[-2] ** -0.5)


def test_nothing_is_split_without_layout_and_mesh_shape():
  impl = harness.mesh_impl()
  given = run(DIMS, impl, impl.layout_rules, impl.shape)
  omitted = run(DIMS, impl)
  np.testing.assert_array_equal(given.output, omitted.output)
  assert given.variables == omitted.variables


@pytest.mark.parametrize("mesh", [(2, 1), (2, 2)], ids=str)
def test_3d_inputs_where_the_layout_splits_outer_batch(mesh):
  one, many = harness.mesh_impl(), harness.mesh_impl(*mesh)
  dims = [mtf.Dimension("batch", 8), mtf.Dimension("length", 8)]
  expected = run(dims, one, one.layout_rules, one.shape)
  actual = run(dims, many, many.layout_rules, many.shape)
  np.testing.assert_allclose(actual.output, expected.output, atol=1e-5)
  np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-5)
  for name, gradient in expected.gradients.items():
    np.testing.assert_allclose(actual.gradients[name], gradient, atol=1e-4)


def test_the_first_level_draws_before_the_second(monkeypatch):
  shapes = []

  def draw(mesh, shape, **unused_kwargs):
    shapes.append([dim.name for dim in shape.dims])
    return mtf.zeros(mesh, shape) + 0.5

  monkeypatch.setattr(mtf, "random_uniform", draw)
  run(DIMS, harness.mesh_impl(), moe_second_policy_train="random")
  assert shapes == [["outer_batch", "batch", "group_size_x"],
                    ["expert_x", "outer_batch", "group_size_y"]]


def test_the_z_loss_has_a_weight_of_its_own():
  impl = harness.mesh_impl()

  def loss(coefficient, z_loss):
    return run(DIMS, impl, moe_loss_coef=coefficient, moe_z_loss=z_loss).loss

  z_loss = loss(0.0, 0.1)
  assert z_loss > 0
  assert loss(0.5, 0.1) == pytest.approx(loss(0.5, None) + z_loss, rel=1e-5)


def test_balancing_losses_have_weights_of_their_own():
  def loss(*coefficients):
    return run(
        DIMS, harness.mesh_impl(), moe_hidden_size=8, moe_loss_coef=0.5,
        moe_levels=[mtf_moe.Level(experts=2, loss_coef=coefficient,
                                  second_policy_train="all")
                    for coefficient in coefficients]).loss

  outer, inner = loss(1.0, 0.0), loss(0.0, 1.0)
  assert outer != pytest.approx(inner)
  assert loss(0.3, 0.1) == pytest.approx(0.3 * outer + 0.1 * inner, rel=1e-5)
  assert loss(None, None) == pytest.approx(0.5 * (outer + inner), rel=1e-5)
  assert loss(None, 0.0) == pytest.approx(0.5 * outer, rel=1e-5)


def test_experts_on_no_mesh_axis_are_told(caplog):
  def told(mesh, **layout):
    impl = harness.mesh_impl(*mesh, **layout)
    caplog.clear()
    run(DIMS, impl, impl.layout_rules, impl.shape)
    return caplog.text

  assert "into 1 parts on a mesh of 2 slices, so 2 slices" in told(
      (1, 2), layout="batch:batch")
  assert "into 2 parts on a mesh of 4 slices, so 2 slices" in told(
      (2, 2), layout="batch:batch,expert_x:batch")
  assert not told((1, 2))


def test_all_tokens_count_without_nonpadding_in_training():
  result = run(DIMS, harness.mesh_impl())
  assert np.all(np.abs(result.output).max(axis=-1) > 0)
