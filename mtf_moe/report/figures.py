"""The plots of the page, as plotly figures.

What they look like is here; what is in them is worked out elsewhere. Titles and
explanations are HTML around them, which wraps on a narrow screen.
"""

from collections.abc import Sequence
import html

import numpy as np
import plotly.graph_objects as go

from mtf_moe.report import ledger
from mtf_moe.report import mixtures
from mtf_moe.report import runs

# Colours that people with any colour vision tell apart: Okabe and Ito, 2008,
# https://jfly.uni-koeln.de/color/.
_RUN_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9",
                "#E69F00", "#000000"]
_PART_COLOURS = {
    "first": "#0072B2", "second": "#56B4E9", "dropped_first": "#D55E00",
    "dropped_second": "#E69F00", "refused": "#C9C9C9", "padding": "#EDEDED"}
_DASHES = ["solid", "dash", "dot", "dashdot"]
_SYMBOLS = ["diamond", "square", "triangle-up", "star"]
# From few to many tokens, by way of white for an even share.
_LOADS = [[0.0, "#2166AC"], [0.25, "#8FBFDC"], [0.5, "#FFFFFF"],
          [0.75, "#F2B179"], [1.0, "#B35806"]]
_GRID = "#E4E4E0"
_INK = "#2B2B2B"
_MOST_POINTS = 100  # In a line; in those of losses, all.
_MOST_STEPS_OF_LOADS = 60  # In the slider.
_MOST_LETTERS = 40  # In a legend: as many as a phone is wide.
_FONT = dict(family="system-ui, sans-serif", size=13, color=_INK)


