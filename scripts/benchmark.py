"""Measures the layer against the reference, and against what it cannot beat.

Contenders, each with a graph and a session of its own, in one process:

  reference  mesh_tensorflow's transformer_moe_layer_v2
  einsum     mtf_moe's, with moe_dispatch = "einsum"
  index      mtf_moe's, with moe_dispatch = "index"
  bound      the experts alone, on tensors of the shape that they get
  dense      one feed-forward layer on all tokens, with as many products as
             the experts have (those of empty slots among them)
  lucidrains-hierarchical, lucidrains-flat
             of the package mixture-of-experts for PyTorch, where installed

A step is forward (outputs and loss) or training (also the gradients by inputs
and variables, and an update by SGD). Every round runs a step of each contender,
in an order that changes, so that whatever else the machine does meets all of
them alike; two more rounds, ahead of the others, are dropped. What is measured
is CPU time, of all threads together: compare ratios, not milliseconds. It needs
the extra "benchmark" of setup.py.

  python scripts/benchmark.py                   five minutes on two cores
  python scripts/benchmark.py --preset issue    ten minutes; the ones to quote
  python scripts/benchmark.py --tokens 1024 --d_model 64 --hidden 128 \\
      --groups 256 --meshes 1x1 2x2 --rounds 5  twenty seconds
  python scripts/benchmark.py --groups 2048 --meshes 1x1 --trace index
"""

import mtf_moe  # noqa: F401 isort: skip  (must precede mesh_tensorflow)
import argparse
import collections
import contextlib
import importlib.metadata
import os
import platform
import statistics
import time

import tabulate
import tensorflow.compat.v1 as tf
import tqdm

from benchmarking import contenders
from benchmarking import peers
from benchmarking import report
from benchmarking import settings
from benchmarking import traces

WARM_UP = 2
TRACES = 3

ORDINARY = ("reference", "einsum", "index", "bound", "dense")
# What a preset decides, and its default without one.
_OF_A_SETTING = {
    **settings.SIZES, "groups": [256, 512, 1024, 2048], "meshes": [(1, 1)]}


class _Parser(argparse.ArgumentParser):

  def error(self, message):
    """Says what is wrong, without the usage of all other options."""
    self.exit(2, f"{self.prog}: error: {message}\n")


def parse(arguments):
  """The flags and the settings that a command line asks for.

  Args:
    arguments: a list of strings, or None for those of the process.

  Returns:
    (a namespace, a list of `Setting`s). Ends the process with one line on
    what is wrong, if something is.
  """
  parser = _Parser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  _add_options(parser)
  flags = parser.parse_args(arguments)
  given = {name: value for name in _OF_A_SETTING
           if (value := getattr(flags, name)) is not None}
  try:
    if flags.preset is None:
      chosen = settings.product(**{**_OF_A_SETTING, **given})
    elif given:
      raise ValueError(
          f"--preset {flags.preset} decides on --{next(iter(given))} as well: "
          "leave one of them out.")
    else:
      chosen = settings.PRESETS[flags.preset]
    for setting in chosen:
      setting.check()
    # What is named twice is measured once.
    flags.contenders = list(dict.fromkeys(flags.contenders))
    flags.modes = list(dict.fromkeys(flags.modes))
    peers.check(flags.contenders, chosen)
    traceable = [c for c in flags.contenders if c in contenders.BUILDERS]
    if flags.trace not in (None, *traceable):
      raise ValueError(
          f"--trace {flags.trace} is not among the --contenders that leave a "
          f"trace: choose from {', '.join(traceable)}, or add it there.")
    _make_folder(flags.output)
  except ValueError as error:
    parser.error(str(error))
  return flags, list(dict.fromkeys(chosen))


def _add_options(parser):
  positive, pair = settings.positive, settings.parse_pair
  for name, what in (("tokens", "in a step"), ("d_model", "depth of a token"),
                     ("hidden", "hidden units of an expert")):
    parser.add_argument(
        "--" + name, type=positive, metavar="N",
        help=f"{what} (default: {_OF_A_SETTING[name]})")
  parser.add_argument(
      "--experts", type=pair, metavar="XxY",
      help="of the first and the second level (default: 4x4)")
  parser.add_argument(
      "--groups", type=positive, nargs="+", metavar="N",
      help="sizes of the groups (default: 256 512 1024 2048)")
  parser.add_argument(
      "--meshes", type=pair, nargs="+", metavar="OxI",
      help="slices along the outer and the inner axis (default: 1x1)")
  parser.add_argument(
      "--preset", choices=settings.PRESETS,
      help="chosen settings, instead of all of the above")
  parser.add_argument(
      "--rounds", type=positive, default=15, metavar="N",
      help=f"to measure, after {WARM_UP} to warm up (default: 15)")
  parser.add_argument(
      "--contenders", nargs="+", default=ORDINARY, metavar="NAME",
      choices=[*ORDINARY, *peers.CLASSES],
      help=f"as above (default: {' '.join(ORDINARY)})")
  parser.add_argument(
      "--modes", nargs="+", default=contenders.MODES, metavar="MODE",
      choices=contenders.MODES, help="forward, training (default: both)")
  parser.add_argument(
      "--output", default="benchmark_results", metavar="DIR",
      help="where benchmark.json, .md and .png go (default: %(default)s)")
  parser.add_argument(
      "--trace", metavar="NAME",
      help="also print where this contender's time goes, by type of operation")


