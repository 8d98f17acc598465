// The figures of a page that holds their numbers itself: each chart takes the place of its table.

import { Chart, element, extent, swatch } from "./chart.js";

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const kept = JSON.parse(figure.querySelector("script").textContent);
  const curves = kept.curves.map((curve, series) => ({ ...curve, series, mean: curve.y, smoothed: curve.y, low: null }));
  const [first, last] = extent(curves.flatMap(curve => curve.x));
  let logY = kept.logarithmic_y, seen = [first, last];
  const draw = () => chart.draw({ curves, marks: [], axis: "x", axisName: kept.x_label, logX: kept.logarithmic_x, logY,
    low: seen[0], high: seen[1] });
  const chart = new Chart(kept.title, `${kept.y_label} over ${kept.x_label}`, (low = first, high = last) => {
    seen = [low, high];
    draw();
  });
  chart.log.addEventListener("click", () => { logY = !logY; draw(); });
  const legend = element("ul", { class: "legend" }, ...curves.map(({ series, name }) =>
    element("li", {}, swatch(series), element("bdi", {}, name))));
  figure.querySelector(".numbers").replaceWith(chart.node, curves.length > 1 ? legend : "");
  draw();
}
