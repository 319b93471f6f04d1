"""The command line, as a user runs it."""

import os
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

from mtf_moe.report import ledger
from mtf_moe.report import mixtures
from mtf_moe.report import page
from mtf_moe.report import runs
from tests import forked
from tests.report import event_files
from tests.train import program


def report(*arguments, before=""):
  """Runs the program, after a line of Python if there is one."""
  if not before:
    return forked.run("mtf_moe.report", *arguments)
  code = (f"import sys; {before}; import runpy; runpy.run_module("
          "'mtf_moe.report', run_name='__main__', alter_sys=True)")
  return subprocess.run(
      [sys.executable, "-c", code, *arguments], capture_output=True, text=True,
      check=False, env={**os.environ, "PYTHONPATH": program.ROOT})


def refused(*arguments, **kwargs):
  """The one line that it says when it refuses something."""
  failed = report(*arguments, **kwargs)
  assert failed.returncode == 1
  assert "Traceback" not in failed.stderr
  assert not failed.stdout
  lines = failed.stderr.strip().splitlines()
  return lines[-1]


def test_a_training_run(tmp_path):
  """Trains for real: what the layer counts adds up, and there is a page."""
  (tmp_path / "text.txt").write_text("99 bottles of beer on the wall.\n" * 99)
  program.run(
      tmp_path, "run.train_steps = 1", "MoE2D.min_expert_capacity = 1",
      "MoE2D.capacity_factor_train = 0.5",
      "MoE2D.capacity_factor_second_level = 0.5", files=["meshes/cpu_1.gin"])
  model = tmp_path / "model"
  made = report(f"--model_dir={model}")
  assert made.returncode == 0, made.stderr
  assert made.stdout.splitlines() == [
      f"reading {model}", f"wrote {model}/report.html"]
  text = (model / "report.html").read_text()
  assert "layer 1 (block_000/layer_001)" in text
  assert "MoE2D.hidden_size = 16" in text

  run, = runs.read([str(model)])
  layer, = mixtures.find(run)
  outer, inner = layer.levels
  assert outer.steps.tolist() == inner.steps.tolist() == [1]
  for whole in (ledger.choices(outer), ledger.arrived(inner)):
    assert sum(part.counts for part in whole.parts) == whole.counts
    assert all(part.counts >= 0 for part in whole.parts)
  # There are slots for half of the tokens.
  assert outer["choices_1/dropped"] >= 32 and inner["tokens/lost"] > 0
  # What level one keeps is what arrives at level two.
  kept = sum(part.counts for part in ledger.choices(outer).parts
             if part.kind in ("first", "second"))
  assert kept == ledger.arrived(inner).counts > 0
  assert inner.relative_loads().shape == (1, 2, 2)
  assert inner.relative_loads().mean() == pytest.approx(1)


def test_a_mistake_is_one_line():
  assert refused("--model_dir=/no/such") == (
      "mtf_moe.report: --model_dir=/no/such is no directory: give the "
      "--model_dir of a run of mtf_moe.train.")


def test_a_page_that_cannot_be_written(tmp_path, capsys):
  directory = str(event_files.run(tmp_path / "run"))
  with pytest.raises(ValueError, match=rf"--output={tmp_path} is a directory"):
    page.write([directory], str(tmp_path))
  (tmp_path / "file").touch()
  for output in (f"{tmp_path}/none/page.html", f"{tmp_path}/file/page.html"):
    with pytest.raises(
        ValueError, match=rf"--output={output} cannot be written \(.*\): give"):
      page.write([directory], output)
  assert {path.name for path in tmp_path.iterdir()} == {"run", "file"}
  assert not capsys.readouterr().out  # Nothing has been read in vain.
  page.write([directory], f"{tmp_path}/page.html")
  before = (tmp_path / "page.html").read_text()
  assert before.endswith("</html>\n")
  page.write([directory], f"{tmp_path}/page.html")
  assert before == (tmp_path / "page.html").read_text()


def test_a_link_in_place_of_the_page(tmp_path):
  directory = event_files.run(tmp_path / "run")
  precious = tmp_path / "precious"
  precious.write_text("precious")
  (directory / "report.html").symlink_to(precious)
  with pytest.raises(ValueError, match=f"is a link to {precious}"):
    page.write([str(directory)])
  assert precious.read_text() == "precious"
  page.write([str(directory)], str(directory / "report.html"))  # As told to.
  assert "<html" in precious.read_text()


def test_nothing_is_left_of_a_page_that_was_not_made(tmp_path):
  tf.summary.FileWriter(str(tmp_path), tf.Graph()).close()
  files = set(tmp_path.iterdir())
  with pytest.raises(ValueError, match="has event files without scalars"):
    page.write([str(tmp_path)])
  assert set(tmp_path.iterdir()) == files


def test_without_plotly(tmp_path):
  directory = event_files.run(tmp_path / "run")
  assert refused(
      f"--model_dir={directory}", before="sys.modules['plotly'] = None") == (
          "mtf_moe.report: plotly is not installed: pip install "
          "'mtf_moe[report]', or, in a checkout, pip install '.[report]'.")


def test_help():
  shown = report("--help", before="sys.modules['plotly'] = None").stdout
  assert "--model_dir" in shown and "--output" in shown