def _make_folder(folder):
  """Before the work whose results it is for."""
  try:
    os.makedirs(folder, exist_ok=True)
    writable = os.access(folder, os.W_OK)
  except OSError:
    writable = False
  if not writable:
    raise ValueError(
        f"--output {folder} is no folder that can be written to: name another.")


def orders(n):
  """Orders of n contenders, in which each follows each other equally often.

  A Latin square of Williams (1949), in which also each comes first, second and
  so on equally often; with its mirror image where n is odd.

  Returns:
    a list of lists of the numbers below n
  """
  zigzag = [(i + 1) // 2 if i % 2 else n - i // 2 for i in range(n)]
  square = [[(number + i) % n for number in zigzag] for i in range(n)]
  return square + [row[::-1] for row in square] if n % 2 else square


def sample(steps, rounds):
  """Milliseconds of CPU time.

  Args:
    steps: functions without arguments, by name.
    rounds: an iterable, an element for each round; the first `WARM_UP` are
      dropped.

  Returns:
    a list for each function, by name
  """
  names = list(steps)
  sequence = orders(len(names))
  samples = {name: [] for name in names}
  for i, _ in enumerate(rounds):
    for number in sequence[i % len(sequence)]:
      name = names[number]
      start = time.process_time()
      steps[name]()
      samples[name].append(1e3 * (time.process_time() - start))
  return {name: values[WARM_UP:] for name, values in samples.items()}


def measure(setting, mode, names, rounds):
  """Measures the contenders in one setting and mode.

  Args:
    setting: a `Setting`.
    mode: one of contenders.MODES.
    names: a list of contenders.
    rounds: how many to measure.

  Returns:
    a `Result`, and by contender a list of StepStats; peers have none
  """
  load = os.getloadavg()[0]
  with contextlib.ExitStack() as stack:
    # Begins before the graphs are built, so that there is something to see.
    progress = stack.enter_context(tqdm.tqdm(
        range(WARM_UP + rounds), desc=f"{setting}, {mode}",
        bar_format="{desc}: round {n_fmt} of {total_fmt}, {elapsed}"))
    running = {
        name: stack.enter_context(contextlib.closing(
            (peers.Peer if name in peers.CLASSES else contenders.Contender)(
                name, setting, mode)))
        for name in names}
    samples = sample({n: c.step for n, c in running.items()}, progress)
    stats = {
        name: [contender.trace() for _ in range(TRACES)]
        for name, contender in running.items() if name not in peers.CLASSES}
  peaks = {
      name: statistics.median(map(traces.peak_megabytes, several))
      for name, several in stats.items()}
  return report.Result(
      setting, mode, samples, peaks, (load, os.getloadavg()[0])), stats


def trace_table(several, num_types=15):
  """Where the time of a step goes, as text.

  Args:
    several: a list of StepStats, whose mean is taken.
    num_types: of operations, those that take the most.
  """
  times = collections.Counter()
  counts = collections.Counter()
  for step_stats in several:
    for kind, (taken, count) in traces.time_by_type(step_stats).items():
      times[kind] += taken / len(several)
      counts[kind] += count / len(several)
  total = times.total()
  return tabulate.tabulate(
      [[kind, round(counts[kind]), f"{taken:.2f}", f"{taken / total:.1%}"]
       for kind, taken in times.most_common(num_types)],
      headers=["operation", "times", "ms", "of all"], disable_numparse=True,
      colalign=["left", "right", "right", "right"])


def environment(names):
  """What the results depend on, by name."""
  found = {"TensorFlow": tf.__version__, "Python": platform.python_version(),
           "cores": os.cpu_count()}
  if set(names) & set(peers.CLASSES):
    found["PyTorch"] = importlib.metadata.version("torch")
  return found


def main(arguments=None):
  flags, chosen = parse(arguments)
  tf.logging.set_verbosity(tf.logging.ERROR)
  tf.disable_v2_behavior()
  # Or the backward pass may read weights that the update has already changed.
  tf.enable_resource_variables()
  results = []
  for setting in chosen:
    for mode in flags.modes:
      result, stats = measure(setting, mode, flags.contenders, flags.rounds)
      results.append(result)
      # After each, so that a run that is stopped leaves what it has.
      report.write(flags.output, environment(flags.contenders), results)
      if flags.trace:
        print(f"{setting}, {mode}, {flags.trace}:\n"
              f"{trace_table(stats[flags.trace])}\n")
  print(report.text(environment(flags.contenders), results))


if __name__ == "__main__":
  main()
