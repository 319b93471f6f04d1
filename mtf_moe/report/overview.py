"""The overview: the numbers of each run that matter most, and what they say."""

from collections.abc import Sequence
import html
import math
import re

from mtf_moe import tags
from mtf_moe.report import figures
from mtf_moe.report import mixtures
from mtf_moe.report import runs as runs_lib
from mtf_moe.report import verdicts
from mtf_moe.run import layer_facts


def cards(runs: Sequence[runs_lib.Run],
          layers: Sequence[Sequence[mixtures.Layer]]) -> str:
  """One card for each run.

  Args:
    runs: the `Run`s.
    layers: the mixtures of each.

  Returns:
    HTML
  """
  shown = "".join(_card(run, its_layers)
                  for run, its_layers in zip(runs, layers))
  return f'<div class="cards">{shown}</div>'


def _card(run, layers):
  facts = "".join(
      f"<dt>{html.escape(name)}</dt><dd><strong>{html.escape(value)}</strong>"
      f"{html.escape(' ' + where if where else '')}</dd>"
      for name, value, where in _facts(run, layers))
  judged = verdicts.judge(run, layers)
  says = "".join(
      f'<li class="{verdict.kind}">{html.escape(verdict.text)}</li>'
      for verdict in judged)
  warnings = sum(verdict.kind == verdicts.WARNING for verdict in judged)
  summary = (
      f'<p class="summary warning">{warnings} '
      f'warning{"s" if warnings > 1 else ""}, below</p>' if warnings else
      '<p class="summary good">no warnings</p>')
  if layers:
    level = layers[0].levels[0]
    steps = level.steps[level.recent]
    means = (f"Shares and balance are means of the last {len(steps)} records "
             f"(steps {steps[0]:,} to {steps[-1]:,}).")
  else:
    means = ""
    says += (f'<li class="note">'
             f"{html.escape(why_nothing_was_recorded(run))}</li>")
  return (f"<article><h3>{html.escape(run.name)}</h3>"
          f'<p class="quiet">{html.escape(run.directory)}</p>{summary}'
          f'<dl>{facts}</dl><p class="quiet">{means}</p>'
          f'<ul class="verdicts">{says}</ul></article>')


def _facts(run, layers):
  """Triples: what, its value, and where or when."""
  planned = run.parameter("run.train_steps")
  facts = [("Last step", f"{run.last_step:,}",
            f"of {int(planned):,}" if planned and planned.isdecimal() else "")]
  if "loss" in run.scalars:
    loss = run.scalars["loss"]
    facts.append(("Last loss", f"{loss.last:.3f}",
                  f"in training, at step {loss.steps[-1]:,}"))
  facts += [_evaluation(name, found) for name, found in run.evaluations.items()
            if "neg_log_perplexity" in found]
  if "global_step/sec" in run.scalars:
    speed = run.scalars["global_step/sec"].last
    facts.append(("Speed", f"{speed:.3g}", "steps a second"))
  if not layers:
    return facts
  for number in range(verdicts.depth(layers)):
    place = verdicts.most_lost(layers, number)
    facts.append((
        f"Lost at {tags.title_of(f'level_{number + 1}')}",
        verdicts.percent(place.value),
        f"of {'what arrives there' if number else 'the tokens'}, in "
        f"{place.layer.title}, the worst"))
  reached = [(found.none, found.experts_each, layer) for layer in layers
             if (found := layer.reached_now())]
  if reached:
    none, each, layer = max(reached, key=lambda found: found[0])
    facts.append((
        "Without any expert", verdicts.percent(none),
        f"of the tokens, in {layer.title}, the worst; {each:.2f} experts a "
        "token there"))
  place = verdicts.least_balanced(layers)
  if not math.isnan(place.value):
    facts.append(("Worst balance", f"{place.value:.2f}",
                  f"times the average, by the busiest expert of {place.text}"))
  return facts


def _evaluation(name, found):
  series = found["neg_log_perplexity"]
  nats = -series.last  # A token.
  said = [f"nats a token in {figures.evaluation_title(name)}, at step "
          f"{series.steps[-1]:,}: perplexity {_exp(nats)}"]
  if "token_accuracy" in found:
    said.append(f"{found['token_accuracy'].last:.1%} predicted right")
  return "Last evaluation", f"{nats:.3f}", ", ".join(said)


def _exp(nats):
  return f"{math.exp(nats):,.2f}" if nats < 100 else "beyond measure"


def why_nothing_was_recorded(run: runs_lib.Run) -> str:
  """Why a run has no records of mixtures, as far as its configuration tells.

  Args:
    run: the `Run`.

  Returns:
    sentences
  """
  start = "Nothing was recorded of mixtures"
  microbatches = run.parameter(
      "serialize_num_microbatches.tokens_per_microbatch_per_replica")
  described = mixtures.described(run, [])
  if not described or (
      run.layers is None and run.config is not None
      and not re.search(r"\bMoE(1D|2D)?\.", run.config)):
    return (f"{start}: the configuration has no layer MoE2D, MoE1D or MoE.")
  summaries = layer_facts.parameters(described, "summaries")
  if all(parameter.value == "False" for parameter in summaries):
    off = layer_facts.settings(described, "summaries", False)
    return f"{start}: {off}. With True, the next steps will be."
  if microbatches not in (None, "None"):
    return (
        f"{start}: steps are cut into microbatches, of which mesh_tensorflow "
        "records nothing. For pictures, train some steps without: "
        "serialize_num_microbatches.tokens_per_microbatch_per_replica = None "
        f"(now {microbatches}).")
  return (
      f"{start}. It is not with microbatches "
      "(serialize_num_microbatches.tokens_per_microbatch_per_replica) nor with "
      f"{layer_facts.settings(described, 'summaries', False)}, and on a TPU "
      "only with "
      "tpu_estimator_model_fn.tpu_summaries = True.")
