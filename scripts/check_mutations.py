"""Breaks each rule of the layer's semantics, and sees that a test notices.

    python scripts/check_mutations.py --only=7 --only=13

Every mutant (tests/mutations) stands in front of one function of the package,
its seam, while pytest runs the tests that should fail then. It is an error if
none does, if none of them calls the seam, or if the package has no such
function any more.
"""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)  # For the tests, and this package and no other one.

from tests.mutations import mutants  # noqa: E402
from tests.mutations import plugin  # noqa: E402
from tests.mutations import seams  # noqa: E402

CAUGHT = "caught"


@dataclasses.dataclass(frozen=True)
class Finished:
  """What a run of pytest has come to.

  Attributes:
    returncode: its own.
    output: what it printed.
    told: the lines that the mutant wrote; see `seams.applied`.
  """

  returncode: int
  output: str
  told: list[str]


def run_tests(mutant: seams.Mutant, processes: int) -> Finished:
  """Runs the tests of a mutant, until one fails."""
  with tempfile.TemporaryDirectory() as directory:
    report = os.path.join(directory, "report")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", str(processes),
         "-p", "no:cacheprovider", "-p", plugin.__name__, *mutant.tests],
        cwd=ROOT, capture_output=True, text=True, check=False, env={
            **os.environ, "PYTHONPATH": ROOT, plugin.MUTANT: mutant.name,
            plugin.REPORT: report})
    told = []
    if os.path.exists(report):
      with open(report) as f:
        told = f.read().splitlines()
    return Finished(finished.returncode, finished.stdout + finished.stderr,
                    told)


def verdict(mutant: seams.Mutant, finished: Finished) -> str:
  """CAUGHT and by what, or what is wrong."""
  failed = [line for line in finished.told if line.startswith("failed: ")]
  if failed:
    return f"FAILED: the mutant itself, not a test. {failed[0]}"
  caught_by = re.search(r"^FAILED (tests/.*)", finished.output, re.MULTILINE)
  if finished.returncode and not caught_by:
    return f"FAILED: pytest ran no test to its end.\n{finished.output}"
  if "called" not in finished.told:
    return f"UNUSED: no test calls its seam, {mutant.seam}."
  if not caught_by:
    return "MISSED: no test fails."
  return f"{CAUGHT} by {caught_by[1]}"


def main():
  rules = "\n".join(
      f"  {number:2} {rule}" for number, rule in mutants.RULES.items())
  parser = argparse.ArgumentParser(
      description=f"{__doc__}\nThe rules:\n{rules}",
      formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument(
      "--only", action="append", metavar="RULE_OR_NAME",
      help="a rule to break, or one mutant; several times for several")
  parser.add_argument(
      "--processes", type=int, default=0,
      help="of pytest for each mutant, as its -n; by default its own only")
  args = parser.parse_args()
  chosen = [mutant for mutant in mutants.MUTANTS.values() if not args.only or (
      {str(mutant.rule), mutant.name} & set(args.only))]
  if not chosen:
    parser.error(f"there is no mutant of {', '.join(args.only)}")

  wrong = 0
  for mutant in chosen:
    try:
      seams.find(mutant.seam)
      found = verdict(mutant, run_tests(mutant, args.processes))
    except seams.SeamGoneError as error:
      found = f"GONE: {error}"
    wrong += not found.startswith(CAUGHT)
    print(f"rule {mutant.rule:2}, {mutant.name}: {found}", flush=True)
  sys.exit(f"{wrong} of {len(chosen)} mutants were not caught." if wrong
           else None)


if __name__ == "__main__":
  main()
