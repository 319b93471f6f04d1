"""The command line, run as a user runs it: in a process of its own."""

import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf

from tests import forked

ROOT = forked.ROOT

# The mesh of the files; of two slices, a graph is built three times as quickly.
FOUR_SLICES = "run.mesh_shape = 'outer:2,batch:2'"
# Small enough for seconds.
SETTINGS = [
    "run.mesh_shape = 'outer:1,batch:2'",
    "TextFiles.held_out = 0.2", "batch_size = 4", "sequence_length = 16",
    "d_model = 16", "num_layers = 1", "MoE2D.hidden_size = 16",
    "run.save_checkpoints_steps = 2", "train_model.seconds_per_line = 0.001"]
FILES = ["runs/tiny.gin", "meshes/cpu_2x2.gin"]


def write_text(directory):
  """Writes the text that programs are run on."""
  lines = [f"{i} bottles of beer on the wall, {i} bottles of beer.\n"
           for i in range(99, 20, -1)]
  (directory / "text.txt").write_text("".join(lines))


def program(directory, *bindings, files=(), model="model"):
  """The arguments of Popen that run the program on the text in a directory."""
  arguments = [f"--gin_file={file}" for file in [*FILES, *files]]
  arguments += [f"--gin_param={binding}" for binding in [
      f"TextFiles.glob = '{directory}/text.txt'", *SETTINGS, *bindings]]
  return {
      "args": [sys.executable, "-m", "mtf_moe.train",
               f"--model_dir={directory / model}", *arguments],
      "cwd": directory, "env": {**os.environ, "PYTHONPATH": ROOT}}


def run(directory, *bindings, files=(), model="model", check=True):
  """Runs the program; returns what it did."""
  return run_arguments(
      program(directory, *bindings, files=files, model=model), check)


def run_arguments(arguments, check=True):
  """Runs what `program` has made; returns what it did."""
  _, _, module, *rest = arguments["args"]
  return forked.run(module, *rest, cwd=arguments["cwd"], env=arguments["env"],
                    check=check)


def newest_step(model):
  """The step of the newest checkpoint, or 0."""
  path = tf.train.latest_checkpoint(str(model))
  return int(path.rpartition("-")[2]) if path else 0


def bits(model, step):
  """The bytes of every variable of a checkpoint, by name."""
  reader = tf.train.load_checkpoint(str(model / f"model.ckpt-{step}"))
  return {name: np.asarray(reader.get_tensor(name)).tobytes()
          for name in reader.get_variable_to_shape_map()}
