// Curves over a common axis, as SVG styled by style.css: drag to zoom, double-click to see all, point to read values.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 58, RIGHT = 12, TOP = 10, BOTTOM = 26, HEIGHT = 230;
const SERIES = 6; // colours of style.css; from the seventh on they come again, dotted

/** An element with attributes, properties that begin with a dot, and children; text is only ever text. */
export function element(name, attributes = {}, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith(".")) made[key.slice(1)] = value;
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** The classes of curve number `series`: its colour and dash. */
export function styleOf(series) {
  return `s${series % SERIES}${series % (2 * SERIES) >= SERIES ? " again" : ""}`;
}

/** A short line in the colour and dash of a curve, for legends. */
export function swatch(series) {
  return element("svg:svg", { viewBox: "0 0 36 8", class: "swatch", "aria-hidden": "true" },
    element("svg:line", { class: `line ${styleOf(series)}`, x2: 36, y1: 4, y2: 4 }));
}

/** About `about` round numbers between `low` and `high`. */
export function ticks(low, high, about) {
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(f => f * power).reduce((a, b) => (Math.abs(b - rough) < Math.abs(a - rough) ? b : a));
  const values = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9 && values.length < 50; i++) values.push(i * step);
  return values;
}

/** Round numbers between two positive numbers, for a logarithmic axis. */
export function powers(low, high, about) {
  const decades = Math.log10(high / low);
  if (decades < 1) return ticks(low, high, about);
  const values = [], every = Math.ceil(decades / about), leads = decades < about / 2 ? [1, 2, 5] : [1];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += every) {
    values.push(...leads.map(lead => lead * 10 ** power).filter(v => v >= low && v <= high));
  }
  return values;
}

/** A number in few characters: 0.0031, 12.5k, 3e-7. */
export function short(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return "–";
  if (size >= 1e15 || (size > 0 && size < 1e-3)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= unit) return `${Number((value / (letter === "k" ? 1e3 : unit)).toPrecision(4))}${letter}`;
  }
  return Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 12 });
}

/** Seconds in words. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const [days, hours, minutes] = [86400, 3600, 60].map(unit => Math.floor(seconds / unit));
  if (days >= 2) return `${days} d ${Math.floor((seconds % 86400) / 3600)} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Number(seconds.toPrecision(3))} s`;
}

/** The text for a position on the horizontal axis. */
export function axisText(value, axis) {
  return axis === "seconds" ? duration(value) : short(value);
}

/** Running mean over about `window` points around each; gaps stay gaps and are not averaged over. */
export function smooth(values, window) {
  const half = Math.floor(window / 2);
  if (half < 1) return values;
  const sums = [0], counts = [0];
  for (const value of values) {
    sums.push(sums.at(-1) + (value ?? 0));
    counts.push(counts.at(-1) + (value === null ? 0 : 1));
  }
  return values.map((value, i) => {
    const from = Math.max(0, i - half), to = Math.min(values.length, 2 * i - from + 1); // at the end, of those before
    return value === null ? null : (sums[to] - sums[from]) / (counts[to] - counts[from]);
  });
}

export class Chart {
  /** `zoomed(low, high)` is called with the part of the axis that was dragged over; with nothing, for all of it. */
  constructor(title, unit, zoomed) {
    this.zoomed = zoomed;
    this.log = element("button", { type: "button", class: "log", "aria-pressed": "false",
      title: "logarithmic values" }, "log");
    this.drawing = element("svg:svg", { role: "img", class: "chart" });
    this.tip = element("div", { class: "reading", hidden: true });
    this.node = element("div", { class: "card" },
      element("div", { class: "head" }, element("h3", {}, title), element("small", {}, unit), this.log),
      element("div", { class: "canvas" }, this.drawing, this.tip));
    this.title = title;
    this.listen();
    this.observer = new ResizeObserver(() => this.content && this.paint());
    this.observer.observe(this.drawing);
  }

  /** `curves`: name, series, x, mean, low and high (or none), smoothed, thin. `marks`: x, label. `low`, `high`: of the axis. */
  draw(content) {
    this.content = content;
    this.paint();
  }

