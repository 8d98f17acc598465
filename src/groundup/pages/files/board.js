// The board: controls, a chart for each metric, maps of health, settings, samples, events. It draws the runs that it is
// given, wherever they come from: a server, or the page itself.

import { Chart, element, extent, axisText, short, smooth, swatch } from "./chart.js";
import { HeatMap, colourRange } from "./heat.js";

export const AXES = { step: "step", tokens: "tokens", seconds: "time", flops: "FLOPs" };
const VALIDATION = "validation_bits_per_byte";
const METRICS = {
  loss: ["Training loss", "nats a token"],
  [VALIDATION]: ["Validation", "bits per byte"],
  training_bits_per_byte: ["Training", "bits per byte"],
  learning_rate: ["Learning rate", ""],
  grad_norm: ["Gradient norm", ""],
  tokens_per_second: ["Speed", "tokens a second"],
  share_of_peak: ["Share of the machine's peak", "1 is all of it"],
  memory_bytes: ["Memory", "bytes, the most so far"],
};
const NOT_MARKED = ["saved", "started", "finished"]; // as many as there are, they would hide the others
const MAX_MARKS = 60, MAX_SAMPLES_SHOWN = 12, MAX_EVENTS_SHOWN = 60;

/** The view before the reader changes it. */
export const FIRST_VIEW = { axis: "step", logX: false, logs: [], smoothing: 2, low: null, high: null };

export class Board {
  /**
   * `changed(view)` is called when the reader changes the view. `hosts`: metric → the element that holds its chart,
   * where that is not the grid.
   */
  constructor(view, changed, hosts = {}) {
    this.hosts = hosts;
    this.view = { ...FIRST_VIEW, ...view };
    this.changed = changed;
    this.charts = new Map();
    this.runs = [];
    this.controls = element("form", { class: "controls", "aria-label": "How curves are drawn" });
    this.grid = element("div", { class: "charts" });
    this.health = part("Health", "health");
    this.ranks = part("Ranks", "ranks");
    this.settings = part("Settings that differ", "settings");
    this.samples = part("What it writes", "samples");
    this.events = part("Events", "events");
    this.buildControls();
    this.nodes = [this.controls, this.grid, this.health, this.ranks, this.settings, this.samples, this.events];
  }

  buildControls() {
    const axis = element("select", { name: "axis" },
      ...Object.entries(AXES).map(([value, name]) => element("option", { value }, name)));
    const log = element("input", { type: "checkbox", name: "logX" });
    const smoothing = element("input", { type: "range", name: "smoothing", min: 0, max: 20, step: 1 });
    this.smoothingText = element("output", {});
    this.all = element("button", { type: "button", class: "all" }, "Show all");
    axis.addEventListener("change", () => this.choose({ axis: axis.value, low: null, high: null }));
    log.addEventListener("change", () => this.choose({ logX: log.checked }));
    smoothing.addEventListener("input", () => this.choose({ smoothing: Number(smoothing.value) }));
    this.all.addEventListener("click", () => this.choose({ low: null, high: null }));
    this.controls.addEventListener("submit", event => event.preventDefault());
    this.controls.append(element("label", {}, "over ", axis), element("label", {}, log, " log"),
      element("label", {}, "smoothing ", smoothing, this.smoothingText), this.all,
      element("small", {}, "drag to zoom, double-click for all"));
    this.inputs = { axis, log, smoothing };
  }

  choose(change) {
    this.view = { ...this.view, ...change };
    this.changed(this.view);
    this.draw();
  }

  /** `runs`: name, series, metrics, events, samples, health; `settings`: dotted name → the value in each run. */
  show(runs, settings = {}) {
    this.runs = runs;
    this.differing = settings;
    this.draw();
  }

  draw() {
    const { view, inputs } = this;
    inputs.axis.value = view.axis;
    inputs.log.checked = view.logX;
    inputs.smoothing.value = view.smoothing;
    this.smoothingText.textContent = view.smoothing ? `${view.smoothing} % of the width` : "none";
    this.all.hidden = view.low === null && view.high === null;
    this.drawCharts();
    this.drawHealth();
    this.drawRanks();
    this.drawSettings();
    this.drawSamples();
    this.drawEvents();
  }

