"""Studies: what is declared, run and resumed, and what tables say of it."""

import json
import math
import pathlib

from matplotlib import image
import pytest

pytest.importorskip("scipy")

from studying import runs
from studying import tables

from scripts import study as study_script
from tests.train import program

TOML = """
flags = ["--a"]
seeds = [1, 2]
[rows]
"one, 1 x 1" = []
two = ["--b"]
"""


def declared(directory, text=TOML):
  path = directory / "study.toml"
  path.write_text(text)
  return path


def test_runs_of_a_study(tmp_path):
  study = runs.Study.read(declared(tmp_path), ["--c"])
  assert [(run.row, run.seed, run.flags) for run in study.runs()] == [
      ("one, 1 x 1", 1, ("--a", "--c")), ("two", 1, ("--a", "--c", "--b")),
      ("one, 1 x 1", 2, ("--a", "--c")), ("two", 2, ("--a", "--c", "--b"))]
  assert [run.name for run in study.runs()][:2] == ["one_1_x_1_1", "two_1"]


def test_a_study_like_another(tmp_path):
  declared(tmp_path)
  path = tmp_path / "other.toml"
  path.write_text('like = "study.toml"\n[rows]\nthree = ["--d"]\n')
  assert [(run.row, run.seed, run.flags)
          for run in runs.Study.read(path).runs()] == [
              ("three", 1, ("--a", "--d")), ("three", 2, ("--a", "--d"))]
  path.write_text('like = "study.toml"\nflags = ["--e"]\nseeds = [3]\n'
                  '[rows]\nthree = []\n')
  assert [(run.seed, run.flags) for run in runs.Study.read(path).runs()] == [
      (3, ("--a", "--e"))]
  path.write_text('like = "other.toml"\n[rows]\nthree = []\n')
  with pytest.raises(ValueError, match="no flags and seeds of its own"):
    runs.Study.read(path)
  path.write_text('like = "none.toml"\n[rows]\nthree = []\n')
  with pytest.raises(ValueError, match=r"none\.toml is no file"):
    runs.Study.read(path)


def test_rows_that_begin_with_others(tmp_path):
  begins = '[begins]\ntwo = "one, 1 x 1"\n'
  study = runs.Study.read(declared(tmp_path, TOML + begins))
  assert [run.begins for run in study.runs()] == [
      None, "one, 1 x 1", None, "one, 1 x 1"]
  keep(tmp_path, "two", 1, 2.0, ("--a", "--b"))  # From its own beginning.
  assert len(runs.missing(study, tmp_path)) == 4
  for wrong in (begins.replace("1 x 1", "1 x 2"),
                '[begins]\n"one, 1 x 1" = "two"\n',
                '[begins]\nthree = "two"\n'):
    with pytest.raises(ValueError, match="stands above"):
      runs.Study.read(declared(tmp_path, TOML + wrong))


@pytest.mark.parametrize("text, said", [
    ("seeds = [", "is no file of TOML"),
    ("seeds = [1]", "has to have"),
    ("flags = []\nseeds = []\n[rows]\na = []", "declares no run"),
    ("flags = []\nseeds = [1]\n[rows]\n'a b' = []\n'a-b' = []", "same name")])
def test_files_that_are_none(tmp_path, text, said):
  with pytest.raises(ValueError, match=said):
    runs.Study.read(declared(tmp_path, text))


def keep(folder, row, seed, value, flags=("--a",), cpu=None):
  with open(folder / runs.RESULTS, "a") as file:
    file.write(json.dumps({
        "row": row, "seed": seed, "flags": flags, "bits_per_byte": value,
        "training": {"cpu_seconds": cpu, "records": {"a/b": value / 2}},
        "dropless": False}) + "\n")


def test_what_is_missing(tmp_path):
  """Results of other flags are of another study; the newest one counts."""
  study = runs.Study.read(declared(tmp_path))
  keep(tmp_path, "one, 1 x 1", 1, 2.0)
  keep(tmp_path, "two", 1, 2.0)
  assert [(run.row, run.seed) for run in runs.missing(study, tmp_path)] == [
      ("two", 1), ("one, 1 x 1", 2), ("two", 2)]
  keep(tmp_path, "two", 1, 3.0, ("--a", "--b"))
  assert ("two", 1) not in [
      (run.row, run.seed) for run in runs.missing(study, tmp_path)]
  assert [result["bits_per_byte"] for result in runs.read(tmp_path)] == [
      2.0, 3.0]


def test_differences_are_paired_by_seed():
  """By hand: differences 1, 2, 3 have the mean 2 and the deviation 1."""
  base = tables.Row("base", {1: 10.0, 2: 20.0, 3: 30.0, 4: 0.0})
  other = tables.Row("other", {3: 33.0, 2: 22.0, 1: 11.0, 7: 5.0})
  mean, half = other.difference(base)
  assert mean == 2.0
  # Student's 97.5% point of two degrees of freedom, from a table.
  assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
  assert other.deviation == pytest.approx(12.366, rel=1e-3)
  alone = tables.Row("alone", {1: 12.0})
  mean, half = alone.difference(base)
  assert mean == 2.0 and math.isnan(half) and math.isnan(alone.deviation)
  assert math.isnan(tables.Row("", {9: 1.0}).difference(base)[0])


