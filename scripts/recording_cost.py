"""Measures what it costs to watch a training run, as a ratio.

    python scripts/recording_cost.py [--rounds=30] [--gin_file=... ...]

One training step is built (by default of the quick start's model, on bytes: two
layers of 4 x 4 experts on a 2x2 mesh), and run in turns in one process, in an
order that changes: as it is; with the vital signs that a run looks at in every
step; and with all that it records each train_model.steps_per_record steps. CPU
time is measured: medians over the rounds, with their quartiles. Gin files and
parameters are those of mtf_moe.train; no text is needed.
"""

import mtf_moe  # isort: skip  (must precede mesh_tensorflow)
import random
import statistics
import sys
import time

from absl import flags
from absl import logging
import mesh_tensorflow as mtf
import tabulate
import tensorflow.compat.v1 as tf
import tqdm

from mtf_moe.run import config_files
from mtf_moe.run import mistakes
from mtf_moe.run import recording
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.train import records
from mtf_moe.train import training

assert mtf_moe
_PROGRAM = "recording_cost.py"
_DEFAULT_FILES = ["models/lm_small.gin", "meshes/cpu_2x2.gin", "data/bytes.gin"]
_STEPS_PER_RECORD = 100  # The default of train_model.
_PLAIN, _WATCHED, _RECORDED = (
    "training step", "with vital signs", "with all records")

FLAGS = flags.FLAGS
flags.DEFINE_integer(
    "rounds", 30, "How often each kind of step is measured.", lower_bound=2)


@mistakes.told(_PROGRAM)
def main(argv):
  del argv
  logging.set_verbosity(logging.FATAL)
  tf.get_logger().setLevel("ERROR")
  tf.disable_v2_behavior()
  tf.enable_resource_variables()
  if not FLAGS.gin_file:
    FLAGS.gin_file = _DEFAULT_FILES
  config_files.read(above=[  # The text is not needed, only the vocabulary.
      "run.perplexity_eval_steps = None", "run.mode = 'train'"])
  with tf.Graph().as_default():
    fetches, lay_out_variables = _build(ConfiguredModel.from_gin())
    session = tf.Session(config=training.session_config())
    session.run([tf.global_variables_initializer(),
                 tf.local_variables_initializer()])
    session.run(lay_out_variables)
    print(_table(_measure(session, fetches, FLAGS.rounds)))


def _build(configured):
  """What a session fetches in each kind of step, and before the first."""
  tf.train.create_global_step()
  graph = mtf.Graph()
  mesh = mtf.Mesh(graph, "mesh")
  loss = configured.loss(mesh, "train")
  gradients = mtf.gradients(
      [loss], [v.outputs[0] for v in graph.trainable_variables])
  updates = configured.run["optimizer"](learning_rate=1e-3).apply_grads(
      gradients, graph.trainable_variables)
  lowering = mtf.Lowering(graph, {mesh: mtf.placement_mesh_impl.
                                  PlacementMeshImpl(
      configured.mesh_shape, configured.layout,
      [""] * configured.mesh_shape.size)})
  step = [lowering.export_to_tf_tensor(loss),
          tf.group([lowering.lowered_operation(op) for op in updates])]
  scalars = recording.collected_scalars()
  signs = tf.stack([scalars[tag] for tag in records.vital_signs(scalars)])
  return ({_PLAIN: step, _WATCHED: [*step, signs],
           _RECORDED: [*step, signs, scalars]},
          lowering.copy_masters_to_slices())


def _measure(session, fetches, rounds):
  """Milliseconds of CPU time, a list for each kind of step."""
  for fetched in fetches.values():  # TensorFlow prunes the graph for each.
    session.run(fetched)
  times = {kind: [] for kind in fetches}
  for _ in tqdm.trange(rounds, unit="round", file=sys.stderr):
    for kind in random.sample(list(fetches), len(fetches)):
      start = time.process_time()
      session.run(fetches[kind])
      times[kind].append(1000 * (time.process_time() - start))
  return times


def _table(times):
  """Medians, and ratios within a round, with quartiles."""
  def cell(values, form):
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"

  def ratios(kind):
    return [one / plain for one, plain in zip(times[kind], times[_PLAIN])]

  rows = [[kind, cell(values, ".1f"), cell(ratios(kind), ".3f")]
          for kind, values in times.items()]
  run = [watched + (recorded - watched) / _STEPS_PER_RECORD
         for watched, recorded in zip(ratios(_WATCHED), ratios(_RECORDED))]
  rows.append([f"a run, which records each {_STEPS_PER_RECORD} steps", "",
               cell(run, ".3f")])
  return tabulate.tabulate(
      rows, headers=["", "ms of CPU time", "ratio"], disable_numparse=True)


if __name__ == "__main__":
  mistakes.run(_PROGRAM, main)
