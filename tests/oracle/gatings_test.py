"""Every gating of mesh_tensorflow, against its own dense tensors."""

import dataclasses

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe as theirs
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe import moe as ours
from tests import harness
from tests.oracle import comparison

GROUP = mtf.Dimension("group", 12)
OUTER, BATCH = mtf.Dimension("outer_batch", 2), mtf.Dimension("batch", 3)
DEPTH = mtf.Dimension("m", 6)
SHAPE = [OUTER, BATCH, GROUP]

# Losses are float32 until their last rounding; sums in another order.
LOSS_TOLERANCE = {tf.float32: 1e-6, tf.bfloat16: 2.0 ** -8}
# Of gradients, relative to the largest element.
TOLERANCE = {tf.float32: 1e-5, tf.bfloat16: 2.0 ** -7}


@dataclasses.dataclass(frozen=True)
class Setting:
  """One call of a gating.

  Attributes:
    gating: its name.
    importance: "ones", or "padding", which has zeros, too.
    equal_loss: whether the reference's loss is right here.
    hparams: that differ from the defaults.
  """

  gating: str
  experts: int = 4
  capacity: int = 3
  train: bool = True
  importance: str = "padding"
  dtype: tf.DType = tf.float32
  num_microbatches: int | None = None
  equal_loss: bool = True
  hparams: tuple[tuple[str, object], ...] = ()

  def __str__(self):
    changed = [f"{field.name}={getattr(self, field.name)}"
               for field in dataclasses.fields(self)[1:]
               if getattr(self, field.name) != field.default]
    return " ".join([self.gating, *changed])


def setting(gating, hparams=None, **fields):
  return Setting(gating, hparams=tuple((hparams or {}).items()), **fields)


SWITCHES = ("switch", "switch_max", "ntlb")


def settings():
  """The cases: each gating, then what each of its parameters does."""
  for gating in ("top_2", "top_n", *SWITCHES, "expert_selection"):
    # The family of Switch takes the density before it masks, and so counts the
    # choices of padding: there only the dense tensors are compared.
    right = gating not in SWITCHES
    for dtype in (tf.float32, tf.bfloat16):
      yield setting(gating, importance="ones", dtype=dtype)
      yield setting(gating, dtype=dtype, equal_loss=right)
    yield setting(gating, train=False, equal_loss=right)
    yield setting(gating, importance="ones", num_microbatches=4)
    yield setting(gating, {"moe_z_loss": 0.1}, importance="ones",
                  num_microbatches=1)
    yield setting(gating, {"moe_word_embed_mode": "concat"}, importance="ones")
    yield setting(gating, importance="ones", capacity=12)
    yield setting(gating, importance="ones", capacity=1, experts=8)
  for policy in ("argmax", "input_dropout", "input_jitter", "sample"):
    for gating in ("switch", "switch_max"):
      for train in (True, False):
        yield setting(
            gating, {"moe_switch_policy_train": policy,
                     "moe_switch_policy_eval": policy}, train=train,
            importance="ones")
  for gating in SWITCHES:
    for temperature in (None, 0.7):
      yield setting(gating, {
          "moe_use_second_place_expert_prob": 0.5,
          "moe_use_second_place_expert_prob_temp": temperature},
                    importance="ones")
  yield setting("expert_selection", {
      "moe_switch_policy_train": "input_dropout"}, importance="ones")
  for k in (1, 2, 3, 5):
    yield setting("ntlb", {"moe_ntlb_top_k": k}, importance="ones", experts=6,
                  capacity=2)
  for policy in ("all", "none", "threshold", "random"):
    yield setting("top_n", {"moe_second_policy_train": policy})
  for n in (1, 2, 4):
    yield setting("top_n", {"moe_top_n_num_experts_per_token": n})
  yield setting("top_2", {"moe_use_second_place_loss": True})


