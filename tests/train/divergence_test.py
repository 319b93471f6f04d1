"""A run whose loss is no number ends, and says what was first and what to do.

A checkpoint with one enormous variable, whose values are still finite, is what
a run is in for that is about to diverge.
"""

import re
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from tests.train import program

LAYER = "transformer/block_001/layer_001/MoE2D"
BINDINGS = ["num_layers = 2", "run.save_checkpoints_steps = 3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A directory with a model of two steps."""
  directory = tmp_path_factory.mktemp("trained")
  program.write_text(directory)
  program.run(directory, *BINDINGS, "run.train_steps = 2")
  return directory


def enlarge(model, name, value):
  """Replaces a variable of the newest checkpoint."""
  path = tf.train.latest_checkpoint(str(model))
  reader = tf.train.load_checkpoint(path)
  with tf.Graph().as_default(), tf.Session() as session:
    for other in reader.get_variable_to_shape_map():
      array = reader.get_tensor(other)
      if other == name:
        array = np.full_like(array, value)
      tf.get_variable(other, initializer=array)
    session.run(tf.global_variables_initializer())
    tf.train.Saver(save_relative_paths=True).save(session, path[:-2], 2)


@pytest.mark.parametrize("name, value, said", [
    (f"{LAYER}/outer_gating/kernel", 3e38,
     "the outer router of block_001/layer_001"),
    (f"{LAYER}/wi/kernel", 3e38, "the experts of block_001/layer_001"),
    ("transformer/block_001/layer_000/SelfAttention/o", 3e38,
     "what entered the mixture of block_001/layer_001"),
])
def test_what_was_first(name, value, said, trained, tmp_path):
  directory = tmp_path / "copy"
  shutil.copytree(trained, directory)
  model = directory / "model"
  enlarge(model, name, value)
  failed = program.run(
      directory, *BINDINGS, "run.train_steps = 9", check=False)
  assert failed.returncode == 1
  message = failed.stderr.splitlines()[-1]
  # An infinity may be survived for a step, by a normalization.
  assert re.search(
      rf"^error: the loss is (nan|inf) at step [34]\. "
      f"First to go, at step 3: {said}", message)
  assert "run.learning_rate_schedule" in message
  assert message.endswith(f"good checkpoint: {model}/model.ckpt-2.")
  assert "Traceback" not in failed.stderr
  # Step 3 would have been saved.
  assert program.newest_step(model) == 2
  assert message.removeprefix("error: ") in (model / "train.log").read_text()
