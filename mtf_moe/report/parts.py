"""The parts that a page is made of, as HTML. All text is escaped here."""

from collections.abc import Sequence
import html
import json

import plotly.graph_objects as go


class Plots:
  """Collects the figures of a page: they are drawn when they come into view."""

  def __init__(self):
    self._plots = []

  def add(self, figure: go.Figure, title: str, frames=None) -> str:
    """Adds a figure.

    Args:
      figure: a plotly figure.
      title: of the figure, as text.
      frames: optionally (steps, z at each of them), for the slider.

    Returns:
      HTML: the place where it will be drawn
    """
    plot = figure.to_plotly_json()
    if frames is not None:
      plot["steps"], plot["frames"] = frames
    self._plots.append(plot)
    number = len(self._plots) - 1
    return (f'<figure><figcaption>{html.escape(title)}</figcaption>'
            f'<div class="plot" data-plot="{number}"></div></figure>')

  def as_json(self) -> str:
    """For a script element, which a "<" in the data could otherwise end."""
    return json.dumps(
        self._plots, separators=(",", ":"), allow_nan=False,
        default=lambda values: values.tolist()).replace("<", "\\u003c")


def row(*figures: str) -> str:
  """Figures beside each other; on a narrow screen, below each other."""
  return f'<div class="row">{"".join(figures)}</div>'


def paragraph(text: str, css: str = "") -> str:
  """Text, in which `this` is set as code."""
  parts = html.escape(text, quote=False).split("`")
  marked = "".join(f"<code>{part}</code>" if i % 2 else part
                   for i, part in enumerate(parts))
  return f'<p class="{css}">{marked}</p>' if css else f"<p>{marked}</p>"


def choice(group: str, label: str, options: Sequence[str],
           contents: Sequence[str]) -> str:
  """Contents of which one is shown, with a list to choose it from.

  Args:
    group: a name for it that no other choice has.
    label: what is chosen.
    options: the names of the contents.
    contents: HTML of each.

  Returns:
    HTML
  """
  if len(contents) == 1:
    return contents[0]
  return selector(group, label, options) + items(group, contents)


def selector(group: str, label: str, options: Sequence[str]) -> str:
  """The list of a `choice`."""
  shown = "".join(f'<option value="{i}">{html.escape(option)}</option>'
                  for i, option in enumerate(options))
  return (f'<label class="choice">{html.escape(label)} '
          f'<select data-group="{group}">{shown}</select></label>')


def items(group: str, contents: Sequence[str]) -> str:
  """The contents of a `choice`; the first is shown."""
  shown = "".join(f'<div{" hidden" if i else ""}>{content}</div>'
                  for i, content in enumerate(contents))
  return f'<div data-choices="{group}">{shown}</div>'


def table(rows: Sequence[Sequence[str]], headers: Sequence[str] = ()) -> str:
  """A table of text; the first column names the row."""
  head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headers)
  body = "".join(
      "<tr>" + "".join(
          f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
      for cells in rows)
  return (f'<div class="wide"><table>'
          f'{f"<thead><tr>{head}</tr></thead>" if head else ""}'
          f'<tbody>{body}</tbody></table></div>')


def details(summary: str, text: str) -> str:
  """Long text that is shown on demand."""
  return (f"<details><summary>{html.escape(summary)}</summary>"
          f"<pre>{html.escape(text)}</pre></details>")