  drawCharts() {
    const present = new Set(this.runs.flatMap(run => Object.keys(run.metrics)));
    const names = [...Object.keys(METRICS).filter(name => present.has(name)),
      ...[...present].filter(name => !(name in METRICS)).sort()];
    for (const [name, chart] of this.charts) {
      if (!present.has(name)) {
        chart.node.remove();
        this.charts.delete(name);
      }
    }
    for (const name of names) {
      if (!this.charts.has(name)) this.charts.set(name, this.newChart(name));
    }
    names.filter(name => !this.hosts[name]).forEach((name, i) => {
      const { node } = this.charts.get(name);
      if (this.grid.children[i] !== node) this.grid.insertBefore(node, this.grid.children[i] ?? null);
    });
    const { logX } = this.view, marks = this.marks();
    const all = this.runs.flatMap(run => Object.values(run.metrics)).map(({ x }) => x);
    const [first, last] = extent(all.flatMap(x => [logX ? x.find(v => v > 0) ?? Infinity : x[0], x.at(-1)]));
    const low = this.view.low ?? first, high = this.view.high ?? last;
    for (const [name, chart] of this.charts) chart.draw({ ...this.content(name), marks, low, high });
  }

  newChart(name) {
    let [title, unit] = METRICS[name] ?? [name.replaceAll("_", " "), ""];
    if (name === VALIDATION && this.runs.some(run => run.training_bits_per_byte)) unit += "; thin: training";
    const chart = new Chart(title, unit, (low = null, high = null) => this.choose({ low, high }));
    chart.log.addEventListener("click", () => {
      const { logs } = this.view;
      this.choose({ logs: logs.includes(name) ? logs.filter(other => other !== name) : [...logs, name] });
    });
    this.hosts[name]?.replaceChildren(chart.node);
    return chart;
  }

  content(name) {
    const { view } = this;
    const curves = this.runs.filter(run => run.metrics[name]).flatMap(run => {
      const curve = (points, more = {}) => {
        const share = view.smoothing * (more.thin ? 3 : 1) / 100;
        const window = points.x.length < 40 ? 0 : Math.round(points.x.length * share);
        return { name: run.name, series: run.series, ...points, smoothed: smooth(points.mean, window), ...more };
      };
      const points = run.metrics[name], { training_bits_per_byte: training } = run;
      return name === VALIDATION && training && points.x.length
        ? [{ ...curve(since(training, points.x[0]), { name: `${run.name}, training`, thin: true }), low: null }, curve(points)]
        : [curve(points)];
    });
    return { curves, axis: view.axis, axisName: AXES[view.axis], logX: view.logX, logY: view.logs.includes(name) };
  }

  marks() {
    const several = this.runs.length > 1;
    return this.runs.flatMap(run => run.events.filter(e => typeof e.x === "number" && !NOT_MARKED.includes(e.event))
      .map(e => ({ x: e.x, kind: ["resumed", "stopped"].includes(e.event) ? "usual" : "warning",
        label: `${e.event}, step ${short(e.step)}${several ? `, ${run.name}` : ""}` }))).slice(-MAX_MARKS);
  }

  drawHealth() {
    const measured = this.runs.filter(run => run.health?.steps.length);
    this.health.hidden = !measured.length;
    if (!measured.length) return;
    const drawn = measured.map(run => run.health);
    if (drawn.length === this.drawnHealth?.length && drawn.every((health, i) => health === this.drawnHealth[i])) return;
    this.drawnHealth = drawn;
    const maps = [];
    for (const name of new Set(drawn.flatMap(health => Object.keys(health.maps)))) {
      const having = measured.filter(run => run.health.maps[name]);
      const range = colourRange(having.flatMap(run => run.health.maps[name])); // one for all runs, to be compared
      for (const run of having) {
        const map = new HeatMap(name.replaceAll("_", " "), this.runs.length > 1 ? named(run) : "");
        map.draw(run.health.steps, run.health.maps[name], range);
        maps.push(map.node);
      }
    }
    this.health.replaceChildren(this.health.querySelector("h2"), element("p", {}, "A row a layer, the first at the top; " +
      "a column a measurement. Point at a cell to read it."), element("div", { class: "maps" }, ...maps));
  }

