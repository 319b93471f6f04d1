"""The page: a template, filled with sections, plots and plotly itself."""

from collections.abc import Sequence
import html
from importlib import resources
import string

from plotly import offline

from mtf_moe.report import parts
from mtf_moe.report import runs as runs_lib
from mtf_moe.report import sections


def render(runs: Sequence[runs_lib.Run]) -> str:
  """The page.

  Args:
    runs: the `Run`s, one at least.

  Returns:
    HTML that needs nothing else
  """
  plots = parts.Plots()
  content = sections.all_sections(runs, plots)
  return string.Template(_file("page.html")).substitute(
      title=html.escape(", ".join(run.name for run in runs)),
      style=_file("page.css"), content=content, plots=plots.as_json(),
      plotly=offline.get_plotlyjs(), script=_file("page.js"))


def _file(name):
  return resources.files("mtf_moe.report").joinpath(name).read_text("utf-8")
