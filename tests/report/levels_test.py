"""Mixtures of one, two and three levels, by numbers that were worked out."""

import dataclasses

import numpy as np
import pytest

from mtf_moe.hparams import Level
from mtf_moe.report import figures
from mtf_moe.report import ledger
from mtf_moe.report import mixtures
from mtf_moe.report import overview
from mtf_moe.report import verdicts
from tests import described_layers
from tests.report import event_files
from tests.report.arithmetic_test import made

ONE = "transformer/block_000/layer_001/MoE1D"
TWO = "transformer/block_000/layer_002/MoE2D"
THREE = "transformer/block_000/layer_003/MoE"
CONFIG = "mtf_moe.MoE1D.num_experts = 2\nmtf_moe.MoE1D.loss_coef = 0.5\n"


def run_of(layers, config=CONFIG, described=None):
  """A run with a step in which layers were recorded, and what it has kept."""
  tags = {}
  for scope, levels in layers.items():
    tags |= event_files.tags(scope, levels)
  return dataclasses.replace(made({1: tags}, config), layers=described)


def layer_of(scope, levels, **kwargs):
  layer, = mixtures.find(run_of({scope: levels}, **kwargs))
  return layer


def said(run, kind=verdicts.WARNING):
  return [verdict.text for verdict in verdicts.judge(run, mixtures.find(run))
          if verdict.kind == kind]


@pytest.mark.parametrize("names, found", [
    (["level_1"], True), (["outer", "inner"], True),
    (["inner", "outer"], True), (["level_2", "level_3", "level_1"], True),
    (["outer"], False), (["inner"], False), (["level_1", "level_2"], False),
    (["level_1", "level_3"], False), (["level_2", "level_3"], False)])
def test_a_layer_is_whole_if_all_its_levels_are(names, found):
  layers = mixtures.find(run_of({"a": dict.fromkeys(names, event_files.OUTER)}))
  assert [layer.level_names for layer in layers] == (
      [sorted(names, reverse="outer" in names)] if found else [])


def test_older_runs():
  """Facts of the whole layer under its first level, in part of the steps."""
  older = {
      "outer": event_files.OUTER, "inner": event_files.INNER}
  tags = {tag: value for tag, value in event_files.tags(TWO, older).items()
          if "/layer/" not in tag}
  further = {f"moe/{TWO}/outer/{metric}": 0.0
             for metric in ("tokens/not_finite", "outputs/rms")}
  layer, = mixtures.find(made({1: tags | further, 2: tags}))
  assert layer.levels[0].steps.tolist() == [1, 2]
  assert layer.facts.called == "MoE2D"
  assert [level.experts for level in layer.facts.levels] == [2, 3]


def test_one_level():
  layer = layer_of(ONE, event_files.ONE_LEVEL)
  figure, _, frames = figures.loads(layer.levels[0])
  assert frames == [[[1.25, 0.75]]]
  assert list(figure.data[0].customdata[0]) == ["0", "1"]
  # Its experts are what the configuration says.
  assert verdicts.experts_in([layer], "level_1") == 2
  text = " ".join(said(run_of({ONE: event_files.ONE_LEVEL})))
  assert "12% of tokens find no expert at level one of layer 1 " in text
  assert text.endswith("raise MoE1D.capacity_factor_train.")


def test_three_levels():
  layer = layer_of(THREE, event_files.THREE_LEVELS)
  whole = ledger.arrived(layer.levels[2])
  assert whole.counts == [8]
  assert [part.counts.tolist() for part in whole.parts] == [[4], [3], [1]]
  figure, _, frames = figures.loads(layer.levels[2])
  # Columns are those of level one; of each, 3 times 2 experts below it.
  assert frames == [[
      [1.5, 1.5], [0.75, 0.75], [0.75, 0.75], [1.5, 1.5], [0.75, 1.5],
      [0.75, 0.0]]]
  assert figure.data[0].customdata[4][1] == "1, 2, 0"
  assert list(figure.layout.yaxis.ticktext) == [
      "0, 0", "0, 1", "1, 0", "1, 1", "2, 0", "2, 1"]
  run = run_of({THREE: event_files.THREE_LEVELS})
  assert "1 of 12 experts get less than a tenth" in " ".join(said(run))
  notes = " ".join(said(run, verdicts.NOTE))
  assert "12% of the tokens that arrive find no expert with room at level " \
      "three of layer 1" in notes
  assert [fact[:2] for fact in overview._facts(run, [layer])][2:5] == [
      ("Lost at level one", "12%"), ("Lost at level two", "22%"),
      ("Lost at level three", "12%")]


