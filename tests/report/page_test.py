"""The page as text: what is on it, what is escaped, what may be missing."""

import html
from html import parser
import json
import re

import plotly.graph_objects as go
import pytest

from mtf_moe.plan import costs
from mtf_moe.plan import mixtures as plan_mixtures
from mtf_moe.plan import report as plan_report
from mtf_moe.report import page
from mtf_moe.report import parts
from mtf_moe.report import runs
from mtf_moe.run import layer_facts
from tests import described_layers
from tests.report import event_files

# Of 3 million parameters, experts have 2.4; of 8 a token meets half a one.
PLAN = plan_report.Plan(
    mesh_shape="outer:2,batch:2", layout_rules="batch:batch",
    findings=["<groups> are small"],
    costs=costs.Costs(
        cores=4, tokens=1024, microbatches=1, flops=1024 * 15_000_000,
        parameters={"a": 600_000, "b": 2_400_000}, expert_parameters=2_400_000,
        variable_bytes=2 ** 21, slot_bytes=2 ** 13, activation_bytes=2 ** 26,
        traffic=[costs.Traffic(
            "all-to-all", ("outer", "batch"), 10, 3 * 2 ** 20)]),
    mixtures=[plan_mixtures.Mixture(
        tuple(event_files.LAYERS),
        (plan_mixtures.LevelSizes(
            "outer", "top_2", 2, 2, 256, 160, 1.25, 256, 4),
         plan_mixtures.LevelSizes(
             "inner", "top_2", 2, 2, 160, 112, 1.5, 128, 4)),
        plan_mixtures.Balanced(0.25, 0.01, 0.5, 0.125, (0.002, 0.03)),
        1.75, 4.0)])


class Text(parser.HTMLParser):
  """The text of a page outside of scripts and styles."""

  def __init__(self, source):
    super().__init__()
    self._open, self.parts, self.plots = [], [], []
    self.feed(source)

  def handle_starttag(self, tag, attrs):
    self._open.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    while self._open and self._open.pop()[0] != tag:
      pass

  def handle_data(self, data):
    tag, attributes = self._open[-1] if self._open else ("", {})
    if attributes.get("id") == "plots":
      self.plots = json.loads(data)
    elif tag not in ("script", "style"):
      self.parts.append(data)

  def __str__(self):
    return re.sub(r"\s+", " ", "".join(self.parts))


def text_of(*directories):
  return Text(page.render(runs.read([str(d) for d in directories])))


def test_a_run(tmp_path):
  directory = event_files.run(tmp_path / "run")
  (directory / "plan.json").write_text(json.dumps(PLAN.as_json()))
  text = str(text_of(directory))
  for said in (
      "Last step300 of 300", "Last loss1.000 in training, at step 300",
      # The number e, squared.
      "2.000 nats a token in evaluation held_out, at step 300: perplexity 7.39,"
      " 50.0% predicted right",
      "Lost at level one12% of the tokens, in layer 1 (block_000/layer_001)",
      "Lost at level two22% of what arrives there",
      "Worst balance1.50 times the average, by the busiest expert of level two",
      "means of the last 2 records (steps 200 to 300)",
      "layer 2 (block_001/layer_001)", "all layers together",
      "3.0 million, of which a token meets 0.9 million", "0.015 GFLOP a token",
      "10 in a step, 3.0 MiB a core", "optimizer 8.0 KiB",
      "1.0% of the tokens would reach no expert, 12.5% fewer than they choose, "
      "a token 0.50 on average",
      "first choices without a slot, if balanced0.2%3.0%",
      "Warning: <groups> are small",
      "transformer/block_000/layer_001/MoE2D and 1 more",
      "tokens in one256160", "slots of each160112", "capacity factor1.251.5",
      # 2 * 160 / 256, and 2 * 112 / 160.
      "in effect1.251.4", "MoE2D.expert_x = 2"):
    assert said in text, said


def test_a_plan_of_an_earlier_release(tmp_path):
  directory = event_files.run(tmp_path / "run")
  plan = PLAN.as_json()
  for share in ("fewer_experts", "first_choices_lost"):
    del plan["mixtures"][0]["balanced"][share]
  (directory / "plan.json").write_text(json.dumps(plan))
  text = str(text_of(directory))
  assert "1.0% of the tokens would reach no expert, a token 0.50 on av" in text
  assert "first choices without a slot" not in text


def test_the_plots_of_a_run(tmp_path):
  """Loss; a map for each layer; two stacks for all and each; eight curves."""
  plots = text_of(event_files.run(tmp_path / "run")).plots
  kinds = [(plot["data"][0]["type"], plot["data"][0].get("stackgroup"))
           for plot in plots]
  assert kinds == ([("scatter", None)] + [("heatmap", None)] * 2
                   + [("scatter", "whole")] * 6 + [("scatter", None)] * 8)
  # The entropy of even gates: log 2 and log 3.
  assert [round(plots[i]["data"][-1]["y"][0], 4) for i in (13, 14)] == [
      0.6931, 1.0986]
  for plot in plots[3:9]:
    for total in zip(*(trace["y"] for trace in plot["data"])):
      assert sum(total) == pytest.approx(100, abs=0.01)


