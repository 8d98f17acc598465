// A map of layers over time: a row a layer, the first at the top; a column a measurement; the lighter the greater.

import { element, short } from "./chart.js";

// Viridis (van der Walt and Smith, 2015) at nine points: even steps of brightness, also for the colour-blind.
const COLOURS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
  [92, 200, 99], [170, 220, 50], [253, 231, 37]];
const DECADES_FOR_LOGARITHMS = 2;

export class HeatMap {
  /** `whose`: what stands beside the title, if there are maps of several runs. */
  constructor(title, whose = "") {
    this.canvas = element("canvas", { role: "img" });
    this.scale = element("div", { class: "scale" });
    this.reading = element("small", { hidden: true });
    this.node = element("div", { class: "card heat" },
      element("div", { class: "head" }, element("h3", {}, title), whose), this.canvas, this.scale, this.reading);
    this.title = title;
    this.canvas.addEventListener("pointermove", event => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.rest());
  }

  /**
   * `columns`: for each step a list of numbers, one a layer; null where there is none. `low`, `high`: what is darkest
   * and what is lightest.
   */
  draw(steps, columns, [low, high]) {
    Object.assign(this, { steps, columns, low, high, layers: Math.max(1, ...columns.map(c => c.length)) });
    this.logarithmic = this.low > 0 && Math.log10(this.high / this.low) > DECADES_FOR_LOGARITHMS;
    const f = this.logarithmic ? Math.log : v => v, length = f(this.high) - f(this.low) || 1;
    this.canvas.width = Math.max(1, columns.length);
    this.canvas.height = this.layers;
    this.canvas.style.height = `${Math.min(220, Math.max(48, this.layers * 14))}px`;
    const context = this.canvas.getContext("2d"), image = context.createImageData(this.canvas.width, this.layers);
    columns.forEach((column, t) => column.forEach((value, layer) => {
      if (value === null) return;
      const share = Math.min(1, Math.max(0, (f(value) - f(this.low)) / length)) || 0;
      image.data.set([...colour(share), 255], 4 * (layer * this.canvas.width + t));
    }));
    context.putImageData(image, 0, 0);
    this.canvas.setAttribute("aria-label", `${this.title}, ${this.layers} layers, steps ${steps[0]} to ${steps.at(-1)}`);
    this.rest();
  }

  rest() {
    this.reading.hidden = true;
    this.scale.hidden = false;
    this.scale.replaceChildren(...this.low === undefined ? ["no numbers"]
      : [element("span", {}, short(this.low)), element("i"), element("span", {}, short(this.high)),
        this.logarithmic ? " log" : ""]);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const t = Math.floor((event.clientX - box.left) / box.width * this.columns.length);
    const layer = Math.floor((event.clientY - box.top) / box.height * this.layers);
    const value = this.columns[t]?.[layer];
    this.scale.hidden = true;
    this.reading.hidden = false;
    this.reading.textContent = `step ${short(this.steps[t] ?? NaN)}, layer ${layer}: ${value == null ? "no number" : short(value)}`;
  }
}

/** The values of the first and last colour: the outermost hundredths are cut, so that a spike does not darken the rest. */
export function colourRange(columns) {
  const values = columns.flat().filter(v => v !== null).sort((a, b) => a - b);
  return [0.01, 0.99].map(share => values[Math.round(share * (values.length - 1))]);
}

function colour(share) {
  const position = share * (COLOURS.length - 1), i = Math.min(COLOURS.length - 2, Math.floor(position));
  return COLOURS[i].map((from, c) => Math.round(from + (COLOURS[i + 1][c] - from) * (position - i)));
}