def test_each_level_is_told_with_its_own_parameter():
  """Of a layer in a gin scope, and of one whose levels have their own."""
  lost = event_files.LAST | {"tokens/lost": 4}
  certain = event_files.OUTER | {"router/confidence": 0.99}
  run = run_of(
      {TWO: {"outer": certain, "inner": event_files.INNER},
       THREE: event_files.THREE_LEVELS | {"level_3": lost}},
      described=(
          described_layers.layer(TWO, "wide/MoE2D", loss_coef=0.03),
          described_layers.layer(THREE, "deep/MoE", levels=[
              Level(experts=number) for number in (2, 3, 2)])))
  text = " ".join(said(run))
  assert "set wide/MoE2D.z_loss (now None) to 0.001." in text
  # Half of what arrives at level three.
  assert "raise deep/MoE.levels[2].capacity_factor_train (now 1.25)." in text
  assert ("raise wide/MoE2D.loss_coef (now 0.03) and deep/MoE.loss_coef (now "
          "0.01).") in text


def test_facts_of_another_number_of_levels_are_not_used():
  """Those of a run that went on in the same directory with another layer."""
  layer = layer_of(TWO, event_files.ONE_LEVEL, described=(
      described_layers.layer(TWO, "wide/MoE2D"),))
  assert len(layer.facts.levels) == 1


def test_a_model_without_mixtures():
  run = dataclasses.replace(made({}, loss=[1, np.nan]), layers=())
  assert said(run) == [
      "The loss is not finite at step 1: lower run.learning_rate_schedule."]
  assert "no layer MoE2D, MoE1D or MoE" in overview.why_nothing_was_recorded(
      run)


def test_records_that_were_turned_off():
  run = dataclasses.replace(made({}), layers=(
      described_layers.layer(TWO, "wide/MoE2D", summaries=False),))
  assert overview.why_nothing_was_recorded(run) == (
      "Nothing was recorded of mixtures: wide/MoE2D.summaries = False. With "
      "True, the next steps will be.")


def test_experts_choose():
  """Nothing tells what tokens would have wanted, and some are taken twice."""
  def chosen(metrics, kept):
    return {metric: value for metric, value in metrics.items() if
            "choices" not in metric} | {"choices_1/kept": kept}

  layer = layer_of(TWO, {
      "outer": chosen(event_files.OUTER, 12.0),
      "inner": chosen(event_files.INNER, 16.0)})
  wholes = ledger.choices(layer.levels[0]), ledger.arrived(layer.levels[1])
  assert [{part.name: int(part.counts[0]) for part in whole.parts}
          for whole in wholes] == [
              {"taken by an expert": 7, "taken by no expert": 1, "padding": 2},
              {"taken by an expert": 7, "taken by no expert": 2}]
  assert [int(whole.counts[0]) for whole in wholes] == [10, 9]


def test_three_choices():
  """A "top_n" router: all choices but the first are told together."""
  third = {"choices_3/kept": 1, "choices_3/dropped": 2, "choices_3/refused": 5}
  layer = layer_of(ONE, {"level_1": event_files.OUTER | third})
  whole = ledger.choices(layer.levels[0])
  assert whole.counts == [30]
  assert {part.name: int(part.counts[0]) for part in whole.parts} == {
      "kept, first choice": 6, "kept, later choices": 4,
      "dropped, first choice": 2, "dropped, later choices": 3,
      "refused by policy": 9, "padding": 6}
  below = layer_of(TWO, {
      "outer": event_files.OUTER, "inner": event_files.INNER | third})
  assert "taken by the later choices only" in {
      part.name for part in ledger.arrived(below.levels[1]).parts}


def test_layers_of_the_same_levels_are_summed():
  two = {"outer": event_files.OUTER, "inner": event_files.INNER}
  layers = mixtures.find(run_of({
      ONE: event_files.ONE_LEVEL, TWO: two, f"{TWO}b": two,
      THREE: event_files.THREE_LEVELS, f"{ONE}b": event_files.ONE_LEVEL}))
  totals = mixtures.totals(layers)
  assert [total.title for total in totals] == [
      "all layers of 1 level together", "all layers of 2 levels together"]
  assert [total.levels[0]["tokens"].tolist() for total in totals] == [[20]] * 2
