// The training of finished runs: the board of the live page over numbers that the page itself holds. Its charts take the
// places of the tables that stand there for readers without scripts.

import { Board, named } from "./board.js";
import { element } from "./chart.js";

const { runs } = JSON.parse(document.getElementById("training-data").textContent);
const figures = [...document.querySelectorAll("figure[data-metric]")]
  .filter(({ dataset }) => runs.some(run => dataset.metric in run.metrics));
const hosts = Object.fromEntries(figures.map(figure => {
  const host = element("div");
  figure.querySelector(".numbers").replaceWith(host);
  return [figure.dataset.metric, host];
}));
const board = new Board({}, show, hosts);
document.getElementById("training-board").replaceChildren(board.controls,
  element("ul", { class: "legend", hidden: runs.length < 2 }, ...runs.map((run, series) => element("li", {}, named({ ...run, series })))));
document.getElementById("training-more").append(board.grid, board.health);
show(board.view);

function show(view) {
  board.show(runs.map((run, series) => over(run, series, view)));
}

/** A run over the axis of the view, and only the part that is in view. */
function over(run, series, view) {
  const at = step => interpolate(step, run.knots.step, run.knots[view.axis]);
  const part = curve => {
    const x = curve.x.map(at);
    const from = Math.max(0, x.findIndex(v => v >= (view.low ?? -Infinity)) - 1);
    const to = x.findLastIndex(v => v <= (view.high ?? Infinity)) + 2;
    return Object.fromEntries(Object.entries({ ...curve, x }).map(([name, list]) => [name, list.slice(from, to)]));
  };
  const metrics = Object.fromEntries(Object.entries(run.metrics).map(([name, curve]) => [name, part(curve)]));
  const events = run.events.filter(event => typeof event.step === "number").map(event => ({ ...event, x: at(event.step) }));
  const training = run.training_bits_per_byte;
  return { ...run, series, metrics, events, training_bits_per_byte: training && part(training) };
}

/** The value at `x` of the straight lines through points with rising `xs`. */
function interpolate(x, xs, ys) {
  let i = 1;
  while (i < xs.length - 1 && xs[i] < x) i++;
  if (xs.length < 2) return ys[0];
  return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1]);
}
