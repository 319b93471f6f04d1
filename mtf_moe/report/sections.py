"""The sections of the page: which figures, and what they say to a reader."""

from collections.abc import Sequence

from mtf_moe.report import figures
from mtf_moe.report import ledger
from mtf_moe.report import mixtures
from mtf_moe.report import overview
from mtf_moe.report import parts
from mtf_moe.report import plans
from mtf_moe.report import runs as runs_lib
from mtf_moe.report import texts
from mtf_moe.report import verdicts

# Several runs: which one the sections below show.
_RUN = "run"


def all_sections(
    runs: Sequence[runs_lib.Run], plots: parts.Plots) -> str:
  """The content of the page.

  Args:
    runs: the `Run`s.
    plots: where figures are added.

  Returns:
    HTML
  """
  found = [mixtures.find(run) for run in runs]
  every_layer = [layer for layers in found for layer in layers]
  names = texts.Names(facts for run, layers in zip(runs, found)
                      for facts in mixtures.described(run, layers))

  def for_each(title, anchor, introduction, section):
    contents = [section(run, layers, plots, number) for number, (run, layers)
                in enumerate(zip(runs, found))]
    return _section(title, anchor, parts.paragraph(introduction)
                    + parts.items(_RUN, contents))

  chooser = parts.selector(
      _RUN, "Below, pictures of the run", [run.name for run in runs])
  return "".join([
      _section("Overview", "overview", overview.cards(runs, found)),
      _section("Loss", "loss", parts.paragraph(texts.loss(names))
               + plots.add(figures.losses(runs), "Loss of "
                           + ("all runs" if len(runs) > 1 else "the run"))),
      f'<div class="bar">{chooser}</div>' if len(runs) > 1 else "",
      for_each("Are all experts used?", "loads",
               texts.loads(names, every_layer), _loads),
      for_each("Where do tokens go?", "tokens", texts.tokens(every_layer),
               _tokens),
      for_each("Is the load balanced?", "balance",
               "One line for each mixture, from the first layer (dark) to the "
               "last (orange). In long runs, a point is the mean of several "
               "records.", _balance),
      for_each("Do routers decide?", "routers",
               "One line for each mixture, as above.", _routers),
      for_each("What was planned", "plan", "What the configuration costs, "
               "counted before it ran.", _plan),
      for_each("Configuration", "configuration",
               "The values that were in force, with all defaults.", _config),
  ])


def _section(title, anchor, content):
  return f'<section id="{anchor}"><h2>{title}</h2>{content}</section>'


def _loads(run, layers, plots, number):
  """A heat map for each layer, and a slider for all of them."""
  if not layers:
    return _missing(run)
  maps = [(layer, loads) for layer in layers
          if (loads := figures.loads(layer.levels[-1]))]
  if not maps:
    return parts.paragraph(
        "The loads of single experts were not recorded: they are for mixtures "
        "of at most 64 experts, those of all levels multiplied. The balance "
        "below is known for any number.", "quiet")
  steps = maps[0][1][1]
  slider = (
      f'<p class="slider"><label for="step-{number}">Training step</label>'
      f'<input type="range" id="step-{number}" min="0" max="{len(steps) - 1}" '
      f'value="{len(steps) - 1}"><output>{steps[-1]:,}</output></p>')
  scale = ('<p class="scale"><span>0, unused</span> <i></i> '
           '<span>2, overloaded</span></p>')
  grid = "".join(plots.add(figure, layer.title, (steps, frames))
                 for layer, (figure, steps, frames) in maps)
  return (f'<div data-slides>{slider}{scale}<div class="row small">{grid}'
          '</div></div>')


def _tokens(run, layers, plots, number):
  """All levels of all layers together, or of one of them."""
  if not layers:
    return _missing(run)
  names = texts.Names(mixtures.described(run, layers))
  shown = [*mixtures.totals(layers), *layers]
  contents = [
      parts.row(*(_tokens_at(layer, level_number, plots, names)
                  for level_number in range(len(layer.levels))))
      if len(layer.levels[0].steps) else parts.paragraph(
          "The layers were never recorded in the same step.", "quiet")
      for layer in shown]
  return parts.choice(f"tokens-{number}", "Mixture",
                      [layer.title for layer in shown], contents)


def _tokens_at(layer, number, plots, names):
  """What becomes of tokens at a level, 0 for the first."""
  level = layer.levels[number]
  if layer.facts is not None:  # Else it stands for all.
    names = texts.Names([layer.facts])
  title = level.title.capitalize()
  if number:
    whole, unit = ledger.arrived(level), "arrivals"
    title = f"{title}: what arrives there, {layer.title}"
    text = texts.level_below(names, number, ledger.has_choices(level))
  else:
    choices = (ledger.number_of_choices(level) if ledger.has_choices(level)
               else 0)
    whole = ledger.choices(level)
    unit = "all choices" if choices > 1 else "all tokens"
    what = "the choices of all tokens" if choices else "all tokens"
    title = f"{title}: {what}, {layer.title}"
    text = texts.first_level(names, choices, len(layer.levels))
  figure = plots.add(figures.stack(whole, unit), title)
  return f"<div>{figure}{parts.paragraph(text)}</div>"


def _balance(run, layers, plots, number):
  del number
  if not layers:
    return _missing(run)
  names = texts.Names(mixtures.described(run, layers))
  busiest, uneven = texts.balance(names, layers)
  return (
      _all_levels(
          layers, plots, "load/max_over_mean", "Busiest expert over average",
          "times the average", busiest, lambda level_name: (1.0, "even"))
      + _all_levels(
          layers, plots, "load/coefficient_of_variation",
          "Unevenness of all experts", "deviation over mean", uneven,
          lambda level_name: None))


def _routers(run, layers, plots, number):
  del number
  if not layers:
    return _missing(run)
  names = texts.Names(mixtures.described(run, layers))
  entropy, confidence = texts.routers(names)

  def even_gates(value_of):
    def reference(level_name):
      experts = verdicts.experts_in(layers, level_name)
      return (value_of(experts), "even gates") if experts else None
    return reference

  return (
      _all_levels(layers, plots, "router/entropy", "Entropy of the router",
                  "nats", entropy, even_gates(verdicts.highest_entropy))
      + _all_levels(
          layers, plots, "router/confidence", "Confidence of the router",
          "probability", confidence, even_gates(lambda experts: 1 / experts)))


def _all_levels(layers, plots, metric, title, unit, text, reference):
  """A metric of all levels, beside each other, with one explanation."""
  levels = {level.name: level for layer in layers for level in layer.levels}
  shown = [
      plots.add(figure, f"{title}, {level.title}")
      for name, level in levels.items()
      if (figure := figures.lines(layers, name, metric, unit, reference(name)))]
  if not shown:
    return parts.paragraph(f"{title}: {metric} was not recorded.", "quiet")
  return parts.row(*shown) + parts.paragraph(text)


def _plan(run, layers, plots, number):
  del layers, plots, number
  if run.plan is None:
    return parts.paragraph(
        "There is no plan. This page shows one that is written by `python -m "
        "mtf_moe.plan --json`, with the gin files and parameters of the run, "
        f"to `{run.directory}/plan.json`.", "quiet")
  return plans.tables(run.plan)


def _config(run, layers, plots, number):
  del layers, plots, number
  if run.config is None:
    return parts.paragraph(
        f"{run.directory}/operative_config.gin does not exist.", "quiet")
  return parts.details("operative_config.gin", run.config)


def _missing(run):
  return parts.paragraph(overview.why_nothing_was_recorded(run), "quiet")
