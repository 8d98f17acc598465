// The live page: asks its server again and again, and keeps asking when there is no answer.

import { Board, FIRST_VIEW, progress } from "./board.js";
import { duration, element, swatch } from "./chart.js";

const MILLISECONDS = 2000, WHILE_READING = 60, WHILE_HIDDEN = 15000, AT_FIRST = 6;
const STATES = {
  waiting: "waiting", running: "running", quiet: "quiet", finished: "finished", stopped: "stopped",
  diverged: "diverged", killed: "killed", gone: "deleted",
};

const data = new Map(); // id → what is known of a run
let allRuns = [], began = null, selected = null, settings = { ids: [], settings: {} }, turn = 0, timer = 0, asking = false, again = false;

const { view, ids } = readAddress();
const board = new Board(view, () => { writeAddress(); ask(); });
const list = element("ul", { class: "runs", "aria-label": "Runs" });
const lines = new Map(); // id → its line in the list
const noRuns = element("p", { hidden: true }, "No runs here yet. They appear when they begin.");
const notice = element("p", { class: "notice", role: "status", hidden: true });
document.querySelector("main").append(notice, list, noRuns, ...board.nodes);
selected = ids;
addEventListener("hashchange", () => {
  const { view, ids } = readAddress();
  board.view = { ...FIRST_VIEW, ...view };
  selected = ids ?? selected;
  redraw();
  ask();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
ask();

/** One round of requests; if another was wanted meanwhile, it follows. */
async function ask() {
  if (asking) { again = true; return; }
  asking = true;
  clearTimeout(timer);
  let wait = document.hidden ? WHILE_HIDDEN : MILLISECONDS;
  try {
    do {
      again = false;
      await askOnce();
    } while (again);
    notice.hidden = true;
    if (selectedRuns().some(run => data.get(run.id)?.share_read < 1)) wait = WHILE_READING;
  } catch (error) {
    if (notice.hidden) {
      notice.textContent = `No answer from groundup watch since ${new Date().toLocaleTimeString("en-GB")}. ` +
        "The page keeps what it has, and goes on when the program, or the tunnel to it, is back.";
      notice.hidden = false;
    }
  } finally {
    asking = false;
    timer = setTimeout(ask, wait);
  }
}

async function askOnce() {
  const { view } = board, mine = ++turn;
  const answer = await get("/api/runs");
  if (began !== answer.began) for (const known of data.values()) known.version = known.more = undefined;
  began = answer.began;
  allRuns = answer.runs;
  selected ??= allRuns.slice(0, AT_FIRST).map(run => run.id);
  const width = Math.round(Math.min(1600, Math.max(300, board.grid.clientWidth / (innerWidth > 900 ? 2 : 1))));
  const query = new URLSearchParams({ axis: view.axis, width, logarithmic: view.logX });
  for (const end of ["low", "high"]) if (view[end] !== null) query.set(end, view[end]);
  await Promise.all(selectedRuns().map(async ({ id }) => {
    const known = data.get(id) ?? {}, address = String(query);
    const since = known.address === address && known.version ? `&since=${known.version}` : "";
    const [curves, more] = await Promise.all([
      get(`/api/curves/${id}?${address}${since}`), get(`/api/more/${id}?since=${known.more ?? ""}`)]);
    if (curves.metrics) Object.assign(known, curves, { address });
    if (more.samples) Object.assign(known, { samples: more.samples, health: more.health });
    known.more = more.version;
    data.set(id, known);
  }));
  const ids = selectedRuns().map(run => run.id).join();
  if (ids !== settings.ids.join() && ids.includes(",")) settings = await get(`/api/differences?ids=${ids}`);
  if (mine === turn) redraw();
}

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(30000) });
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.json();
}

function selectedRuns() {
  return allRuns.filter(run => selected?.includes(run.id));
}

function redraw() {
  const series = new Map(allRuns.map((run, i) => [run.id, i]));
  for (const run of allRuns) {
    if (!lines.has(run.id)) lines.set(run.id, newLine(run, series.get(run.id)));
    const known = data.get(run.id), line = lines.get(run.id);
    const reading = known?.share_read < 1 ? `reading, ${Math.floor(known.share_read * 100)} %` : progress(known?.last);
    const since = ["quiet", "killed"].includes(run.state) && run.seconds_since_a_line != null
      ? `, last line ${duration(Math.round(run.seconds_since_a_line))} ago` : "";
    line.node.className = run.state;
    line.box.checked = selected.includes(run.id);
    line.text.replaceChildren(element("b", {}, STATES[run.state] ?? run.state),
      line.box.checked ? ` · ${reading}${since}` : "");
    if (!line.node.isConnected) list.append(line.node);
  }
  noRuns.hidden = allRuns.length > 0;
  const runs = selectedRuns().filter(run => data.get(run.id)?.metrics)
    .map(run => ({ ...data.get(run.id), name: run.name, series: series.get(run.id) }));
  const positions = runs.map(run => settings.ids.indexOf(run.id));
  board.show(runs, Object.fromEntries(Object.entries(settings.settings)
    .map(([name, values]) => [name, positions.map(i => values[i] ?? null)])));
  const running = allRuns.filter(run => run.state === "running").length;
  document.title = `${running ? `${running} running` : "groundup"}: watch`;
}

function newLine(run, series) {
  const box = element("input", { type: "checkbox" }), text = element("small");
  box.addEventListener("change", () => {
    selected = allRuns.map(other => other.id).filter(id => (id === run.id ? box.checked : selected.includes(id)));
    writeAddress();
    redraw();
    ask();
  });
  const node = element("li", {}, element("label", { title: run.name.slice(0, 1000) }, box, swatch(series),
    element("bdi", { class: "name" }, run.name), text));
  return { node, box, text };
}

/** The view is part of the address, so that it can be bookmarked and sent. */
function writeAddress() {
  const { view } = board, parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(view)) {
    if (JSON.stringify(value) !== JSON.stringify(FIRST_VIEW[name])) parameters.set(name, Array.isArray(value) ? value.join() : value);
  }
  if (selected) parameters.set("runs", selected.join());
  history.replaceState(null, "", `#${parameters}`);
}

function readAddress() {
  const parameters = new URLSearchParams(location.hash.slice(1)), view = {};
  const number = name => { const v = parseFloat(parameters.get(name)); return Number.isFinite(v) ? v : null; };
  if (["step", "tokens", "seconds", "flops"].includes(parameters.get("axis"))) view.axis = parameters.get("axis");
  view.logX = parameters.get("logX") === "true";
  view.logs = (parameters.get("logs") ?? "").split(",").filter(Boolean).slice(0, 64);
  view.smoothing = Math.min(20, Math.max(0, number("smoothing") ?? FIRST_VIEW.smoothing));
  view.low = number("low");
  view.high = number("high");
  return { view, ids: parameters.has("runs") ? parameters.get("runs").split(",").slice(0, 100) : null };
}
