// Takes what the daemon sends, keeps the last minutes, and has everything drawn.

import { Charts, ArmMap } from "./charts.js";
import { say, spanFor } from "./chart.js";
import { timeOfDay } from "./words.js";
import { heading, offerKinds, update } from "./panels.js";
import { Servers } from "./servers.js";

/** Points older than this go, in seconds. */
const KEPT_S = 600;
const NOTES_KEPT = 300;
/** Without news for this long, what is shown is called old. */
const STALE_MS = 5000;
const AGAIN_MS = 5000;

const byId = (id) => document.getElementById(id);
const charts = new Charts(byId("charts"), byId("spoken"));
const map = new ArmMap(byId("arm-map"));
const servers = new Servers(byId("servers"), choose);

/** All that runs there, and of that the server that is shown; `null` where there is none. */
let host = null;
let state = null;
/** The name of the server that was asked for; the first where none was. */
let chosen = new URLSearchParams(location.search).get("server");
let points = [];
let notes = [];
/** When the latest news came: for the eye, and on a clock that nobody sets. */
let cameAt = null;
let cameMs = performance.now();
let source = null;
let refused = false;
let again = null;
let due = false;

/** Takes points in. After a pause the daemon sends again what is here already: what it sends counts. */
function takePoints(more) {
  if (more.length === 0) return;
  const from = more[0].at_unix_s;
  const oldest = more[more.length - 1].at_unix_s - KEPT_S;
  points = points
    .filter((point) => point.at_unix_s < from)
    .concat(more)
    .filter((point) => point.at_unix_s >= oldest);
}

function takeHost(all) {
  if (host && host.version !== all.version) {
    // Another agft has come up at this address, perhaps with another page.
    location.reload();
    return;
  }
  if (host && host.started_unix_s !== all.started_unix_s) notes = [];
  host = all;
  cameMs = performance.now();
  cameAt = Date.now() / 1000;
  const next = all.servers.find((one) => one.name === chosen) ?? all.servers[0] ?? null;
  if (state && next?.name !== state.name) {
    // What is here is another server's; so are the points, unless it was asked for.
    state = null;
    notes = [];
    if (next && next.name !== chosen) choose(next.name);
  }
  if (next) takeState(next);
  else schedule();
}

function takeState(next) {
  const first = state === null;
  const seen = notes.length ? notes[notes.length - 1].number : 0;
  const fresh = next.notes.filter((note) => note.number > seen);
  notes = notes.concat(fresh).slice(-NOTES_KEPT);
  const alarms = fresh.filter((note) => note.kind === "fault" || note.kind === "limit");
  if (!first && alarms.length) say(byId("spoken"), alarms.map((note) => note.text).join(". "));
  state = next;
  schedule();
}

/** Shows this server from now on; `null`: whichever is the first. */
function choose(name) {
  chosen = name;
  const url = new URL(location.href);
  if (name === null) url.searchParams.delete("server");
  else url.searchParams.set("server", name);
  history.replaceState(null, "", url);
  points = [];
  source?.close();
  clearTimeout(again);
  connect();
}

function schedule() {
  if (due || document.hidden) return;
  due = true;
  requestAnimationFrame(draw);
}

function draw() {
  due = false;
  if (!host) return;
  heading(host, state);
  servers.update(host, state?.name);
  byId("main").hidden = state === null;
  if (state) drawServer();
  showConnection();
}

function drawServer() {
  update(state, points, notes);
  map.update(state);
  if (points.length) {
    const reach = points[points.length - 1].at_unix_s - points[0].at_unix_s;
    const [span] = spanFor(reach);
    say(byId("span"), span === 60 ? "minute" : `${span / 60} minutes`);
    charts.update(points, state);
  }
}

function showConnection() {
  const stale = performance.now() - cameMs > STALE_MS + (refused ? AGAIN_MS : 0);
  const open = source?.readyState === EventSource.OPEN;
  let text = "live";
  if (stale && cameAt === null) text = "no connection";
  else if (stale) text = `${open ? "no news" : "no connection"} since ${timeOfDay(cameAt)}`;
  else if (cameAt === null) text = "connecting";
  else if (refused) text = "every 5 s: too many pages are open";
  const pill = byId("connection");
  say(pill, text);
  pill.className = `pill ${stale ? "bad" : cameAt === null ? "" : "good"}`;
  document.body.classList.toggle("stale", stale && cameAt !== null);
}

function connect() {
  source = new EventSource(chosen === null ? "events" : `events?server=${encodeURIComponent(chosen)}`);
  const points = (event) => takePoints(JSON.parse(event.data));
  source.addEventListener("open", () => {
    refused = false;
  });
  source.addEventListener("history", points);
  source.addEventListener("points", points);
  source.addEventListener("state", (event) => takeHost(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    showConnection();
    // A stream that ended opens again by itself; one that was refused does not.
    if (source.readyState !== EventSource.CLOSED) return;
    again = setTimeout(connect, AGAIN_MS);
    ask();
  });
}

/** Without a stream, the state alone. */
async function ask() {
  try {
    const answer = await fetch("api/state");
    if (!answer.ok) return;
    const all = await answer.json();
    if (chosen !== null && !all.servers.some((one) => one.name === chosen)) {
      // It is gone: then the first.
      choose(null);
      return;
    }
    refused = true;
    takeHost(all);
  } catch {
    // Nobody is there: the time since the latest news says so.
  }
}

/** The theme: the system's, or the one chosen here. */
function offerThemes() {
  const themes = ["system", "light", "dark"];
  const button = byId("theme");
  const read = () => {
    try {
      return localStorage.getItem("agft-theme");
    } catch {
      return null;
    }
  };
  let theme = themes.includes(read()) ? read() : "system";
  const apply = () => {
    say(button, `Theme: ${theme}`);
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try {
      localStorage.setItem("agft-theme", theme);
    } catch {
      // Then it holds until the page is closed.
    }
    apply();
  });
  apply();
}

offerThemes();
offerKinds(schedule);
byId("all-arms").addEventListener("change", schedule);
document.addEventListener("visibilitychange", schedule);
setInterval(showConnection, 1000);
connect();