  paint() {
    const { curves, axis, axisName, logX, logY, marks } = this.content;
    const width = this.drawing.clientWidth || 420, right = width - RIGHT, bottom = HEIGHT - BOTTOM;
    const isDrawable = v => v !== null && Number.isFinite(v) && (!logY || v > 0);
    let [lowX, highX] = [this.content.low, this.content.high];
    if (!(highX > lowX)) [lowX, highX] = logX ? [lowX / 2, lowX * 2] : [lowX - 0.5, lowX + 0.5];
    const inside = (c, v, i) => isDrawable(v) && c.x[i] >= lowX && c.x[i] <= highX;
    const values = curves.flatMap(c => c.mean.filter((v, i) => inside(c, v, i)));
    let [lowY, highY] = extent(values);
    const pad = (highY - lowY) * 0.05 || Math.abs(highY) * 0.1 || 1;
    [lowY, highY] = logY
      ? [lowY / (highY / lowY || 2) ** 0.05, highY * (highY / lowY || 2) ** 0.05]
      : [lowY >= 0 ? Math.max(0, lowY - pad) : lowY - pad, highY + pad];
    if (logY && !(highY > lowY)) [lowY, highY] = [lowY / 2 || 0.1, highY * 2 || 1];
    const sx = scale(lowX, highX, LEFT, right, logX), sy = scale(lowY, highY, bottom, TOP, logY);
    this.scale = { sx, lowX, highX, width };

    const parts = [];
    for (const tick of (logY ? powers : ticks)(lowY, highY, 4)) {
      const y = sy(tick);
      parts.push(element("svg:line", { class: "grid", x1: LEFT, x2: right, y1: y, y2: y }),
        element("svg:text", { class: "end", x: LEFT - 6, y: y + 4 }, short(tick)));
    }
    const spaced = axis === "seconds" && !logX ? clock : logX ? powers : ticks;
    for (const tick of spaced(lowX, highX, Math.max(2, width / 110))) {
      parts.push(element("svg:text", { class: "middle", x: Math.min(sx(tick), right - 8), y: bottom + 18 }, axisText(tick, axis)));
    }
    const clip = element("svg:svg", { x: LEFT, y: TOP - 2, width: Math.max(1, right - LEFT), height: bottom - TOP + 4,
      viewBox: `${LEFT} ${TOP - 2} ${Math.max(1, right - LEFT)} ${bottom - TOP + 4}` });
    for (const mark of marks) {
      if (!(mark.x >= lowX && mark.x <= highX)) continue;
      clip.append(element("svg:line", { class: `mark ${mark.kind}`, x1: sx(mark.x), x2: sx(mark.x), y1: TOP, y2: bottom }));
    }
    const dots = []; // not clipped at the edges
    for (const curve of curves) {
      const style = styleOf(curve.series) + (curve.thin ? " thin" : "");
      const alone = curves.length <= 4; // of many, what lies behind one curve hides the others
      if (alone && curve.low) clip.append(element("svg:path", { class: `band ${style}`, d: band(curve, sx, sy, isDrawable) }));
      else if (alone && !curve.low && !curve.thin && curve.smoothed !== curve.mean) {
        clip.append(element("svg:path", { class: `line faint ${style}`, d: path(curve.x, curve.mean, sx, sy, isDrawable) }));
      }
      clip.append(element("svg:path", { class: `line ${style}`, d: path(curve.x, curve.smoothed, sx, sy, isDrawable) }));
      if (curve.dots) {
        dots.push(...curve.x.flatMap((x, i) => (!inside(curve, curve.mean[i], i) ? []
          : element("svg:circle", { class: `dot ${style}`, cx: sx(x), cy: sy(curve.mean[i]), r: 3.5 }))));
      }
    }
    this.cross = element("svg:g", { class: "cross" });
    this.span = element("svg:rect", { class: "span", y: TOP, height: bottom - TOP, width: 0 });
    clip.append(this.span, this.cross);
    if (!values.length) parts.push(element("svg:text", { class: "middle", x: (LEFT + right) / 2, y: HEIGHT / 2 }, "nothing here"));
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.setAttribute("aria-label", `${this.title} over ${axisName}: ` +
      curves.map(c => `${c.name} ${short(c.smoothed.findLast(v => v !== null) ?? NaN)}`).join(", "));
    this.drawing.replaceChildren(...parts, clip, ...dots);
    this.log.setAttribute("aria-pressed", String(logY));
    this.sy = sy;
    if (this.pointed !== undefined) this.point(this.pointed);
  }

