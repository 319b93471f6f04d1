"""Loads, shares and verdicts, held to numbers that were worked out by hand."""

import dataclasses

import numpy as np
import pytest

from mtf_moe.report import figures
from mtf_moe.report import ledger
from mtf_moe.report import mixtures
from mtf_moe.report import runs
from mtf_moe.report import verdicts
from tests import described_layers
from tests.report import event_files

LAYERS = event_files.LAYERS


def made(steps, config=event_files.CONFIG, loss=None):
  """A run whose tags are given for each step."""
  tags = sorted({tag for values in steps.values() for tag in values})
  scalars = {
      tag: runs.Series(
          np.array([s for s in steps if tag in steps[s]]),
          np.array([float(v[tag]) for v in steps.values() if tag in v]))
      for tag in tags}
  loss = [3.0, 2.0] if loss is None else loss
  scalars["loss"] = runs.Series(
      np.arange(len(loss)), np.array(loss, dtype=float))
  return runs.Run("run", "dir", scalars, {}, config)


def layers_of(outer=None, inner=None):
  return mixtures.find(made({1: event_files.mixture(LAYERS[0], outer, inner)}))


def said(outer=None, inner=None, kind=verdicts.WARNING, **kwargs):
  """The verdicts of a kind on a run with one mixture."""
  run = made({1: event_files.mixture(LAYERS[0], outer, inner)}, **kwargs)
  return [verdict.text for verdict in verdicts.judge(run, mixtures.find(run))
          if verdict.kind == kind]


def test_layers_have_short_names():
  paths = ["encoder/block_000/layer_001/MoE2D",
           "decoder/block_000/layer_002/MoE2D",
           "decoder/block_001/layer_002/MoE2D", "mine"]
  tags = {}
  for path in paths:
    tags |= event_files.mixture(path)
  found = {layer.path: layer.title for layer in mixtures.find(made({1: tags}))}
  assert found == dict(zip(paths, [
      "encoder layer 1 (block_000/layer_001)",
      "decoder layer 1 (block_000/layer_002)",
      "decoder layer 2 (block_001/layer_002)", "layer 1 (mine)"]))


def test_tags_that_are_not_known_change_nothing():
  tags = event_files.mixture(LAYERS[0])
  further = {f"moe/{LAYERS[0]}/outer/{metric}": 1.0 for metric in (
      "router/logits_rms", "experts/outputs_rms",
      "load/min_over_mean", "load/expert_of_the_day", "new")}
  # Recorded once, where the others were twice; and a layer of which too little
  # is known.
  run = made({1: tags | further, 2: tags | {"moe/x/outer/tokens": 1.0}})
  layer, = mixtures.find(run)
  assert layer.level("outer").steps.tolist() == [1, 2]
  assert verdicts.judge(run, [layer])
  assert figures.loads(layer.level("inner"))


def test_the_parts_of_level_one():
  whole = ledger.choices(layers_of()[0].level("outer"))
  assert whole.counts == [20]  # Two choices of ten tokens.
  assert {part.name: part.counts.tolist() for part in whole.parts} == {
      "kept, first choice": [6], "kept, second choice": [3],
      "dropped, first choice": [2], "dropped, second choice": [1],
      "refused by policy": [4], "padding": [4]}
  assert [share.tolist() for share in whole.shares()] == [
      [0.3], [0.15], [0.1], [0.05], [0.2], [0.2]]


def test_the_parts_of_level_two():
  whole = ledger.arrived(layers_of()[0].level("inner"))
  assert whole.counts == [9]
  assert {part.name: part.counts.tolist() for part in whole.parts} == {
      "taken by the first choice": [5],
      "taken by the second choice only": [2],
      "dropped: no expert had room": [2]}


def test_the_parts_with_one_choice():
  """A "switch" router, which has no second choices."""
  tags = {tag: value for tag, value in event_files.mixture(
      LAYERS[0], {"tokens/lost": 2}).items() if "choices_2" not in tag}
  layer, = mixtures.find(made({1: tags}))
  whole = ledger.choices(layer.level("outer"))
  assert whole.counts == [10]
  assert [int(part.counts[0]) for part in whole.parts] == [6, 0, 2, 0, 0, 2]


