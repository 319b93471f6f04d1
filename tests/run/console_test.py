"""What a person sees: in a terminal, in a pipe, and in the log file."""

import logging
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from mtf_moe.run import console
from mtf_moe.train import progress
from tests.train import program


def test_streams_and_file(tmp_path, capsys):
  with console.opened(), console.kept_in(str(tmp_path)):
    console.say("a line")
    console.warn("a doubt")
    console.fail("an end")
    console.note("a detail")
    logging.getLogger("mtf_moe.levels").warning("of a %s", "layer")
    logging.getLogger("tensorflow").info("of TensorFlow")
  logging.getLogger("mtf_moe").info("afterwards")
  printed = capsys.readouterr()
  assert printed.out == "a line\n"
  assert printed.err == "warning: a doubt\nerror: an end\nwarning: of a layer\n"
  assert re.sub(r"^\S+ \S+ ", "", (tmp_path / "train.log").read_text(),
                flags=re.MULTILINE) == (
      "INFO mtf_moe: a line\nWARNING mtf_moe: a doubt\nERROR mtf_moe: an end\n"
      "DEBUG mtf_moe: a detail\nWARNING mtf_moe.levels: of a layer\n"
      "INFO tensorflow: of TensorFlow\n")


def test_the_file_is_appended_to(tmp_path):
  for text in ("one", "two"):
    with console.kept_in(str(tmp_path)):
      console.note(text)
  lines = (tmp_path / "train.log").read_text().splitlines()
  assert [line.rpartition(" ")[2] for line in lines] == ["one", "two"]


def test_an_error_is_kept(tmp_path):
  with pytest.raises(KeyError), console.kept_in(str(tmp_path)):
    raise KeyError("lost")
  log = (tmp_path / "train.log").read_text()
  assert "Traceback" in log and "KeyError: 'lost'" in log


def test_nothing_is_changed_for_good(tmp_path):
  def state():
    return [(logger.level, logger.propagate, list(logger.handlers))
            for logger in map(logging.getLogger, (
                "mtf_moe", "tensorflow", "py.warnings"))]

  before = state()
  with console.opened(), console.kept_in(str(tmp_path)):
    assert state() != before
  assert state() == before


def test_plain_lines(capsys):
  with console.opened():
    shown = progress.Progress(100, initial=10, seconds_per_line=0.0)
    shown.show(40, "loss 2.000")
    shown.close()
  assert re.fullmatch(
      r"step 40 of 100, loss 2\.000, \d\d:\d\d left\n", capsys.readouterr().out)


def test_speed_and_time_left_agree(capsys):
  with console.opened():
    shown = progress.TrainingProgress(
        1000, tokens_per_step=2048, seconds_per_line=0.1)
    shown.begin(0)
    for step, seconds in enumerate([0.5, 0.2], 1):  # From slow to quick.
      time.sleep(seconds)
      shown.observe(step, 2.0)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2
  for step, line in enumerate(lines, 1):
    speed, minutes, seconds = re.fullmatch(
        rf"step {step} of 1000, loss 2\.000, ([\d,]+) tokens/s, "
        r"(\d\d):(\d\d) left", line).groups()
    steps_left = int(speed.replace(",", "")) * (
        int(minutes) * 60 + int(seconds)) / 2048
    assert steps_left == pytest.approx(1000 - step, rel=0.02)


def in_terminal(args, **kwargs):
  """All that a program writes to a terminal of its own."""
  ours, its = pty.openpty()
  process = subprocess.Popen(
      args, stdin=its, stdout=its, stderr=its, **kwargs)
  os.close(its)
  written = b""
  while True:
    try:
      part = os.read(ours, 65536)
    except OSError:  # How a terminal ends.
      part = b""
    if not part:
      break
    written += part
  os.close(ours)
  assert process.wait() == 0, written.decode()
  return written.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="terminals differ")
def test_a_live_bar(tmp_path):
  program.write_text(tmp_path)
  written = in_terminal(**program.program(
      tmp_path, "run.train_steps = 30", "train_model.steps_per_record = 10"))
  bars = [part for part in re.split(r"[\r\n]", written) if "step " in part]
  assert len(bars) > 1  # Redrawn in place,
  assert written.count("\n") < len(bars) + 10
  assert re.search(
      r"100% █{10} step 30 of 30, 00:00 left, loss \d\.\d{3}, [\d,]+ tokens/s, "
      r"busiest expert \d\.\dx \(block_000/", bars[-1])
  # and kept as lines in the log file.
  log = (tmp_path / "model" / "train.log").read_text()
  assert re.search(r"DEBUG mtf_moe: step 30 of 30, loss", log)


def test_warnings_stand_out_in_a_terminal():
  written = in_terminal([sys.executable, "-c", """
from mtf_moe.run import console
with console.opened():
  console.warn("look")
"""], env={**os.environ, "PYTHONPATH": program.ROOT})
  assert "\033[1;33mwarning:\033[0m look" in written