def test_report(tmp_path, capsys):
  for seed in (1, 2, 3):
    keep(tmp_path, "base", seed, 2.0 + seed, cpu=100 * seed)
    keep(tmp_path, "better", seed, 1.5 + seed, cpu=None)
  assert study_script.main(
      ["report", str(tmp_path), "--beside", "training.cpu_seconds"]) == 0
  *_, base, better = capsys.readouterr().out.splitlines()
  cells = [cell.strip() for cell in better.strip("|").split("|")]
  assert cells == ["better", "3", "3.5000", "1.0000", "-0.5000", "0.0000",
                   "base", ""]
  cells = [cell.strip() for cell in base.strip("|").split("|")]
  assert cells == ["base", "3", "4.0000", "1.0000", "", "", "", "200"]
  assert image.imread(tmp_path / "bits_per_byte.png").shape[1] > 100


def test_a_report_of_one_study_among_several(tmp_path, capsys):
  """Its rows in its order, with numbers from inside of the results."""
  for row in ("other", "two", "one, 1 x 1"):
    for seed in (1, 2):
      keep(tmp_path, row, seed, 2.0 * seed)
  path = declared(tmp_path)
  assert study_script.main([
      "report", str(tmp_path), f"--study={path}",
      "--metric=training.records.a/b", "--beside", "bits_per_byte"]) == 0
  lines = [[cell.strip() for cell in line.strip("|").split("|")]
           for line in capsys.readouterr().out.splitlines()]
  assert lines[0][-1] == "bits_per_byte"
  assert [(row, mean, beside) for row, _, mean, *_, beside in lines[2:]] == [
      ("one, 1 x 1", "1.5000", "3"), ("two", "1.5000", "3")]
  assert (tmp_path / "study_training_records_a_b.png").exists()


def test_rows_against_others(tmp_path, capsys):
  """b1 from a1 and b2 from a2, both by 1; others from the first row."""
  path = declared(tmp_path, (
      "flags = []\nseeds = [1]\n[rows]\na1 = []\nb1 = []\na2 = []\nb2 = []\n"
      "c = []\nd = []\n[against]\nb2 = 'a2'\nd = 'later'\n"))
  with pytest.raises(ValueError, match="'d' against 'later'"):
    runs.Study.read(path)
  path.write_text(path.read_text().replace("d = []", "d = []\nlater = []"))
  for row, value in (("a1", 1), ("b1", 2), ("a2", 5), ("b2", 6), ("c", 4),
                     ("d", 7)):
    keep(tmp_path, row, 1, float(value))
  assert study_script.main(["report", str(tmp_path), f"--study={path}"]) == 0
  lines = [[cell.strip() for cell in line.strip("|").split("|")]
           for line in capsys.readouterr().out.splitlines()[2:]]
  assert [(row, difference, other)
          for row, _, _, _, difference, _, other in lines] == [
              ("a1", "", ""), ("b1", "+1.0000", "a1"), ("a2", "", ""),
              ("b2", "+1.0000", "a2"), ("c", "+3.0000", "a1"), ("d", "", "")]


@pytest.mark.parametrize("flags, said", [
    ([], "has no results"),
    (["--baseline=other"], "choose one of base"),
    (["--metric=loss"], "choose one of bits_per_byte"),
    (["--beside", "dropless"], "choose from bits_per_byte")])
def test_reports_of_nothing(tmp_path, capsys, flags, said):
  if flags:
    keep(tmp_path, "base", 1, 2.0)
  with pytest.raises(SystemExit):
    study_script.main(["report", str(tmp_path), *flags])
  assert said in capsys.readouterr().err


def test_it_runs_what_is_missing(tmp_path, monkeypatch, capsys):
  """Three rows: one fails the first time, one begins with another's model."""
  program.write_text(tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PYTHONPATH", program.ROOT)
  flags = [*(f"--gin_file={name}" for name in program.FILES),
           *(f"--gin_param={line}" for line in program.SETTINGS),
           "--gin_param=TextFiles.glob = 'text.txt'",
           "--gin_param=run.train_steps = 2"]
  path = declared(tmp_path, (
      f"flags = {json.dumps(flags)}\nseeds = [5]\n[rows]\n"
      'good = []\nbad = ["--gin_param=MoE2D.hidden_size = -1"]\n'
      'more = ["--gin_param=MoE2D.expert_x = 4", '
      '"--gin_param=run.train_steps = 4"]\n[begins]\nmore = "good"\n'))
  folder = pathlib.Path("study")
  assert study_script.main(["run", str(path), str(folder)]) == 1
  said = capsys.readouterr()
  assert "3 of 3 runs to make" in said.out
  assert "'bad', seed 5, ended with status 1" in said.err
  result, more = runs.read(folder)
  assert result["row"] == "good" and result["step"] == 2
  assert (more["row"], more["begins"], more["step"]) == ("more", "good", 4)
  log = folder / "runs" / "more_5" / "output.txt"
  assert "2 x 2 experts to 4 x 2 experts" in log.read_text()
  assert "resuming at step 2" in log.read_text()
  assert 1.0 < result["bits_per_byte"] < 20.0
  assert result["training"]["tokens"] > 0
  path.write_text(path.read_text().replace("-1", "8"))
  assert study_script.main(["run", str(path), str(folder)]) == 0
  assert "1 of 3 runs to make" in capsys.readouterr().out
  assert [one["row"] for one in runs.read(folder)] == ["good", "more", "bad"]
