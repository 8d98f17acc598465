// The training of a report: the board of the live page over numbers that the page itself holds. Its charts take the
// places of the drawings that stand there for readers without scripts.

import { Board } from "./board.js";
import { element } from "./chart.js";

const kept = JSON.parse(document.getElementById("training-data").textContent);
const places = [...document.querySelectorAll("figure[data-metric]")].filter(figure => figure.dataset.metric in kept.metrics);
const hosts = Object.fromEntries(places.map(figure => {
  const host = element("div"), caption = figure.querySelector("figcaption");
  figure.replaceChildren(host, caption);
  return [figure.dataset.metric, host];
}));
const board = new Board({}, show, hosts);
document.getElementById("training-board").append(board.controls);
document.getElementById("training-more").append(board.grid, board.health);
show(board.view);

function show(view) {
  const over = curve => {
    const x = curve.x.map(step => interpolate(step, kept.knots.step, kept.knots[view.axis]));
    const [from, to] = [x.findIndex(v => v >= (view.low ?? -Infinity)), x.findLastIndex(v => v <= (view.high ?? Infinity))];
    const part = list => list.slice(Math.max(0, from - 1), to + 2);
    return Object.fromEntries(Object.entries({ ...curve, x }).map(([name, list]) => [name, part(list)]));
  };
  const metrics = Object.fromEntries(Object.entries(kept.metrics).map(([name, curve]) => [name, over(curve)]));
  const events = kept.events.filter(event => typeof event.step === "number")
    .map(event => ({ ...event, x: interpolate(event.step, kept.knots.step, kept.knots[view.axis]) }));
  const training = kept.training_bits_per_byte;
  board.show([{ ...kept, series: 0, metrics, events, training_bits_per_byte: training && over(training) }]);
}

/** The value at `x` of the straight lines through points with rising `xs`. */
function interpolate(x, xs, ys) {
  let i = 1;
  while (i < xs.length - 1 && xs[i] < x) i++;
  if (xs.length < 2) return ys[0];
  return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1]);
}