def hparams(case):
  given = theirs.HParams()
  theirs.set_default_moe_hparams(given)
  for name, value in {
      "moe_switch_policy_train": "argmax", "moe_switch_policy_eval": "argmax",
      "moe_switch_dropout": 0.1, "moe_switch_jitter": 0.1,
      "moe_switch_temperature": 1.5, "moe_ntlb_top_k": 2,
      "moe_top_n_num_experts_per_token": 3, "moe_z_loss": None,
      "moe_word_embed_mode": None, "moe_use_second_place_expert_prob": None,
      "moe_use_second_place_expert_prob_temp": None,
      **dict(case.hparams)}.items():
    setattr(given, name, value)
  return given


def run(case):
  """What both gatings return, and the gradients of it, by name.

  Returns:
    {"ours": values, "theirs": values}
  """
  rng = np.random.default_rng(len(str(case)))
  sizes = [dim.size for dim in SHAPE]
  importance = np.ones(sizes)
  if case.importance == "padding":
    importance[rng.random(sizes) < 0.3] = 0.0
  arrays = {
      "inputs": (rng.normal(size=[*sizes, DEPTH.size]), [*SHAPE, DEPTH]),
      "embeddings": (rng.normal(size=[*sizes, DEPTH.size]), [*SHAPE, DEPTH]),
      "importance": (importance, SHAPE)}
  experts = mtf.Dimension("expert_unsplit", case.experts)
  capacity = mtf.Dimension("expert_capacity", case.capacity)
  direction = np.random.default_rng(1).normal(
      size=[*sizes, case.experts, case.capacity])

  def call(module, tensors):
    more = {"group_size_dim": GROUP} if (
        case.gating == "expert_selection") else {}
    dispatch, combine, loss = getattr(module, f"_{case.gating}_gating")(
        inputs=tensors["inputs"], outer_expert_dims=None, experts_dim=experts,
        expert_capacity_dim=capacity, hparams=hparams(case), train=case.train,
        variable_dtype=harness.variable_dtype(case.dtype),
        importance=tensors["importance"],
        num_microbatches=case.num_microbatches,
        token_embeddings=tensors["embeddings"], **more)
    order = [*SHAPE, experts, capacity]
    # The reference's ntlb has one more dimension, of size 1.
    return [mtf.reduce_sum(t, output_shape=order)
            for t in (dispatch, combine)] + [loss]

  def build(tensors):
    values = {}
    for name, module in (("ours", ours), ("theirs", theirs)):
      with tf.variable_scope(name):
        dispatch, combine, loss = call(module, tensors)
      along = mtf.import_fully_replicated(
          combine.mesh, tf.constant(direction, tf.float32), combine.shape, "d")
      objective = mtf.reduce_sum(mtf.to_float(combine) * along)
      if case.equal_loss:
        objective += mtf.to_float(loss)
      kernel, = (v for v in combine.graph.trainable_variables
                 if v.name.startswith(name + "/"))
      assert kernel.name == f"{name}/{case.gating}_gating/kernel"
      gradients = mtf.gradients(
          [objective], [tensors["inputs"], kernel.outputs[0]])
      values[name] = [dispatch, combine, loss, *gradients]
    return values

  with comparison.same_draws():
    return harness.evaluate(
        build, arrays, lambda name, shape: harness.random_weights("w", shape),
        dtype=case.dtype)


@pytest.mark.parametrize("case", list(settings()), ids=str)
def test_as_the_reference(case):
  results = run(case)
  (dispatch, combine, loss, *gradients), (
      their_dispatch, their_combine, their_loss, *their_gradients) = (
          results["ours"], results["theirs"])
  np.testing.assert_array_equal(dispatch, their_dispatch)
  np.testing.assert_array_equal(combine, their_combine)
  assert dispatch.sum() > 0
  if case.equal_loss:
    np.testing.assert_allclose(
        loss, their_loss, rtol=LOSS_TOLERANCE[case.dtype])
  for gradient, expected in zip(gradients, their_gradients, strict=True):
    np.testing.assert_allclose(
        gradient, expected, rtol=0,
        atol=TOLERANCE[case.dtype] * np.abs(expected).max())
