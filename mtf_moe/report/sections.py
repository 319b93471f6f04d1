"""The sections of the page: which figures, and what they say to a reader."""

from collections.abc import Sequence

from mtf_moe.report import figures
from mtf_moe.report import ledger
from mtf_moe.report import mixtures
from mtf_moe.report import overview
from mtf_moe.report import parts
from mtf_moe.report import plans
from mtf_moe.report import runs as runs_lib
from mtf_moe.report import verdicts

# Several runs: which one the sections below show.
_RUN = "run"

_LOSS = (
    "Lines are the loss in training, with the balancing losses of the mixtures "
    "in it; marks are evaluations, without. Good is a fast fall that becomes "
    "ever slower. If marks rise while the line falls, the model learns its "
    "text by heart: train for fewer `run.train_steps`, on more text, or with "
    "`MoE2D.dropout_rate`. If the line jumps or rises, lower "
    "`run.learning_rate_schedule`.")
_LOADS = (
    "How many tokens wanted each expert, before any was dropped, relative to "
    "an even share: 1 is even, 2 is twice as many. Good is pale everywhere, "
    "with numbers near 1. Bad is a few brown experts among blue ones near 0, "
    "which take memory and learn nothing: raise `MoE2D.loss_coef`. A column is "
    "a group of experts of level one.")
_TOKENS = (
    "Tokens choose groups of experts at level one, and what arrives there "
    "chooses experts at level two. What finds all slots taken is dropped: for "
    "that token, this expert adds nothing.")
_LEVEL_ONE = (
    "Every token has two choices; the whole is all choices of all tokens. "
    "Dropped first choices (red) are tokens whose favourite group was full, "
    "and should be few. If they are not, raise `MoE2D.capacity_factor_train`, "
    "or `MoE2D.loss_coef` where loads are uneven. Dropped second choices "
    "matter less. Refused ones were weak, and left out by "
    "`MoE2D.second_policy_train`.")
_ONE_CHOICE = (
    "Every token has one choice; the whole is all tokens. Dropped ones (red) "
    "are tokens whose group was full, and should be few. If they are not, "
    "raise `MoE2D.capacity_factor_train`, or `MoE2D.loss_coef` where loads are "
    "uneven.")
_LEVEL_TWO = (
    "The whole is what arrives: the choices that level one kept, so that a "
    "token which reaches two groups counts twice. The dropped part (red) was "
    "taken by no expert. Some is usual where slots are no more than arrivals; "
    "if it grows, or exceeds a third, raise "
    "`MoE2D.capacity_factor_second_level`, or `MoE2D.loss_coef` where loads "
    "are uneven.")
_BALANCE = (
    ("load/max_over_mean", "Busiest expert over average", "times the average",
     (1.0, "even"),
     "How often the busiest expert is wanted, relative to the average one. "
     "Near 1 is good. Above 2, many of its tokens find no slot while other "
     "experts idle: raise `MoE2D.loss_coef`."),
    ("load/coefficient_of_variation", "Unevenness of all experts",
     "deviation over mean", None,
     "The standard deviation of the loads over their mean: 0 is perfectly "
     "even. It should fall and stay low, below about 0.5; if it climbs, raise "
     "`MoE2D.loss_coef`. Level two compares the experts of all groups."),
)
_ROUTERS = (
    ("router/entropy", "Entropy of the router", "nats",
     "How undecided a router is about a token, on average. It starts near the "
     "grey line, where all experts are equal, and should fall slowly. If it "
     "stays there, the router cannot tell tokens apart: lower "
     "`MoE2D.loss_coef`. If it is near 0 early, choices no longer change: set "
     "`MoE2D.z_loss = 0.001`."),
    ("router/confidence", "Confidence of the router", "probability",
     "The probability of the expert that a token likes best, on average: the "
     "other side of the entropy. It should rise slowly, and end between the "
     "grey line and 1. Close to 1 early on, set `MoE2D.z_loss = 0.001`."),
)


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

  def for_each(title, anchor, introduction, section):
    contents = [section(run, layers, plots, number) for number, (run, layers)
                in enumerate(zip(runs, found))]
    return _section(title, anchor, parts.paragraph(introduction)
                    + parts.items(_RUN, contents))

  chooser = parts.selector(
      _RUN, "Below, pictures of the run", [run.name for run in runs])
  return "".join([
      _section("Overview", "overview", overview.cards(runs, found)),
      _section("Loss", "loss", parts.paragraph(_LOSS)
               + plots.add(figures.losses(runs), "Loss of "
                           + ("all runs" if len(runs) > 1 else "the run"))),
      f'<div class="bar">{chooser}</div>' if len(runs) > 1 else "",
      for_each("Are all experts used?", "loads", _LOADS, _loads),
      for_each("Where do tokens go?", "tokens", _TOKENS, _tokens),
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
          if (loads := figures.loads(layer.levels[mixtures.INNER]))]
  if not maps:
    return parts.paragraph(
        "The loads of single experts were not recorded: they are for mixtures "
        "of at most 64 experts, MoE2D.expert_x * MoE2D.expert_y. The balance "
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
  """Both levels of all layers together, or of one of them."""
  if not layers:
    return _missing(run)
  shown = [mixtures.total(layers), *layers] if len(layers) > 1 else layers
  contents = []
  for layer in shown:
    outer, inner = layer.levels[mixtures.OUTER], layer.levels[mixtures.INNER]
    if not len(outer.steps):
      contents.append(parts.paragraph(
          "The layers were never recorded in the same step.", "quiet"))
      continue
    two = "choices_2/kept" in outer
    contents.append(parts.row(
        _explained(plots.add(
            figures.stack(ledger.choices(outer),
                          "all choices" if two else "all tokens"),
            f"Level one (outer): the choices of all tokens, {layer.title}"),
                   _LEVEL_ONE if two else _ONE_CHOICE),
        _explained(plots.add(
            figures.stack(ledger.arrived(inner), "arrivals"),
            f"Level two (inner): what arrives there, {layer.title}"),
                   _LEVEL_TWO)))
  return parts.choice(f"tokens-{number}", "Mixture",
                      [layer.title for layer in shown], contents)


def _balance(run, layers, plots, number):
  del number
  if not layers:
    return _missing(run)
  return "".join(
      _both_levels(layers, plots, metric, title, unit, text,
                   lambda level_name, given=reference: given)
      for metric, title, unit, reference, text in _BALANCE)


def _routers(run, layers, plots, number):
  del number
  if not layers:
    return _missing(run)

  def undecided(metric):
    def reference(level_name):
      experts = verdicts.experts_in(run, level_name)
      if not experts:
        return None
      value = (verdicts.highest_entropy(experts)
               if metric == "router/entropy" else 1 / experts)
      return value, "even gates"
    return reference

  return "".join(
      _both_levels(layers, plots, metric, title, unit, text, undecided(metric))
      for metric, title, unit, text in _ROUTERS)


def _both_levels(layers, plots, metric, title, unit, text, reference):
  """A metric of both levels, beside each other, with one explanation."""
  shown = [
      plots.add(figure, f"{title}, {mixtures.LEVEL_TITLES[name]}")
      for name in (mixtures.OUTER, mixtures.INNER)
      if (figure := figures.lines(layers, name, metric, unit, reference(name)))]
  if not shown:
    return parts.paragraph(f"{title}: {metric} was not recorded.", "quiet")
  return parts.row(*shown) + parts.paragraph(text)


def _explained(figure, text):
  return f"<div>{figure}{parts.paragraph(text)}</div>"


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
