"""Counting what a training step costs, against sums done by hand."""

import dataclasses
import functools

import mesh_tensorflow as mtf
from mesh_tensorflow.transformer import moe
from mesh_tensorflow.transformer import transformer_layers
import pytest

from scripts import reproduce

SIZES = reproduce.Sizes(
    batch=8, length=16, d_model=8, num_layers=1, num_heads=2, d_kv=4, vocab=128)
TOKENS = 8 * 16

# Embedding and logits, positions, three norms, four matrices of attention.
PARAMS_AROUND = 2 * 128 * 8 + 16 * 8 + 3 * 8 + 4 * 8 * (2 * 4)

TWO_LEVEL = {
    "expert_x": 2, "expert_y": 4, "hidden_size": 16, "group_size": 16,
    "capacity_factor_train": 1.25, "capacity_factor_second_level": 1.25}
TWO_LEVEL_CLASSES = pytest.mark.parametrize(
    "two_level_class", [reproduce.our_moe_2d, reproduce.reference_moe_2d],
    ids=["ours", "reference"])


def dense(hidden_size):
  return functools.partial(
      transformer_layers.DenseReluDense, hidden_size=hidden_size,
      dropout_rate=reproduce.DROPOUT_RATE)


@functools.cache
def count_two_level(two_level_class):
  sizes = dataclasses.replace(SIZES, outer_batch=2)
  return reproduce.count_model(
      sizes, functools.partial(two_level_class, **TWO_LEVEL), "b0:2,b1:2",
      "outer_batch:b0,batch:b1,expert_x:b1,expert_y:b0")


@pytest.mark.parametrize("layout, times", [("rows:all", 1), ("", 2)])
def test_einsums_of_a_matrix_forward_and_backward_on_all_slices(layout, times):
  rows, inputs, outputs = (
      mtf.Dimension(*dim) for dim in [("rows", 10), ("in", 3), ("out", 5)])

  def build(mesh):
    y = mtf.layers.dense(
        mtf.ones(mesh, [rows, inputs]), [outputs], [inputs], use_bias=False)
    mtf.gradients([mtf.reduce_sum(y)],
                  [v.outputs[0] for v in mesh.graph.trainable_variables])

  counts = reproduce.count(build, "all:2", layout)
  # The product, and its gradients by both factors, of which one is not needed.
  assert counts == reproduce.Counts(
      params=3 * 5, einsum=times * 3 * (10 * 3 * 5), alltoall=0)


def test_einsums_of_wider_hidden_layers():
  sizes = dataclasses.replace(SIZES, num_layers=2)
  narrow, wide = (
      reproduce.count_model(sizes, dense(hidden_size), "all:1", "")
      for hidden_size in (32, 64))
  matrices = 2 * 3 * (TOKENS * 8 * 32)
  # Dropout and its two gradients, and that of relu.
  elementwise = 4 * (TOKENS * 32)
  # Of a gradient: by its size, by the clipping, by the learning rate.
  update = 2 * 3 * (8 * 32)
  assert wide.einsum - narrow.einsum == 2 * (matrices + elementwise + update)


def test_parameters_of_dense_layers():
  counts = reproduce.count_model(
      SIZES, dense(32), "model:2", "d_ff:model,vocab:model")
  trainable = PARAMS_AROUND + 2 * 8 * 32
  # Each variable is too small to be factored: its slot is as large as it is.
  assert counts.params == 2 * trainable
  assert counts.alltoall == 0


@TWO_LEVEL_CLASSES
def test_parameters_of_two_level_layers(two_level_class):
  routers = 8 * 2 + 2 * 8 * 4
  experts = 2 * 4 * (2 * 8 * 16)
  trainable = PARAMS_AROUND + routers + experts
  assert count_two_level(two_level_class).params == 2 * trainable


@TWO_LEVEL_CLASSES
def test_alltoalls_of_two_level_layers(two_level_class):
  # 2 outer batches of 64 tokens, in 4 groups of 16, with int(16 * 1.25 / 2)
  # slots at each of 2 experts. These are 80 slots an expert, in 8 groups of 10
  # for the 2 slices, and int(10 * 1.25 / 4) is less than the minimum of 4.
  first = 2 * (2 * 4) * 10
  second = (4 * 2) * 8 * 4
  # There and back, forward and backward; and the importance of the slots.
  alltoall = 4 * 8 * (first + second) + first
  assert count_two_level(two_level_class).alltoall == alltoall


def test_alltoalls_of_one_level_layers():
  layer = functools.partial(
      moe.MoE1D, num_experts=4, hidden_size=16, group_size=16,
      capacity_factor_train=1.25)
  counts = reproduce.count_model(
      SIZES, layer, "all:2", "batch:all,experts:all")
  # 128 tokens in 8 groups of 16, with int(16 * 1.25 / 4) slots at 4 experts.
  assert counts.alltoall == 4 * 8 * (4 * 8 * 5)


def test_rows_have_the_second_level_factor_that_is_asked_for():
  rows = reproduce.published_rows([1.25, 1.0], group_size=512)
  two_level = [row for row in rows if row.ours]
  assert [row.name for row in two_level] == [
      "[4, 4], second factor 1.25", "[8, 8], second factor 1.25",
      "[4, 4], second factor 1", "[8, 8], second factor 1"]
  for row, factor in zip(two_level, [1.25, 1.25, 1.0, 1.0], strict=True):
    for layer in (row.reference(), row.ours()):
      assert layer._hparams.moe_capacity_factor_second_level == factor
      assert layer._hparams.moe_group_size == 512


def test_table_compares_with_the_published_numbers():
  row = reproduce.Row(
      "a model", reproduce.Counts(20e6, 2e9, 0), SIZES, "", "", None)
  lines = reproduce.table(
      [(row, reproduce.Counts(21_400_000, 1_234_567_890, 0), None)]
  ).splitlines()[2:]
  assert [line.split() for line in lines] == [
      ["a", "model", "params", "20", "M", "21", "M", "1.070", "-"],
      ["einsum", "2.0e+09", "1.23e+09", "0.617", "-"],
      ["alltoall", "0", "0", "-"]]


def test_command_line(monkeypatch, capsys):
  row = reproduce.Row(
      "tiny", reproduce.Counts(1e4, 1e6, 0), SIZES, "all:2", "batch:all",
      dense(32))
  monkeypatch.setattr(
      reproduce, "published_rows", lambda factors, group_size: [row])
  monkeypatch.setattr("sys.argv", ["reproduce.py", "--only=iny"])
  reproduce.main()
  printed = capsys.readouterr()
  assert "tiny" in printed.out
  assert reproduce.FINDING not in printed.out  # There is no two-level row.
  assert printed.err.startswith("tiny, reference: lowering ...")

  monkeypatch.setattr("sys.argv", ["reproduce.py", "--only=[16, 16]"])
  with pytest.raises(SystemExit):
    reproduce.main()
  assert "no row has '[16, 16]' in its name" in capsys.readouterr().err
