"""Small models that learn what tests know, and the program that runs them.

The language model learns text of four words in random order.
"""

import contextlib
import dataclasses
import glob
import io
import os
import random
import sys

from absl import flags
from absl.testing import flagsaver
import gin
import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.train import __main__ as program

ONE_SLICE = (1, 1)
LENGTH = 16
STEPS = 300
WORDS = ["abcd", "efgh", "ijkl", "mnop"]
GREEDY = "sample_autoregressive.temperature = 0.0"

SETTINGS = [
    "batch_size = 4", f"sequence_length = {LENGTH}", "num_layers = 1",
    "d_model = 16", "d_kv = 8", "num_heads = 2",
    "run.learning_rate_schedule = 0.02", "run.save_checkpoints_steps = 1000000",
    "run.eval_checkpoint_step = -1",
    "tpu_estimator_model_fn.outer_batch_size = 2",
    "MoE2D.expert_x = 2", "MoE2D.expert_y = 2", "MoE2D.hidden_size = 16",
    # One group a slice at the least, on any mesh: then the balancing loss, a
    # mean over groups, is the same too.
    "MoE2D.group_size = 16",
    # Slots for every token at every expert: nothing is dropped, so no token
    # depends on which others are in its group.
    "MoE2D.capacity_factor_train = 2.0", "MoE2D.capacity_factor_eval = 2.0",
    "MoE2D.capacity_factor_second_level = 2.0",
    "MoE2D.second_policy_train = 'threshold'"]


@dataclasses.dataclass(frozen=True)
class Model:
  """Where a model is, and its configuration: gin files and lines."""

  directory: str
  files: list[str]
  bindings: list[str]


def run(model, mesh, *bindings, files=()):
  """Runs the program in this process.

  Args:
    model: a Model.
    mesh: a pair, the size of the mesh.
    *bindings: further lines of gin.
    files: further gin files.

  Returns:
    what it printed
  """
  lines = [*SETTINGS, f"run.mesh_shape = 'outer:{mesh[0]},batch:{mesh[1]}'",
           *model.bindings, *bindings]
  arguments = [
      "program", "--tensorflow_log", f"--model_dir={model.directory}",
      *[f"--gin_file={file}" for file in [*model.files, *files]],
      *[f"--gin_param={line}" for line in lines]]
  gin.clear_config()
  with (flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed):
    patch.setattr(sys, "argv", arguments)
    flags.FLAGS(arguments)
    try:
      program.main(arguments[:1])
    finally:
      flags.FLAGS.unparse_flags()
      tf.disable_resource_variables()
  return printed.getvalue()


def train_language_model(directory):
  """A Model that has learnt the words, trained on one slice.

  Args:
    directory: a pathlib.Path, for its text and its checkpoints.
  """
  rng = random.Random(0)
  (directory / "text.txt").write_text(
      "".join(rng.choice(WORDS) + " " for _ in range(1000)))
  model = Model(f"{directory}/model", ["runs/tiny.gin"], [
      f"TextFiles.glob = '{directory}/text.txt'", "TextFiles.held_out = 0.2"])
  run(model, ONE_SLICE, f"run.train_steps = {STEPS}")
  return model


def continuations(model, mesh, prompts, *bindings, file="runs/sample.gin"):
  """What the program makes of prompts, without them."""
  filename = os.path.join(model.directory, "continued")
  run(model, mesh, f"continue_prompts.prompts = {prompts}",
      f"continue_prompts.output_filename = '{filename}'", *bindings,
      files=[file])
  written, = glob.glob(filename + "-*")
  with open(written) as f:
    texts = f.read()[:-1].split("\n\n")
  os.remove(written)
  for text, prompt in zip(texts, prompts, strict=True):
    assert text.startswith(prompt)
  return [text[len(prompt):] for text, prompt in zip(texts, prompts)]


def metrics(directory):
  """The values in the event files of a directory, by tag."""
  return {value.tag: value.simple_value
          for path in glob.glob(os.path.join(directory, "events.*"))
          for event in tf.train.summary_iterator(path)
          for value in event.summary.value}