def test_all_layers_together():
  """Counts are summed in the steps that both have; loads are not."""
  one, other = (event_files.mixture(layer) for layer in LAYERS)
  layers = mixtures.find(made({1: one | other, 2: one, 3: one | other}))
  total, = mixtures.totals(layers)
  assert total.title == "all layers together"
  both = total.level("outer")
  assert both.steps.tolist() == [1, 3]
  assert both["tokens"].tolist() == [20, 20]
  assert both["tokens/lost"].tolist() == [2, 2]
  assert "load/max_over_mean" not in both
  assert ledger.choices(both).counts.tolist() == [40, 40]


def test_loads_are_relative_to_an_even_share():
  outer, inner = layers_of()[0].levels
  np.testing.assert_array_equal(outer.relative_loads(), [[1.25, 0.75]])
  # Six experts: a quarter is 1.5 times a sixth. [n, x, y]
  np.testing.assert_array_equal(
      inner.relative_loads(), [[[1.5, 0.75, 1.5], [0.75, 1.5, 0.0]]])
  figure, steps, frames = figures.loads(inner)
  assert steps == [1]
  assert frames == [[[1.5, 0.75], [0.75, 1.5], [1.5, 0.0]]]  # Rows are y.
  assert list(figure.data[0].z) == frames[0]


def test_many_records():
  """Of 998, 60 are in the slider, and means of ten in lines."""
  layer, = mixtures.find(made({
      step: event_files.mixture(LAYERS[0], inner={"tokens/lost": step % 10})
      for step in range(1, 999)}))
  _, steps, frames = figures.loads(layer.level("inner"))
  assert len(steps) == len(frames) == 60
  assert steps[0] == 1 and steps[-1] == 998
  drawn = figures.lines([layer], "inner", "tokens/lost", "").data[0]
  assert list(drawn.x) == [*range(10, 991, 10), 998]
  # The last eight are 1 to 8, all others 0 to 9.
  assert list(drawn.y) == [4.5] * 100


def test_now_is_the_mean_of_the_last_records():
  """Of five: of eight tokens that are no padding, 1, 1, 2, 3, 4, 5 are lost."""
  layer, = mixtures.find(made({
      step: event_files.mixture(LAYERS[0], {"tokens/lost": lost})
      for step, lost in enumerate([8] * 6 + [1, 1, 2, 3, 4, 5])}))
  level = layer.level("outer")
  assert level.lost_now() == (1 + 2 + 3 + 4 + 5) / (5 * 8)
  assert level.now("tokens/lost") == 3
  # Of three records, the first of which is of a model that knows nothing.
  short, = mixtures.find(made({
      step: event_files.mixture(LAYERS[0], {"tokens/lost": lost})
      for step, lost in enumerate([8, 8, 1])}))
  assert short.level("outer").lost_now() == 1 / 8


def test_verdicts_on_lost_tokens():
  where = "of layer 1 (block_000/layer_001)"
  # 1 of 8 is more than 5%, and 2 of 9 less than 30%.
  assert said() == [
      "12% of tokens find no expert at level one (outer) "
      f"{where}: raise MoE2D.capacity_factor_train (now 1.25).",
      "1 of 6 experts get less than a tenth of an even share (1 of layer 1 "
      "(block_000/layer_001)): raise MoE2D.loss_coef (now 0.01)."]
  assert said(kind=verdicts.NOTE) == [
      f"22% of the tokens that arrive find no expert with room at level two "
      f"(inner) {where}: usual where slots are no more than arrivals. Fewer "
      "would be with more MoE2D.capacity_factor_second_level (now 1.0), at a "
      "higher cost."]
  uneven = said({"load/max_over_mean": 1.8})[0]
  assert "wanted 1.8 times as often" in uneven
  assert uneven.endswith("raise MoE2D.loss_coef (now 0.01).")
  many = said(inner={"tokens/lost": 4})
  assert many[1] == (
      "44% of the tokens that arrive find no expert with room at level two "
      f"(inner) {where}: raise MoE2D.capacity_factor_second_level (now 1.0).")
  # Without a configuration, values are not known.
  assert said(config=None)[0].endswith("raise MoE2D.capacity_factor_train.")
  assert not any("find no expert at" in text
                 for text in said({"tokens/lost": 0}))
  assert "At most 0% of tokens find" in " ".join(
      said({"tokens/lost": 0}, kind=verdicts.GOOD))


