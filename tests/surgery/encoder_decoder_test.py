"""An encoder-decoder of T5 with dense layers, made into one of mixtures."""

import numpy as np
import pytest

from mtf_moe.surgery import operation
from mtf_moe.surgery.moves import Options
from mtf_moe.train import saved_variables
from tests.surgery.checkpoints import configured
from tests.surgery.checkpoints import save

LIBRARY = "@mesh_tensorflow.transformer.transformer_layers."
SIZES = ["d_kv = 8", "num_heads = 2", "num_layers = 2"]
DENSE = [
    "encoder/transformer.make_layer_stack.layers = "
    f"[{LIBRARY}SelfAttention, {LIBRARY}DenseReluDense]",
    "decoder/transformer.make_layer_stack.layers = "
    f"[{LIBRARY}SelfAttention, {LIBRARY}EncDecAttention, "
    f"{LIBRARY}DenseReluDense]", "DenseReluDense.hidden_size = 256"]


def model(*bindings):
  return configured(*SIZES, *bindings, files=["models/bitransformer_small.gin"])


def feed_forward(layer):
  """The scopes of all feed-forward layers, by where T5 has them."""
  return [f"{stack}/block_{block:03}/layer_{number:03}/{layer}"
          for stack, number in (("encoder", 1), ("decoder", 2))
          for block in range(2)]


@pytest.fixture
def dense(tmp_path):
  """A directory with a checkpoint, and its values."""
  return tmp_path / "dense", save(model(*DENSE), tmp_path / "dense")


def test_what_becomes_of_every_variable(dense):
  directory, _ = dense
  found = operation.prepare(str(directory), model(), Options())
  moves = {move.target: move for move in found.moves}
  assert moves.keys() == saved_variables.of_graph(
      model().training_graph).keys() - {"global_step"}
  # Of the mixtures, routers are new; all else that has a name in both stays.
  for scope, other in zip(feed_forward("MoE2D"), feed_forward("DenseReluDense"),
                          strict=True):
    for kernel in ("wi/kernel", "wo/kernel"):
      assert moves[f"{scope}/{kernel}"].sources == (f"{other}/{kernel}",)
      assert moves[f"{scope}/{kernel}"].how == "copied: dense to 4 x 4 experts"
    for router in ("outer_gating/kernel", "inner_gating/kernel"):
      assert not moves[f"{scope}/{router}"].sources
  outside = {name: move for name, move in moves.items() if "MoE2D" not in name}
  assert "shared/embedding" in outside
  assert any("/EncDecAttention/" in name for name in outside)
  for name, move in outside.items():
    assert move.sources == (name,) and move.how == "as it is", name
  # What is not used is what an optimizer keeps in other shapes, at most.
  assert all("_slot_" in name for name in found.unused)
  assert "global_step" not in found.unused
  table = found.table()
  assert all(len(line) for line in table.splitlines()[:len(moves)])
  assert f"come from {directory}/model.ckpt-7" in table


def test_the_values(dense, tmp_path):
  directory, values = dense
  operation.prepare(str(directory), model(), Options()).write(
      str(tmp_path / "new"))
  reader = operation.tf.train.load_checkpoint(str(tmp_path / "new"))
  np.testing.assert_array_equal(
      reader.get_tensor("shared/embedding"), values["shared/embedding"])
  for scope, other in zip(feed_forward("MoE2D"), feed_forward("DenseReluDense"),
                          strict=True):
    copies = reader.get_tensor(f"{scope}/wo/kernel")  # [y, x, hidden, d_model]
    np.testing.assert_array_equal(copies, np.broadcast_to(
        values[f"{other}/wo/kernel"], [4, 4, 256, 16]))