def losses(all_runs: Sequence[runs.Run]) -> go.Figure:
  """Training losses as lines, evaluations as markers, in nats per token."""
  figure = _figure("training step", "loss (nats per token)")
  figure.update_yaxes(rangemode="normal")  # What matters is far from zero.
  for number, run in enumerate(all_runs):
    of_run = f"{run.name}: " if len(all_runs) > 1 else ""
    colour = _RUN_COLOURS[number % len(_RUN_COLOURS)]
    dash = _DASHES[number // len(_RUN_COLOURS) % len(_DASHES)]
    if "loss" in run.scalars:
      series = run.scalars["loss"]
      figure.add_scatter(
          x=series.steps.tolist(), y=_numbers(series.values, 4),
          name=_legend(f"{of_run}training"),
          line=dict(color=colour, dash=dash), mode=_mode(series.steps))
    for symbol, (name, tags) in zip(
        _SYMBOLS * len(run.evaluations), run.evaluations.items()):
      if "neg_log_perplexity" not in tags:
        continue
      series = tags["neg_log_perplexity"]
      figure.add_scatter(
          x=series.steps.tolist(), y=_numbers(-series.values, 4),
          name=_legend(f"{of_run}{evaluation_title(name)}"),
          mode="lines+markers" if len(series.steps) > 1 else "markers",
          line=dict(color=colour, dash="dot"),
          marker=dict(symbol=symbol, size=11, color=colour, opacity=0.75,
                      line=dict(color="white", width=1)))
  return figure


def evaluation_title(name: str) -> str:
  """ "eval_eval_validation_1680" is the evaluation "validation_1680"."""
  while name.startswith("eval_") and name != "eval_":
    name = name.removeprefix("eval_")
  return f"evaluation {name}"


def lines(layers: Sequence[mixtures.Layer], level_name: str, metric: str,
          y_title: str, reference: tuple[float, str] | None = None
          ) -> go.Figure | None:
  """A metric of a level over time, one line a layer.

  A point is the mean of the records since the one before.

  Args:
    layers: the mixtures.
    level_name: such as "outer".
    metric: such as "load/max_over_mean".
    y_title: of the axis, with the unit.
    reference: a value to compare with, and what it is.

  Returns:
    a figure, or None where the metric was not recorded
  """
  shown = [(layer, level) for layer in layers
           if (level := layer.level(level_name)) and metric in level]
  if not shown:
    return None
  figure = _figure("training step", y_title)
  for number, (layer, level) in enumerate(shown):
    steps, values = _means(level.steps, level[metric])
    figure.add_scatter(
        x=steps.tolist(), y=_numbers(values, 4),
        name=_legend(layer.label), mode=_mode(steps),
        line=dict(color=_depth_colour(number, len(shown)),
                  dash=_DASHES[number % len(_DASHES)]))
  if reference:
    value, what = reference
    steps = shown[0][1].steps
    figure.add_scatter(
        x=[int(steps[0]), int(steps[-1])], y=[value, value], name=what,
        mode="lines", line=dict(color="#8A8A8A", width=1))
  return figure


def stack(whole: ledger.Whole, unit: str) -> go.Figure:
  """Parts of a whole over time, in percent of it.

  Args:
    whole: a `Whole`.
    unit: what is counted, such as "choices".

  Returns:
    a figure
  """
  figure = _figure("training step", f"% of {unit}")
  single = len(whole.steps) == 1
  for part, share in zip(whole.parts, whole.shares()):
    style = dict(
        name=part.name, x=whole.steps.tolist(), y=_numbers(100 * share, 3),
        customdata=_numbers(part.counts, 0),
        hovertemplate="%{y:.1f}% (%{customdata:,.0f})<extra>%{fullData.name}"
                      "</extra>")
    colour = _PART_COLOURS[part.kind]
    if single:  # An area needs two steps.
      figure.add_bar(**style, marker=dict(color=colour), width=0.5)
    else:
      figure.add_scatter(
          **style, mode="lines", stackgroup="whole", fillcolor=colour,
          line=dict(width=0.5, color="white"))
  figure.update_layout(barmode="stack", hovermode="x unified",
                       legend_traceorder="normal")
  figure.update_yaxes(range=[0, 100], ticksuffix="%")
  figure.update_xaxes(**(dict(tickvals=whole.steps.tolist()) if single else {}))
  return figure


def loads(level: mixtures.Level) -> tuple[go.Figure, list, list] | None:
  """The loads of the experts of a level, as a heat map for each of some steps.

  A column is a group of experts of the first level, and its experts are in the
  rows, however many levels they are below it. With one level, experts are in
  one row.

  Args:
    level: the last level.

  Returns:
    (figure of the last step, steps, rows of loads at each of these steps), or
    None where the loads were not recorded
  """
  recorded = level.relative_loads()
  if recorded is None:
    return None
  chosen = np.unique(np.linspace(
      0, len(level.steps) - 1, _MOST_STEPS_OF_LOADS).round().astype(int))
  _, *shape = recorded.shape
  frames = [[_numbers(row, 2) for row in _in_rows(loads_at)]
            for loads_at in recorded[chosen]]
  experts = np.array(  # Their names, where their loads are.
      [", ".join(map(str, index)) for index in np.ndindex(*shape)])
  names = _in_rows(experts.reshape(shape)).tolist()
  size_x, size_y = len(names[0]), len(names)
  figure = _figure(*_axes_of_loads(len(shape)))
  figure.add_heatmap(
      z=frames[-1], x=list(range(size_x)), y=list(range(size_y)),
      customdata=names, zmin=0, zmax=2, colorscale=_LOADS, showscale=False,
      xgap=2, ygap=2,
      texttemplate="%{z:.1f}" if size_x <= 8 and size_y <= 16 else None,
      textfont=dict(size=12),  # Plotly chooses black or white.
      hovertemplate="expert %{customdata}: %{z:.2f} of an even share"
                    "<extra></extra>")
  for update, size in (
      (figure.update_xaxes, size_x), (figure.update_yaxes, size_y)):
    update(showgrid=False, fixedrange=True, rangemode="normal",
           tickmode="linear", dtick=max(1, size // 8), range=[-0.5, size - 0.5])
  if len(shape) == 1:
    figure.update_yaxes(showticklabels=False)
  elif len(shape) > 2:
    rows = np.arange(0, size_y, max(1, size_y // 8))
    figure.update_yaxes(
        tickmode="array", tickvals=rows.tolist(),
        ticktext=[names[row][0].split(", ", 1)[1] for row in rows])
  figure.update_layout(showlegend=False)
  return figure, level.steps[chosen].tolist(), frames


def _in_rows(values):
  """An array [x], [x, y], [x, y, ...] as rows: [1, x], [y, x], [y ..., x]."""
  if values.ndim == 1:
    return values[np.newaxis]
  return values.reshape(len(values), -1).T


def _axes_of_loads(num_levels):
  """What columns and rows are."""
  if num_levels == 1:
    return "the expert", ""
  if num_levels == 2:
    return "x: the group of experts", "y: the expert in it"
  return "the group of experts of level one", "below it, level by level"


def _legend(name):
  """A name without its middle, if it is long; plotly takes HTML in names."""
  if len(name) > _MOST_LETTERS:
    half = _MOST_LETTERS // 2
    name = f"{name[:half]}…{name[-half:]}"
  return html.escape(name, quote=False)


def _figure(x_title, y_title):
  figure = go.Figure()
  axis = dict(gridcolor=_GRID, zeroline=False, linecolor="#B8B8B4",
              automargin=True, tickfont=dict(size=12), title_standoff=8,
              title_font=dict(size=13))
  figure.update_layout(
      # Plotly's own template is large, and the same in every figure.
      template=go.layout.Template(), font=_FONT, paper_bgcolor="white",
      plot_bgcolor="white", margin=dict(l=8, r=12, t=10, b=8),
      showlegend=True, hovermode="x", hoverlabel=dict(font=dict(size=12)),
      legend=dict(orientation="h", x=0, xanchor="left", y=0, yref="container",
                  yanchor="bottom", font=dict(size=12)))
  figure.update_xaxes(title_text=x_title, **axis)
  figure.update_yaxes(title_text=y_title, rangemode="tozero", **axis)
  return figure


def _means(steps, values):
  """Of neighbours, where there are many: lines of several layers stay apart."""
  size = -(-len(steps) // _MOST_POINTS)
  starts = np.arange(0, len(steps), size)
  lengths = np.diff(np.append(starts, len(steps)))
  return (steps[np.append(starts[1:] - 1, len(steps) - 1)],
          np.add.reduceat(values, starts) / lengths)


def _mode(steps):
  """Few records are shown as such."""
  return "lines+markers" if len(steps) <= 30 else "lines"


def _depth_colour(number, count):
  """From dark blue at the input to orange at the output."""
  first, last = np.array([0x1B, 0x3A, 0x6B]), np.array([0xE6, 0x9F, 0x00])
  mixed = first + (last - first) * (number / max(1, count - 1))
  red, green, blue = mixed.round().astype(int)
  return f"#{red:02X}{green:02X}{blue:02X}"


def _numbers(values, digits):
  """For JSON, which has no NaN and no infinities: None is a gap."""
  return [round(float(v), digits) if np.isfinite(v) else None for v in values]