def test_layers_of_one_and_of_three_levels(tmp_path):
  """Sections have the levels that are there, and the names of the layers."""
  one, three = "t/block_000/layer_001/MoE1D", "t/block_000/layer_002/MoE"
  directory = tmp_path / "run"
  event_files.write(directory, {
      step: {"loss": 1.0, **event_files.tags(one, event_files.ONE_LEVEL),
             **event_files.tags(three, event_files.THREE_LEVELS)}
      for step in (1, 100)})
  layer_facts.keep(str(directory), [
      described_layers.layer(one, "narrow/MoE1D", 2),
      described_layers.layer(three, "MoE", (2, 3, 2))])
  text = text_of(directory)
  for said in (
      "Lost at level one12% of the tokens", "Lost at level three12% of what",
      "Level three: what arrives there, layer 2", "Level one: the choices",
      "whose favourite expert was full", "whose favourite group was full",
      "the choices that level two kept", "Levels below the first compare",
      "With one level, a column is an expert",
      "raise narrow/MoE1D.loss_coef or MoE.loss_coef. With one",
      "set narrow/MoE1D.z_loss = 0.001 and MoE.z_loss = 0.001."):
    assert said in str(text), said
  assert "MoE2D" not in str(text).partition("Configuration")[0]
  kinds = [(plot["data"][0]["type"], plot["data"][0].get("stackgroup"))
           for plot in text.plots]
  # Loss; a map for each; four levels of tokens; four curves of each of three.
  assert kinds == ([("scatter", None)] + [("heatmap", None)] * 2
                   + [("scatter", "whole")] * 4 + [("scatter", None)] * 12)
  assert [trace["name"] for trace in text.plots[7]["data"]] == [
      "layer 1", "layer 2", "even"]
  assert text.plots[7]["data"][-1]["x"] == [1, 100]


def test_a_single_record_is_a_bar(tmp_path):
  """Where an area would have no width."""
  plots = text_of(event_files.run(tmp_path / "run", steps=(1,))).plots
  for plot in plots[3:9]:
    assert {trace["type"] for trace in plot["data"]} == {"bar"}
    assert sum(trace["y"][0] for trace in plot["data"]) == pytest.approx(
        100, abs=0.01)


def test_several_runs(tmp_path):
  """Together in the plot of losses; of the others, one is shown."""
  source = page.render(runs.read([
      str(event_files.run(tmp_path / name)) for name in ("one", "other")]))
  text = Text(source)
  assert len(text.plots) == 1 + 2 * 16
  assert [trace["name"] for trace in text.plots[0]["data"]] == [
      "one: training", "one: evaluation held_out",
      "other: training", "other: evaluation held_out"]
  assert source.count('<option value="1">other</option>') == 1
  assert source.count('<div data-choices="run">') == 6


def test_nothing_is_fetched(tmp_path):
  """No address is in the page itself; plotly.js has some in it."""
  source = page.render(runs.read([str(event_files.run(tmp_path / "run"))]))
  own = re.sub(r"<script>.*?</script>", "", source, flags=re.DOTALL)
  assert not re.search(r"https?://|src=|@import", own)
  assert "default-src 'none'" in own


def test_odd_text_is_shown_as_it_is(tmp_path):
  odd = '</script><script>alert("&amp;")</script>${title} $x'
  directory = event_files.run(
      tmp_path / "<img src=x>", config=f"# {odd}\nMoE2D.loss_coef = '<i>'\n")
  event_files.write(directory, {
      400: event_files.mixture("</script><b>x")}, ".b")
  source = page.render(runs.read([str(directory)]))
  assert "<img" not in source and "<b>" not in source and "<i>'" not in source
  assert odd not in source and html.escape(odd) in source
  text = Text(source)
  assert odd in str(text)
  assert "layer 3 (</script><b>x)" in str(text) or (
      "layer 1 (</script><b>x)" in str(text))
  assert len(text.plots) > 10


def test_data_cannot_end_its_script():
  """Whatever a figure holds."""
  plots = parts.Plots()
  name = "</script><!--<script>"
  plots.add(go.Figure(go.Scatter(x=[1], y=[2], name=name)), "title")
  text = plots.as_json()
  assert "<" not in text
  assert json.loads(text)[0]["data"][0]["name"] == name


@pytest.mark.parametrize("config, reason", [
    ("run.mode = 'train'\n", "the configuration has no layer MoE2D"),
    ("MoE2D.summaries = False\n", "MoE2D.summaries = False. With True"),
    ("MoE2D.summaries = True\n"
     "serialize_num_microbatches.tokens_per_microbatch_per_replica = 512\n",
     "(now 512)"),
    (None, "on a TPU only with tpu_estimator_model_fn.tpu_summaries = True")])
def test_a_run_without_records_of_mixtures(tmp_path, config, reason):
  event_files.write(tmp_path, {1: {"loss": 2.0}, 100: {"loss": 1.0}})
  if config:
    (tmp_path / "operative_config.gin").write_text(config)
  text = text_of(tmp_path)
  # In the overview and in the four sections whose pictures are missing.
  assert str(text).count(reason) == 5
  assert "Nothing was recorded of mixtures" in str(text)
  assert len(text.plots) == 1
  assert "There is no plan. This page shows one" in str(text)
  assert ("operative_config.gin does not exist" in str(text)) == (not config)


def test_metrics_that_are_missing(tmp_path):
  """Only counts: as with an older release, or more than 64 experts."""
  event_files.write(tmp_path, {
      step: {tag: value for tag, value in event_files.mixture("a").items()
             if not re.search("/(load|router|loss)/", tag)}
      for step in (1, 100)})
  text = text_of(tmp_path)
  assert "for mixtures of at most 64 experts" in str(text)
  assert "load/max_over_mean was not recorded" in str(text)
  assert "router/entropy was not recorded" in str(text)
  assert "No training loss was recorded" in str(text)