  drawRanks() {
    const measured = this.runs.filter(run => run.ranks);
    this.ranks.hidden = !measured.length;
    refill(this.ranks, measured.map(run => [run.name, run.ranks]), element("div", {}, ...measured.flatMap(run => [
      this.runs.length > 1 ? element("h3", {}, named(run)) : "", ...run.ranks.words.map(words => element("p", {}, words)),
      table(run.ranks.header, run.ranks.rows.map(rank => [
        rank.slow ? element("b", {}, rank.name) : rank.name,
        element("div", { class: "stack" }, ...rank.widths.map(width => element("i", { ".style": `width:${width}%` }))),
        ...rank.cells]))])));
  }

  drawSettings() {
    const rows = Object.entries(this.differing ?? {});
    this.settings.hidden = this.runs.length < 2;
    if (this.runs.length < 2) return;
    refill(this.settings, [rows, this.runs.map(run => run.name)], !rows.length ? element("p", {}, "None: these runs have the same recipe.")
      : table(["", ...this.runs.map(run => named(run))],
        rows.map(([name, values]) => [name, ...values.map(value => value ?? "–")])));
  }

  drawSamples() {
    const written = this.runs.filter(run => run.samples?.length);
    this.samples.hidden = !written.length;
    const columns = written.map(run => element("div", {},
      this.runs.length > 1 ? element("h3", {}, named(run)) : "",
      ...run.samples.slice(-MAX_SAMPLES_SHOWN).reverse().map((sample, i) => element("details", { open: i === 0 },
        element("summary", {}, `step ${short(sample.step ?? NaN)}`), element("blockquote", { dir: "auto" }, sample.text)))));
    refill(this.samples, written.map(run => [run.name, run.samples.length, run.samples.at(-1)]),
      element("div", { class: "side texts" }, ...columns));
  }

  drawEvents() {
    const several = this.runs.length > 1;
    const lines = this.runs.flatMap(run => run.events.map(event => ({ run, event })))
      .sort((a, b) => (String(a.event.at) < String(b.event.at) ? 1 : -1)).slice(0, MAX_EVENTS_SHOWN);
    this.events.hidden = !lines.length;
    const details = event => Object.entries(event).filter(([key]) => !["at", "event", "x"].includes(key))
      .map(([key, value]) => `${key} ${key === "step" ? short(value) : value}`).join(", ");
    refill(this.events, lines.map(({ run, event }) => [run.name, event]),
      table(["at (UTC)", ...(several ? ["run"] : []), "event", "details"], lines.map(({ run, event }) =>
        [String(event.at ?? "").replace("T", " ").replace("Z", ""), ...(several ? [named(run)] : []),
          String(event.event ?? ""), details(event)])));
  }
}

/** The part of a curve from `x` on: its beginning is far above the rest, which it would flatten. */
function since(curve, x) {
  const from = curve.x.findIndex(v => v >= x), end = from < 0 ? curve.x.length : from;
  return { x: curve.x.slice(end), mean: curve.mean.slice(end) };
}

export function named(run) {
  return element("span", { class: "run", title: run.name.slice(0, 1000) }, swatch(run.series), element("bdi", {}, run.name));
}

function part(title, name) {
  return element("section", { class: `part ${name}`, hidden: true }, element("h2", {}, title));
}

/** Put `node` under the heading of a part if its content has changed: what a reader has unfolded stays so. */
function refill(section, content, node) {
  const now = JSON.stringify(content);
  if (section.dataset.content === now) return;
  section.dataset.content = now;
  section.replaceChildren(section.querySelector("h2"), node);
}

function table(head, rows) {
  return element("div", { class: "wide" }, element("table", {},
    element("thead", {}, element("tr", {}, ...head.map(cell => element("th", {}, cell)))),
    element("tbody", {}, ...rows.map(row => element("tr", {}, ...row.map(cell => element("td", {}, cell)))))));
}

/** How far a run is, in one line. */
export function progress(last) {
  if (last?.step == null) return "no step yet";
  const parts = [`step ${short(last.step)}`];
  if (last.tokens != null) parts.push(`${short(last.tokens)} tokens`);
  if (last.seconds != null) parts.push(axisText(last.seconds, "seconds"));
  return parts.join(", ");
}
