"""Runs for tests: event files by TensorFlow's writer, with known values."""

import numpy as np
import tensorflow.compat.v1 as tf

LAYERS = [f"transformer/block_00{i}/layer_001/MoE2D" for i in range(2)]

# A step of ten tokens, of which two are padding, routed by hand. Six of eight
# first choices are kept, and three second ones, two of them of tokens whose
# first choice was kept, so that one token is lost. Nine arrive at level two, in
# twelve slots: six first choices and three second ones. Five are taken by their
# first choice, two by their second one only.
OUTER = {
    "tokens": 10, "tokens/padding": 2, "tokens/full": 8, "tokens/partial": 0,
    "tokens/lost": 1,
    "choices_1/kept": 6, "choices_1/dropped": 2,
    "choices_2/kept": 3, "choices_2/dropped": 1, "choices_2/refused": 4,
    "slots": 12, "slots/empty": 3,
    "load/max_over_mean": 1.25, "load/coefficient_of_variation": 0.25,
    "load/expert_0": 0.625, "load/expert_1": 0.375,
    "router/entropy": 0.5, "router/confidence": 0.75, "loss/balance": 1.0}
INNER = {
    "tokens": 12, "tokens/padding": 3, "tokens/full": 6, "tokens/partial": 3,
    "tokens/lost": 2,
    "choices_1/kept": 5, "choices_1/dropped": 1,
    "choices_2/kept": 3, "choices_2/dropped": 2, "choices_2/refused": 4,
    "slots": 16, "slots/empty": 8,
    "load/max_over_mean": 1.5, "load/coefficient_of_variation": 0.3,
    "load/expert_0_0": 0.25, "load/expert_0_1": 0.125, "load/expert_0_2": 0.25,
    "load/expert_1_0": 0.125, "load/expert_1_1": 0.25, "load/expert_1_2": 0.0,
    "router/entropy": 0.9, "router/confidence": 0.5, "loss/balance": 1.0}
# Below them, at a third level: eight arrive in 16 slots, of which seven are
# taken, four by their first choice.
LAST = {
    "tokens": 16, "tokens/padding": 8, "tokens/full": 5, "tokens/partial": 3,
    "tokens/lost": 1,
    "choices_1/kept": 4, "choices_1/dropped": 1,
    "choices_2/kept": 4, "choices_2/dropped": 0, "choices_2/refused": 4,
    "slots": 16, "slots/empty": 8,
    "load/max_over_mean": 1.5, "load/coefficient_of_variation": 0.4,
    **{f"load/expert_{x}_{y}_{z}": share for (x, y, z), share in zip(
        np.ndindex(2, 3, 2), [0.125, 0.0625, 0.0625, 0.125, 0.0625, 0.0625,
                              0.125, 0.0625, 0.0625, 0.125, 0.125, 0.0])},
    "router/entropy": 0.5, "router/confidence": 0.5, "loss/balance": 1.0}
ONE_LEVEL = {"level_1": OUTER}
THREE_LEVELS = {"level_1": OUTER, "level_2": INNER, "level_3": LAST}

CONFIG = """
MoE2D.capacity_factor_train = 1.25
MoE2D.capacity_factor_second_level = 1.0
MoE2D.expert_x = 2
MoE2D.expert_y = 3
MoE2D.loss_coef = 0.01
MoE2D.summaries = True
run.train_steps = 300
"""


def write(directory, steps, suffix=""):
  """Writes an event file.

  Args:
    directory: a path.
    steps: a dict from step to a dict from tag to value.
    suffix: of the file's name. Files that are written in the same second need
      different ones, in their order.
  """
  with writer(directory, suffix) as opened:
    for step, values in steps.items():
      add(opened, step, values)


def writer(directory, suffix=""):
  """A writer of an event file, which is to be closed."""
  with tf.Graph().as_default():
    return tf.summary.FileWriter(str(directory), filename_suffix=suffix)


def add(opened, step, values):
  """Writes the scalars of a step."""
  opened.add_summary(tf.Summary(value=[
      tf.Summary.Value(tag=tag, simple_value=value)
      for tag, value in values.items()]), step)


def mixture(layer, outer=None, inner=None):
  """The tags of a layer in one step.

  Args:
    layer: its scope.
    outer: what differs from `OUTER`.
    inner: what differs from `INNER`.

  Returns:
    a dict
  """
  return tags(layer, {"outer": OUTER | (outer or {}),
                      "inner": INNER | (inner or {})})


def tags(layer, levels):
  """The tags of a layer in one step, from the metrics of each level."""
  return {
      f"moe/{layer}/{level}/{metric}": value
      for level, metrics in [
          *levels.items(),
          ("layer", {"tokens/not_finite": 0.0, "outputs/rms": 1.0})]
      for metric, value in metrics.items()}


def run(directory, config=CONFIG, steps=(1, 100, 200, 300), first=None):
  """A run of two mixtures whose loss falls from 4 by 1 a record, evaluated.

  Args:
    directory: a path to make.
    config: its operative configuration, or None.
    steps: those that are recorded.
    first: tags that have other values in the first step.

  Returns:
    the directory
  """
  directory.mkdir()
  write(directory, {
      step: {"loss": 4.0 - i, "learning_rate": 0.01, "global_step/sec": 2.0,
             **mixture(LAYERS[0]), **mixture(LAYERS[1]),
             **(first or {} if step == steps[0] else {})}
      for i, step in enumerate(steps)})
  with writer(directory / "eval_eval_held_out") as opened:
    add(opened, steps[-1], {
        "neg_log_perplexity": -2.0, "token_accuracy": 0.5,
        "num_eval_tokens": 10.0})
    # As Estimators do, without saying what it is.
    opened.add_summary(tf.Summary(value=[tf.Summary.Value(
        tag="checkpoint_path", tensor=tf.make_tensor_proto("model.ckpt-1"))]),
                       steps[-1])
  if config is not None:
    (directory / "operative_config.gin").write_text(config)
  return directory
