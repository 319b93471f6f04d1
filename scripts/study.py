"""Trains rows of configurations from several seeds, and compares them.

A study is a file of TOML: flags of mtf_moe.train for all rows, seeds, and rows,
each with the flags that make it what it is (see scripts/studies). A file may be
like another one, with its flags and seeds, and a row may begin with the models
of another one, by mtf_moe.surgery.

  python scripts/study.py run scripts/studies/capacity.toml my_study \\
      -- --gin_param='SentencePieceVocabulary.path = "text.model"'

makes the runs that the folder my_study has no result of, one after the other;
what was cut off goes on. Flags after -- are for all runs. Every result is a
line of my_study/results.jsonl, with what it came from and what it took, and

  python scripts/study.py report my_study --baseline='two levels, 4 x 4'

makes a table and a plot of them: means, and differences paired by seed. With
--study=FILE, a folder may hold the results of several studies, and rows are
compared with those that the file says. It needs the extra "benchmark" of
setup.py.
"""

import argparse
import pathlib
import re
import sys

from studying import runs
from studying import tables


def _run(flags):
  """Makes what is missing; the status of the program."""
  study = runs.Study.read(flags.study, flags.train_flags)
  missing = runs.missing(study, flags.folder)
  print(f"{len(missing)} of {len(study.runs())} runs to make", flush=True)
  failed = False
  for number, run in enumerate(missing, 1):
    print(f"{number} of {len(missing)}: {run.row}, seed {run.seed}", flush=True)
    try:
      for line in runs.train(run, flags.folder):
        if line.startswith(("step", "training", "evaluation", "error")):
          print(f"  {line}", flush=True)
    except RuntimeError as error:
      print(f"error: {error}", file=sys.stderr, flush=True)
      failed = True
  return int(failed)


def _report(flags):
  """Prints the table, and writes it beside the plot."""
  results = runs.read(flags.folder)
  study = None
  if flags.study:
    study = runs.Study.read(flags.study)
    results = [result for row in study.rows for result in results
               if result["row"] == row]
  if not results:
    raise ValueError(f"{flags.folder} has no results"
                     f"{f' of {flags.study}' if flags.study else ''}: run a "
                     "study there.")
  found = tables.rows(results, flags.metric, flags.beside)
  name = flags.baseline or found[0].name
  by_name = {row.name: row for row in found}
  if name not in by_name:
    raise ValueError(
        f"--baseline={name} is no row: choose one of {', '.join(by_name)}.")
  wanted = {row: study.baseline(row, name) if study else name
            for row in by_name}
  # One whose other has no results is compared with none.
  baselines = {row: by_name.get(other, by_name[row])
               for row, other in wanted.items()}
  text = tables.table(found, baselines, flags.metric)
  print(text)
  stem = re.sub(r"\W+", "_", flags.metric)
  if flags.study:
    stem = f"{flags.study.stem}_{stem}"
  (flags.folder / f"{stem}.md").write_text(text + "\n")
  tables.plot(found, baselines, flags.metric, flags.folder / f"{stem}.png")
  return 0


def main(arguments=None):
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  run = commands.add_parser("run", help="make the runs that are missing")
  run.add_argument("study", type=pathlib.Path, help="a file of TOML")
  run.add_argument("folder", type=pathlib.Path, help="where results are kept")
  run.add_argument("train_flags", nargs="*", metavar="-- FLAGS",
                   help="of mtf_moe.train, for all runs")
  report = commands.add_parser("report", help="make tables and plots")
  report.add_argument("folder", type=pathlib.Path)
  report.add_argument("--baseline", help=(
      "a row, for those that the study compares with no other; the first one "
      "if not given"))
  report.add_argument("--study", type=pathlib.Path,
                      help="a file of TOML, for its rows only")
  report.add_argument("--metric", default="bits_per_byte")
  report.add_argument("--beside", nargs="+", metavar="METRIC",
                      default=[], help=(
                          "whose means are shown beside it, such as "
                          "training.cpu_seconds"))
  flags = parser.parse_args(arguments)
  try:
    return {"run": _run, "report": _report}[flags.command](flags)
  except ValueError as error:
    parser.exit(2, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
  sys.exit(main())
