"""The tables of docs/results.md are what the raw results say."""

import json
import statistics

import pytest

pytest.importorskip("scipy")

import results_page
from studying import runs


def raw():
  lines = (results_page.RESULTS / "results.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_the_page_is_up_to_date():
  text = results_page.PAGE.read_text(encoding="utf-8")
  assert text == results_page.page(text), "run scripts/results_page.py"
  for name in results_page.TABLES:
    assert f"<!-- study: {name} -->" in text
    assert f"(results/{name}.png)" in text


def test_a_changed_number_is_noticed():
  text = results_page.PAGE.read_text(encoding="utf-8")
  row = next(line for line in text.splitlines()
             if line.startswith("| two levels, 4 x 4 |"))
  assert results_page.page(text.replace(row, row.replace(" 5 ", " 6 "))) == text


def test_a_row_by_hand():
  """Of as many dense runs as mixtures, mean and paired difference."""
  dense, two_levels = (
      {found["seed"]: found for found in raw() if found["row"] == row}
      for row in (results_page.DENSE, results_page.TWO_LEVELS))
  assert sorted(dense) == sorted(two_levels) == [1, 2, 3, 4, 5]
  bits = [(two_levels[seed]["bits_per_byte"], dense[seed]["bits_per_byte"])
          for seed in dense]
  nats = [(two_levels[seed]["training"]["loss_without_auxiliary"],
           dense[seed]["training"]["loss"]) for seed in dense]
  line = next(line for line in results_page.table("quick_start")
              if line.startswith("| two levels, 4 x 4 |"))
  _, _, seeds, new_text, new_gain, later, later_gain, _, cpu, _ = (
      cell.strip() for cell in line.split("|"))
  assert seeds == "5"
  for pairs, digits, shown, shown_difference in (
      (nats, 3, new_text, new_gain), (bits, 4, later, later_gain)):
    mean = statistics.fmean(mixture for mixture, _ in pairs)
    difference = statistics.fmean(mixture - twin for mixture, twin in pairs)
    assert shown == f"{mean:.{digits}f}"
    assert shown_difference.startswith(f"{difference:+.{digits}f} +- ")
  # Student's distribution with four degrees of freedom: 2.776 for 95%.
  deviation = statistics.stdev(mixture - twin for mixture, twin in bits)
  half = float(later_gain.split()[-1])
  assert half == pytest.approx(2.776 * deviation / 5 ** 0.5, abs=1e-4)
  assert cpu == format(statistics.fmean(
      found["training"]["cpu_seconds"] for found in two_levels.values()), ".0f")


@pytest.mark.parametrize("name", [
    name for name, shown in results_page.TABLES.items()
    if shown.results == results_page.RESULTS])
def test_results_are_of_the_flags_that_a_study_declares(name):
  # Those of the other rate are of a quick start that had it without a flag.
  study = runs.Study.read(
      results_page.ROOT / "scripts" / "studies" / f"{name}.toml")
  made = {(result["row"], result["seed"]) for result in raw()}
  declared = [run for run in study.runs() if (run.row, run.seed) in made]
  assert len(declared) > 5
  missing = runs.missing(study, results_page.RESULTS)
  assert not [run.name for run in declared if run in missing]
