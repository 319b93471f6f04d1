"use strict";

const plots = JSON.parse(document.getElementById("plots").textContent);
// A finger on a plot scrolls the page; a mouse selects what to enlarge.
const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";

/** The height that leaves the plot enough room above its legend. */
function heightOf(plot, width) {
  if (plot.frames) {
    return Math.min(380, Math.max(190, 70 + 42 * plot.frames[0].length));
  }
  const names = plot.data.map((trace) => trace.name || "");
  const longest = Math.max(...names.map((name) => name.length));
  // Plotly puts names in columns below the plot, which is narrower than all.
  const columns = Math.max(
      1, Math.floor((width - 80) / (50 + 6.6 * longest)));
  return 300 + 21 * Math.ceil(names.length / columns);
}

function draw(element) {
  if (element.dataset.drawn) {
    return;
  }
  element.dataset.drawn = "yes";
  const plot = plots[element.dataset.plot];
  const height = heightOf(plot, element.clientWidth);
  Plotly.newPlot(
      element, plot.data, {...plot.layout, height, dragmode},
      {displayModeBar: false, responsive: true});
}

/** Draws what has come into view by a choice. */
function drawVisible() {
  for (const element of document.querySelectorAll(".plot")) {
    if (element.offsetParent !== null) {
      draw(element);
    }
  }
}

function choose(select) {
  const group = select.dataset.group;
  document.querySelectorAll(`[data-choices="${group}"]`).forEach((choices) => {
    [...choices.children].forEach((item, i) => {
      item.hidden = i !== select.selectedIndex;
    });
  });
  drawVisible();
}

/** Shows the loads of one step in all heat maps beside a slider. */
function show(slider) {
  const maps = [...slider.closest("[data-slides]").querySelectorAll(".plot")];
  const step = plots[maps[0].dataset.plot].steps[slider.value];
  slider.parentElement.querySelector("output").textContent =
      step.toLocaleString("en");
  for (const element of maps) {
    const {steps, frames} = plots[element.dataset.plot];
    const last = steps.filter((other) => other <= step).length - 1;
    Plotly.restyle(element, {z: [frames[Math.max(0, last)]]});
  }
}

for (const select of document.querySelectorAll("select[data-group]")) {
  select.addEventListener("change", () => choose(select));
  choose(select);  // A browser may remember an earlier choice.
}
drawVisible();
for (const slider of document.querySelectorAll(".slider input")) {
  slider.addEventListener("input", () => show(slider));
  slider.value = slider.max;
}
window.addEventListener("resize", () => {
  for (const element of document.querySelectorAll(".plot[data-drawn]")) {
    if (element.offsetParent !== null) {
      const plot = plots[element.dataset.plot];
      Plotly.relayout(element, {height: heightOf(plot, element.clientWidth)});
    }
  }
});
