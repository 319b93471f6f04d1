"""What a study declares, and the runs that are still to be made of it."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import tomllib
from typing import Any

RESULTS = "results.jsonl"


@dataclasses.dataclass(frozen=True)
class Run:
  """One training, with its evaluation.

  Attributes:
    row: the name of its row in the study.
    seed: of initial values and all that is drawn.
    flags: of mtf_moe.train, without the seed.
    begins: the row whose model of this seed it begins with, by mtf_moe.surgery;
      None if it begins anew.
  """

  row: str
  seed: int
  flags: tuple[str, ...]
  begins: str | None = None

  @property
  def name(self) -> str:
    """Of its folder."""
    return folder_of(self.row, self.seed)


def folder_of(row: str, seed: int) -> str:
  return "_".join([*re.findall("[a-z0-9]+", row.lower()), str(seed)])


@dataclasses.dataclass(frozen=True)
class Study:
  """Rows of a table, each a configuration that is trained from several seeds.

  Attributes:
    flags: of mtf_moe.train, for all rows.
    seeds: integers.
    rows: by name, the flags that make the row what it is.
    begins: by name, the row before it whose models it begins with.
    against: by name, the row that a report compares it with, if not with the
      one that all are compared with.
  """

  flags: tuple[str, ...]
  seeds: tuple[int, ...]
  rows: Mapping[str, tuple[str, ...]]
  begins: Mapping[str, str] = dataclasses.field(default_factory=dict)
  against: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @classmethod
  def read(cls, path: pathlib.Path, flags: Sequence[str] = ()) -> "Study":
    """Reads a file of TOML: `flags`, `seeds`, and the table `rows`.

    A row that begins with another one's models is in the table `begins`, too,
    and one that is to be compared with another in the table `against`.
    A file that is `like` another one has its flags ahead of its own, which may
    be none, and its seeds, if it does not give others.

    Args:
      path: of the file.
      flags: further ones, for all rows.

    Raises:
      ValueError: if something is missing in it, or unknown.
    """
    declared = _toml(path)
    begins = declared.pop("begins", {})
    against = declared.pop("against", {})
    if like := declared.pop("like", None):
      other = _toml(path.parent / like)
      if not {"flags", "seeds"} <= other.keys():
        raise ValueError(
            f"{path} is like {like}, which has no flags and seeds of its own.")
      declared.setdefault("seeds", other["seeds"])
      declared["flags"] = [*other["flags"], *declared.get("flags", [])]
    needed = {"flags", "seeds", "rows"}
    if declared.keys() != needed:
      raise ValueError(
          f"{path} has {sorted(declared)}, and has to have {sorted(needed)}: "
          "flags of mtf_moe.train for all rows, a list of seeds (or another "
          "file with both that it is like), and a table of rows with the flags "
          "of each.")
    if not (declared["seeds"] and declared["rows"]):
      raise ValueError(f"{path} declares no run: give seeds and rows.")
    order = list(declared["rows"])
    for row, before in begins.items():
      if before not in order[:order.index(row) if row in order else 0]:
        raise ValueError(
            f"{path} has {row!r} begin with {before!r}: name two of its rows, "
            "the second of which stands above the first.")
    for row, other in against.items():
      if not {row, other} <= set(order):
        raise ValueError(f"{path} has {row!r} against {other!r}: name two of "
                         "its rows.")
    rows = {row: tuple(own) for row, own in declared["rows"].items()}
    study = cls((*declared["flags"], *flags), tuple(declared["seeds"]), rows,
                begins, against)
    names = [run.name for run in study.runs()]
    if len(set(names)) < len(names):
      raise ValueError(
          f"{path} has rows whose folders would have the same name: let them "
          "differ in letters or digits.")
    return study

  def baseline(self, row: str, default: str) -> str:
    """The row that one is compared with.

    Args:
      row: its name. One that others are compared with is compared with none,
        that is, with itself.
      default: what rows are compared with for which the study has no other.
    """
    itself = row in self.against.values()
    return self.against.get(row, row if itself else default)

  def runs(self) -> list[Run]:
    """All of them, each seed of all rows before the next one."""
    return [Run(row, seed, (*self.flags, *own), self.begins.get(row))
            for seed in self.seeds for row, own in self.rows.items()]


def _toml(path):
  try:
    return tomllib.loads(path.read_text(encoding="utf-8"))
  except (OSError, tomllib.TOMLDecodeError) as error:
    raise ValueError(f"{path} is no file of TOML ({error}).") from None


def missing(study: Study, folder: pathlib.Path) -> list[Run]:
  """The runs that have no result yet, or one of other flags."""
  found = {Run(result["row"], result["seed"], tuple(result["flags"]),
               result.get("begins")) for result in read(folder)}
  return [run for run in study.runs() if run not in found]


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The results of a folder, the newest of each row and seed."""
  path = folder / RESULTS
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  newest = {}
  for result in map(json.loads, lines):
    newest[result["row"], result["seed"]] = result
  return list(newest.values())


def train(run: Run, folder: pathlib.Path) -> Iterator[str]:
  """Trains and evaluates, and adds the result to those of the folder.

  What was begun, it goes on with; of what was begun with other flags,
  mtf_moe.train says so.

  Args:
    run: a `Run`.
    folder: of the study.

  Yields:
    what the program says, line by line; it is kept in the run's folder, too.

  Raises:
    RuntimeError: if it fails.
  """
  directory = (folder / "runs" / run.name).resolve()
  directory.mkdir(parents=True, exist_ok=True)
  model_dir = directory / "model"
  flags = [f"--model_dir={model_dir}", *run.flags,
           f"--gin_param=train_model.seed = {run.seed}"]
  if run.begins and not model_dir.exists():
    before = folder.resolve() / "runs" / folder_of(run.begins, run.seed)
    yield from _said_by(run, directory, "mtf_moe.surgery", [
        *flags, f"--from={before / 'model'}", f"--seed={run.seed}"])
  yield from _said_by(run, directory, "mtf_moe.train", [
      *flags, "--gin_param=train_model.evaluate_at_end = True"])
  results = model_dir / RESULTS
  if not results.exists():
    raise RuntimeError(f"{run.row!r}, seed {run.seed}, was not evaluated: "
                       f"{directory} says why.")
  *_, last = results.read_text(encoding="utf-8").splitlines()
  with open(folder / RESULTS, "a", encoding="utf-8") as file:
    file.write(json.dumps({**dataclasses.asdict(run), **json.loads(last)})
               + "\n")


def _said_by(run, directory, program, flags):
  """What a program says, which is kept; RuntimeError if it fails."""
  log = directory / "output.txt"
  with open(log, "a", encoding="utf-8") as file, subprocess.Popen(
      [sys.executable, "-m", program, *flags], stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True, errors="replace") as process:
    for line in process.stdout:
      file.write(line)
      file.flush()
      yield line.rstrip()
  if process.returncode:
    raise RuntimeError(
        f"{run.row!r}, seed {run.seed}, ended with status "
        f"{process.returncode}: {log} says why.")