def test_verdicts_on_balance():
  assert any(text.startswith(
      "Loads are balanced: even the busiest expert of level two (inner)")
             for text in said(kind=verdicts.GOOD))
  assert (
      "Loads are uneven: the busiest expert of level one (outer) of layer 1 "
      "(block_000/layer_001) is wanted 2.1 times as often as the average one. "
      "Raise MoE2D.loss_coef (now 0.01).") in said(
          {"load/max_over_mean": 2.1})


@pytest.mark.parametrize("router, remedy", [
    ("switch", "Raise MoE2D.loss_coef (now 0.01)."),
    ("sigmoid_top_k", "Raise MoE2D.sigmoid_bias_rate."),
    ("hash", "Use a router that balances its experts."),
    ("of another program", "Raise MoE2D.loss_coef (now 0.01).")])
def test_what_balances_is_the_routers(router, remedy):
  layer, = layers_of()
  facts = described_layers.layer(layer.path, "MoE2D")
  facts = dataclasses.replace(facts, levels=tuple(
      dataclasses.replace(level, router=router) for level in facts.levels))
  place = verdicts.Place(
      dataclasses.replace(layer, facts=facts), layer.levels[0], 2.0)
  to_balance = place.to_balance
  assert f"{to_balance[0].upper()}{to_balance[1:]}." == remedy


def test_verdicts_on_routers():
  assert any("is certain of nearly every token (confidence 0.990)" in text
             and "set MoE2D.z_loss to 0.001" in text
             for text in said({"router/confidence": 0.99}))
  # The logarithm of three experts is 1.0986.
  assert any("level two (inner)" in text and "entropy 1.09 of at most 1.10"
             in text for text in said(
                 inner={"router/entropy": 1.0923}, kind=verdicts.NOTE))
  assert not any("hardly prefers" in text for text in said(
      inner={"router/entropy": 1.08}, kind=verdicts.NOTE))


def test_a_verdict_on_empty_slots():
  assert any(text.startswith("75% of the experts' slots in layer 1")
             for text in said(inner={"slots/empty": 12}, kind=verdicts.NOTE))
  assert not any("slots in layer" in text for text in said(kind=verdicts.NOTE))


@pytest.mark.parametrize("loss, kind, text", [
    ([4, 3, 2], verdicts.GOOD, "The loss fell from 4.000 to 2.000."),
    ([4, np.nan, 2], verdicts.WARNING, "The loss is not finite at step 1: "),
    # Means of up to five: 3, 2, ..., the last of 1, 1, 1, 9, 9.
    ([3, 1] + [1] * 6 + [9, 9], verdicts.WARNING,
     "The loss has risen from 1.000 at step 5 to 4.200: "),
    ([2, 2.1], verdicts.NOTE, "The loss has not fallen yet: 2.000, now 2.100."),
    ([2], verdicts.NOTE, "The loss is known of one step only."),
])
def test_verdicts_on_the_loss(loss, kind, text):
  assert any(verdict.startswith(text) for verdict in said(loss=loss, kind=kind))


def test_losses_of_all_runs():
  """Training as lines and evaluations, in nats, as marks of the same colour."""
  evaluations = {"eval_eval_x": {"neg_log_perplexity": runs.Series(
      np.array([7]), np.array([-1.5]))}}
  first = made({}, loss=[3, np.inf, 1])
  second = runs.Run("<b>", "dir", made({}).scalars, evaluations)
  train, other, evaluation = figures.losses([first, second]).data
  assert (list(train.y), train.name) == ([3.0, None, 1.0], "run: training")
  assert other.name == "&lt;b&gt;: training"
  assert (list(evaluation.x), list(evaluation.y)) == ([7], [1.5])
  assert evaluation.name == "&lt;b&gt;: evaluation x"
  long = runs.Run("x" * 30, "dir", made({}).scalars, evaluations)
  assert [trace.name for trace in figures.losses([long, first]).data][1] == (
      "x" * 20 + "…" + "xxxxxx: evaluation x")
  assert evaluation.marker.color == other.line.color != train.line.color
