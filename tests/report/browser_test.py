"""The page in a real browser, as wide as a phone."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest

from mtf_moe.report import page
from mtf_moe.report import runs
from tests.report import event_files

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_BROWSER = next(filter(None, map(shutil.which, _NAMES)), None)
_PHONE, _DESKTOP = 390, 1280

# Chooses everything that can be chosen, and tells the page around it what is
# there then. A drawing has paths, bars or an image in its layer of data.
_PROBE = """<script>
window.addEventListener("load", () => {
  const page = document.documentElement;
  const report = {width: innerWidth, scroll: [page.scrollWidth]};
  const choices = () => [...document.querySelectorAll("select")].filter(
      (select) => select.offsetParent !== null);
  const run = choices()[0];
  for (let i = 0; i < run.options.length; i++) {
    run.selectedIndex = i;
    run.dispatchEvent(new Event("change"));
    for (const select of choices().slice(1)) {
      for (let k = 0; k < select.options.length; k++) {
        select.selectedIndex = k;
        select.dispatchEvent(new Event("change"));
        report.scroll.push(page.scrollWidth);
      }
    }
  }
  run.selectedIndex = 0;
  run.dispatchEvent(new Event("change"));
  const all = [...document.querySelectorAll(".plot")];
  report.plots = all.length;
  report.drawn = all.filter((element) => element.querySelector(
      ".scatterlayer path, .barlayer path, .heatmaplayer image")).length;
  const slider = [...document.querySelectorAll(".slider input")].find(
      (element) => element.offsetParent !== null);
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  const slides = slider.closest("[data-slides]");
  report.step = slides.querySelector("output").textContent;
  report.loads = [...slides.querySelectorAll(".plot")].map(
      (element) => element.data[0].z);
  report.small = [...document.querySelectorAll("main *")].filter(
      (element) => element.textContent.trim()
          && parseFloat(getComputedStyle(element).fontSize) < 12).length;
  // What plotly writes beside its drawing would be cut off.
  report.cut = all.filter((element) => element.offsetParent !== null
      && [...element.querySelectorAll("text")].some((text) =>
          text.getBoundingClientRect().right
              > element.getBoundingClientRect().right + 1)).length;
  parent.postMessage(JSON.stringify(report), "*");
});
</script>"""
# A window has a least width, a frame has none.
_FRAME = """<!DOCTYPE html><iframe src="page.html" width="{width}" height="900"
style="border: 0"></iframe><pre></pre><script>
onmessage = (event) => document.querySelector("pre").textContent = event.data;
</script>"""


def opened(directory: pathlib.Path, source: str, width: int):
  """Opens a page.

  Args:
    directory: for its files.
    source: of the page.
    width: of the frame that shows it, in pixels.

  Returns:
    (what `_PROBE` reports, lines of the browser's console)
  """
  content, end = source.rsplit("</body>", 1)
  (directory / "page.html").write_text(f"{content}{_PROBE}</body>{end}")
  (directory / "frame.html").write_text(_FRAME.format(width=width))
  browser = subprocess.run(
      [_BROWSER, "--headless", "--no-sandbox", "--disable-gpu",
       f"--user-data-dir={directory}/profile", "--enable-logging=stderr",
       f"--window-size={width + 100},1000", "--virtual-time-budget=60000",
       "--dump-dom", f"file://{directory}/frame.html"],
      capture_output=True, text=True, check=True, timeout=120)
  found = re.search(r"<pre>(.*?)</pre>", browser.stdout, re.DOTALL)
  console = [line for line in browser.stderr.splitlines() if "CONSOLE" in line]
  return found and found[1] and json.loads(found[1]), console


@pytest.mark.skipif(
    _BROWSER is None, reason=f"none of {', '.join(_NAMES)} is on the PATH")
@pytest.mark.parametrize("width", [_PHONE, _DESKTOP])
def test_a_browser_draws_everything(tmp_path, width):
  long = "a_name_that_is_longer_than_the_screen_of_a_phone_is_wide" * 2
  # [x, y]: one expert has all the load at first.
  first = event_files.mixture(event_files.LAYERS[0], inner={
      "load/expert_0_0": 1.0, "load/expert_0_1": 0.0, "load/expert_0_2": 0.0,
      "load/expert_1_0": 0.0, "load/expert_1_1": 0.0})
  directories = [
      event_files.run(tmp_path / "one", first=first),
      event_files.run(tmp_path / long),
      # One record only: areas would be invisible.
      event_files.run(tmp_path / "first_step", steps=(1,))]
  found, console = opened(
      tmp_path, page.render(runs.read([str(d) for d in directories])), width)
  assert console == []
  assert found["width"] == width
  assert max(found["scroll"]) <= width
  # As in page_test.py.
  assert found["plots"] == found["drawn"] == 1 + 3 * 16
  assert found["small"] == 0 and found["cut"] == 0
  # The slider is at its left end.
  assert found["step"] == "1"
  assert found["loads"] == [
      [[6, 0], [0, 0], [0, 0]], [[1.5, 0.75], [0.75, 1.5], [1.5, 0]]]