  listen() {
    const at = event => {
      const box = this.drawing.getBoundingClientRect();
      return (event.clientX - box.left) / box.width * this.scale.width;
    };
    let from = null;
    const clamp = x => Math.min(Math.max(x, LEFT), this.scale.width - RIGHT);
    this.drawing.addEventListener("pointerdown", event => {
      if (event.button || !this.scale || event.pointerType === "touch") return;
      from = clamp(at(event));
      this.drawing.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    this.drawing.addEventListener("pointermove", event => {
      if (!this.scale) return;
      const x = clamp(at(event));
      if (from !== null) {
        this.span.setAttribute("x", Math.min(from, x));
        this.span.setAttribute("width", Math.abs(x - from));
      }
      this.point(x);
    });
    this.drawing.addEventListener("pointerup", event => {
      if (from === null) return;
      const to = clamp(at(event)), [low, high] = [from, to].sort((a, b) => a - b);
      from = null;
      this.span.setAttribute("width", 0);
      if (high - low > 5) this.zoomed(this.scale.sx.inverse(low), this.scale.sx.inverse(high));
    });
    this.drawing.addEventListener("pointercancel", () => { from = null; });
    this.drawing.addEventListener("dblclick", () => this.zoomed());
    this.drawing.addEventListener("pointerleave", () => {
      this.pointed = undefined;
      this.cross?.replaceChildren();
      this.tip.hidden = true;
    });
  }

  /** Show the values of the curves at a position of the drawing. */
  point(x) {
    this.pointed = x;
    const { curves, axis, axisName, marks } = this.content, { sx, width } = this.scale, value = sx.inverse(x);
    const rows = [], dots = [];
    let near = null;
    for (const curve of curves) {
      const i = nearest(curve.x, value);
      if (i < 0 || Math.abs(sx(curve.x[i]) - x) > 40) continue;
      if (near === null || Math.abs(curve.x[i] - value) < Math.abs(near - value)) near = curve.x[i];
      const v = curve.smoothed[i], spread = curve.low && curve.low[i] !== curve.high[i] && curve.low[i] !== null
        ? ` (${short(curve.low[i])} to ${short(curve.high[i])})` : "";
      rows.push(element("div", {}, swatch(curve.series), element("b", {}, v === null ? "no number" : short(v)), spread,
        curves.length > 1 ? element("bdi", {}, ` ${curve.name}`) : ""));
      if (v !== null && (!this.content.logY || v > 0)) {
        dots.push(element("svg:circle", { class: `dot ${styleOf(curve.series)}`, cx: sx(curve.x[i]), cy: this.sy(v), r: 3.5 }));
      }
    }
    for (const mark of marks) if (Math.abs(sx(mark.x) - x) < 5) rows.push(element("div", { class: "event" }, mark.label));
    this.cross.replaceChildren(element("svg:line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }), ...dots);
    this.tip.hidden = !rows.length;
    this.tip.replaceChildren(element("div", {}, `${axisName} ${axisText(near ?? value, axis)}`), ...rows);
    const left = x > width / 2;
    this.tip.style.left = left ? "auto" : `${x + 14}px`;
    this.tip.style.right = left ? `${width - x + 14}px` : "auto";
  }
}

/** From the least to the greatest number. */
export function extent(values) {
  let [least, most] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return least <= most ? [least, most] : [0.1, 1];
}

function scale(low, high, from, to, logarithmic) {
  const f = logarithmic ? Math.log : v => v, inverse = logarithmic ? Math.exp : v => v;
  const [start, length] = [f(low), f(high) - f(low) || 1];
  const forward = v => Math.round((from + (f(v) - start) / length * (to - from)) * 10) / 10;
  forward.inverse = p => inverse(start + (p - from) / (to - from) * length);
  return forward;
}

/** Round times: whole seconds, minutes, hours or days. */
function clock(low, high, about) {
  const unit = [86400, 3600, 60, 1].find(u => (high - low) / u >= about / 2) ?? 1;
  return ticks(low / unit, high / unit, about).map(v => v * unit);
}

function path(x, y, sx, sy, isDrawable) {
  let d = "", drawing = false;
  for (let i = 0; i < x.length; i++) {
    if (isDrawable(y[i])) {
      // A point between two gaps is a line of no length, which round ends make a dot.
      d += `${drawing ? "L" : "M"}${sx(x[i])} ${sy(y[i])}`;
      if (!drawing && !isDrawable(y[i + 1] ?? null)) d += "h0.1";
    }
    drawing = isDrawable(y[i]);
  }
  return d;
}

function band(curve, sx, sy, isDrawable) {
  let d = "", i = 0;
  while (i < curve.x.length) {
    const from = i;
    while (i < curve.x.length && isDrawable(curve.low[i]) && isDrawable(curve.high[i])) i++;
    if (i > from + 1) {
      d += "M";
      for (let j = from; j < i; j++) d += `${sx(curve.x[j])} ${sy(curve.high[j])} `;
      for (let j = i - 1; j >= from; j--) d += `${sx(curve.x[j])} ${sy(curve.low[j])} `;
      d += "Z";
    }
    i++;
  }
  return d;
}

/** Index of the number nearest to `value` in a rising list; -1 in an empty one. */
function nearest(sorted, value) {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - sorted[low - 1] < sorted[low] - value ? low - 1 : high;
}
