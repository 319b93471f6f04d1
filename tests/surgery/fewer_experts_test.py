"""Experts that become fewer by how busy they were."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.surgery import loads
from mtf_moe.surgery import operation
from mtf_moe.surgery.layers import FeedForward
from mtf_moe.surgery.moves import Options
from tests.report import event_files
from tests.surgery.checkpoints import MOE
from tests.surgery.checkpoints import PLACE
from tests.surgery.checkpoints import configured
from tests.surgery.checkpoints import experts
from tests.surgery.checkpoints import operate
from tests.surgery.checkpoints import save

# Of the first level, then of the second: the mean of what two steps recorded.
OUTER = [0.2, 0.5, 0.3]
INNER = [[0.1, 0.05], [0.25, 0.3], [0.15, 0.15]]


def tags_of(outer, inner, scope=f"{PLACE}/MoE"):
  tags = {f"moe/{scope}/outer/load/expert_{x}": share
          for x, share in enumerate(outer)}
  return tags | {
      f"moe/{scope}/inner/load/expert_{x}_{y}": inner[x][y]
      for x in range(len(inner)) for y in range(len(inner[x]))}


def record(directory):
  """What training recorded up to step 7, and beyond."""
  apart = np.array([0.1, -0.1, 0.0])
  event_files.write(directory, {
      1: tags_of(np.add(OUTER, apart), INNER),
      7: tags_of(np.subtract(OUTER, apart), INNER),
      9: tags_of([1.0, 0.0, 0.0], INNER)})


def test_the_busiest_stay_with_their_routers_and_slots(tmp_path):
  values = save(experts(3, 2), tmp_path / "old")
  record(tmp_path / "old")
  made = operate(tmp_path / "old", experts(2, 1), tmp_path / "new",
                 fewer="busiest")
  # Groups 1 and 2; of the first of these expert 1, of the other, where both
  # are as busy, expert 0.
  scope = f"{PLACE}/MoE"
  for end in ("wi/kernel", "wo/kernel", "wi/kernel_slot_v"):
    old = values[f"{scope}/{end}"]  # [y, x, ...]
    np.testing.assert_array_equal(
        made[f"{scope}/{end}"], np.stack([old[1, 1], old[0, 2]])[np.newaxis])
  np.testing.assert_array_equal(  # [inputs, x]
      made[f"{scope}/outer_gating/kernel"],
      values[f"{scope}/outer_gating/kernel"][:, [1, 2]])
  inner = values[f"{scope}/inner_gating/kernel"]  # [x, inputs, y]
  np.testing.assert_array_equal(
      made[f"{scope}/inner_gating/kernel"],
      np.stack([inner[1, :, [1]], inner[2, :, [0]]]).transpose(0, 2, 1))


def test_means_by_load(tmp_path):
  values = save(experts(3, 2), tmp_path / "old")
  record(tmp_path / "old")
  made = operate(tmp_path / "old", experts(1, 2), tmp_path / "new",
                 fewer="weighted")
  name = f"{PLACE}/MoE/wi/kernel"
  np.testing.assert_allclose(
      made[name][:, 0],
      np.einsum("x,yxmh->ymh", OUTER, values[name].astype(np.float64)),
      rtol=1e-4, atol=1e-6)  # Loads are recorded in float32.
  found = operation.prepare(str(tmp_path / "old"), experts(1, 2),
                            Options(fewer="weighted"))
  assert "mean by load: 3 x 2 experts to 1 x 2 experts" in found.table()


def test_to_one_level(tmp_path):
  values = save(experts(3, 2), tmp_path / "old")
  record(tmp_path / "old")
  made = operate(tmp_path / "old", experts(3), tmp_path / "new",
                 fewer="busiest")
  name = f"{PLACE}/MoE/wo/kernel"
  old = values[name]  # [y, x, ...]: 0.25 and 0.3, then the first of 0.15.
  np.testing.assert_array_equal(
      made[name], [old[0, 1], old[1, 1], old[0, 2]])


@pytest.mark.parametrize("how", ["busiest", "weighted"])
def test_nothing_recorded(how, tmp_path):
  save(experts(4), tmp_path / "old")
  options = Options(fewer=how)
  with pytest.raises(ValueError, match=(
      rf"^--fewer_experts={how} goes by the loads of single experts, and the "
      rf"event files in {tmp_path}/old have none of {PLACE}/MoE, level 1: set "
      r"--fewer_experts=mean or first")) as refused:
    operation.prepare(str(tmp_path / "old"), experts(2), options)
  assert "\n" not in str(refused.value)
  # Not needed where there are no fewer.
  operation.prepare(str(tmp_path / "old"), experts(8), options)
  operation.prepare(str(tmp_path / "old"), experts(2), Options(fewer="first"))


def test_more_experts_than_are_recorded():
  layer = FeedForward("a/MoE", (65,), (), ())
  with pytest.raises(ValueError, match="more than 64 experts have none"):
    loads.Loads("model", (), {}).of(layer, [1], "--fewer_experts=busiest")


def test_what_is_read_of_event_files(tmp_path):
  """The last five steps; of a step that was repeated, what came last."""
  tag = "moe/a/MoE/level_1/load/expert_0"
  event_files.write(tmp_path, {
      **{step: {tag: step / 100} for step in (1, 2, 3, 4, 5, 6)},
      7: {tag: 0.9}}, ".first")
  with event_files.writer(tmp_path, ".later") as writer:
    event_files.add(writer, 6, {tag: 0.5, "loss": 1.0})
    writer.add_summary(tf.Summary(value=[tf.Summary.Value(
        tag="moe/a/MoE/level_1/load/expert_1",
        tensor=tf.make_tensor_proto(0.25))]), 6)
  last, = tmp_path.glob("*.later")
  last.write_bytes(last.read_bytes() + b"cut off")
  found = loads.read(str(tmp_path), 6)
  assert found.steps == (2, 3, 4, 5, 6)
  assert found.shares["a/MoE", 1, (0,)] == pytest.approx(
      (0.02 + 0.03 + 0.04 + 0.05 + 0.5) / 5)
  assert found.shares["a/MoE", 1, (1,)] == 0.25
  assert loads.read(str(tmp_path / "none"), None).shares == {}


def test_routers_of_other_kinds_are_drawn_anew(tmp_path):
  """Such as one with two kernels, or with a bias for each expert."""
  for router in ("noisy_top_k", "sigmoid_top_k"):
    kind = f"MoE.moe_gating = '{router}'"
    save(configured(*MOE, "MoE.levels = [4]", kind), tmp_path / router)
    found = operation.prepare(str(tmp_path / router), configured(
        *MOE, "MoE.levels = [2]", kind), Options())
    anew = {move.target for move in found.moves if not move.sources}
    assert any("/MoE/" in name and "/w" not in name for name in anew)
    assert all(name.startswith(f"{PLACE}/MoE/") for name in anew), anew
    found.values()


def test_slots_that_leave_out_other_dimensions(tmp_path):
  """Adafactor leaves out the largest: with many experts, theirs."""
  small = "AdafactorOptimizer.min_dim_size_to_factor = 2"
  save(configured(*MOE, "MoE.levels = [4]", small), tmp_path / "old")
  for levels in ([32], [2, 16]):
    found = operation.prepare(str(tmp_path / "old"), configured(
        *MOE, f"MoE.levels = {levels}", small), Options())
    anew = {move.target for move in found.moves if not move.sources}
    assert f"{PLACE}/MoE/wi/kernel_slot_vr" in anew
    assert f"{PLACE}/MoE/wi/kernel" not in anew
    found.values()  # Which sees that all have their shapes.
