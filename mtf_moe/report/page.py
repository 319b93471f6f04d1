"""The page: a template, filled with sections, plots and plotly itself."""

from collections.abc import Sequence
import html
from importlib import resources
import os
import string

from plotly import offline
import tensorflow.compat.v1 as tf

from mtf_moe.report import parts
from mtf_moe.report import runs as runs_lib
from mtf_moe.report import sections
from mtf_moe.run import paths


def write(directories: Sequence[str], output: str | None = None):
  """Reads runs and writes the page.

  Args:
    directories: the model directories, one at least.
    output: the path of the page; by default report.html in the first one.

  Raises:
    ValueError: if there is nothing to read, or nowhere to write.
  """
  directories = [os.path.expanduser(directory) for directory in directories]
  runs_lib.check(directories)
  if not output:
    output = os.path.join(directories[0], "report.html")
    if paths.leads_outside(output, directories[0]):
      raise ValueError(
          f"{output} is a link to {os.path.realpath(output)}, outside of "
          "--model_dir: say where to write with --output, or remove it.")
  _check_output(output)
  page = render(runs_lib.read(directories))
  with tf.io.gfile.GFile(output, "w") as f:
    f.write(page)
  print(f"wrote {output}", flush=True)


def _check_output(output):
  """Before event files are read, which may take a while."""
  if tf.io.gfile.isdir(output):
    raise ValueError(
        f"--output={output} is a directory: give the name of a file in it.")
  existed = tf.io.gfile.exists(output)
  if existed:
    paths.check_plain(output)
  try:
    with tf.io.gfile.GFile(output, "a") as f:
      f.write("")
    if not existed:
      tf.io.gfile.remove(output)
  except (OSError, tf.errors.OpError) as error:
    reason = getattr(error, "message", None) or error
    raise ValueError(
        f"--output={output} cannot be written ({reason}): give a file in a "
        "directory that exists and that you may write to.") from error


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
