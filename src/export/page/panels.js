// Everything beside the charts: heading, tiles, clocks to choose from, news, counts, GPUs.

import { element, say } from "./chart.js";
import * as words from "./words.js";

const byId = (id) => document.getElementById(id);

/** Where what is shown follows from a few values only, it is built again when they change and not each second. */
function whenChanged(build) {
  let before;
  return (...values) => {
    const now = JSON.stringify(values);
    if (now === before) return;
    before = now;
    build(...values);
  };
}

/** What parking saved, and of what powers that was reckoned. */
function saved_by_parking({ saved, saved_about_j, idle_power_w, parked_power_w }) {
  const powers = saved_about_j === null ? "" : `${words.short(idle_power_w)} W idle, ${words.short(parked_power_w)} W parked`;
  if (saved === null) return [saved_about_j === null ? "unknown" : `about ${words.joules(saved_about_j)}`, powers];
  return [words.joules(saved.joules), `95 %: ${words.joules(saved.low)} to ${words.joules(saved.high)}; ${powers}`];
}

/** The heading: of the server that is shown, or of GPUs without one. */
export function heading(host, state) {
  const gpus = state?.gpus ?? host.park?.gpus ?? [];
  const [first] = gpus;
  const more = gpus.length > 1 ? ` and ${gpus.length - 1} more` : "";
  const of = host.servers.length > 1 ? `${state.name}: ` : "";
  const name = of + (first ? first.name + more : "no GPU");
  say(byId("gpu"), name);
  document.title = state ? `${words.clocks(state.asked)}, agft on ${name}` : `agft park on ${name}`;
  const mode = byId("mode");
  const now = state?.mode ?? host.park?.mode;
  mode.hidden = !now;
  say(mode, words.plain(now));
  mode.title = words.modeWords(now, Boolean(state?.asked));
  mode.className = `pill mode ${now}`;
  byId("dry").hidden = !host.dry_run;
  const facts = [
    ...(state ? policy(state) : []),
    `up ${words.duration(host.at_unix_s - host.started_unix_s)}`,
    `agft ${host.version}, process ${host.pid}`,
  ];
  say(byId("about"), facts.filter(Boolean).join(" · "));
}

/** Since when the choice stands. */
function since({ converged_round, converged_unix_s }) {
  if (!words.known(converged_round)) return "";
  const at = words.known(converged_unix_s) ? ` at ${words.timeOfDay(converged_unix_s)}` : "";
  return ` in round ${words.count(converged_round)}${at}`;
}

function policy({ policy, objective, learner }) {
  return [
    `${policy}${learner.handed_over ? `, handed over to linucb: ${learner.handed_over}` : ""}`,
    `makes ${objective.toUpperCase()} small`,
    learner.converged ? `converged${since(learner)}` : "not converged",
  ];
}

/** All tiles that are not about the whole run are means of so many seconds. */
const RECENT_S = 30;

/** The mean of what is known of the last seconds, each second counting by its weight. */
function recent(points, value, weight = () => 1) {
  const now = points.at(-1)?.at_unix_s;
  const weighed = points
    .filter((point) => point.at_unix_s > now - RECENT_S && words.known(value(point)) && weight(point) > 0)
    .map((point) => [value(point), weight(point)]);
  const total = weighed.reduce((sum, [, share]) => sum + share, 0);
  return total > 0 ? weighed.reduce((sum, [one, share]) => sum + one * share, 0) / total : undefined;
}

/** The figures above the charts: name, value, what belongs to it, and whether it is good (`null`: neither). */
function figures(state, points) {
  const { load, round, gpus } = state;
  const [gpu] = gpus;
  const capped = gpus.some((one) => one.capped);
  const saved = words.savings(state);
  const edp = words.edp(state);
  const mean = (key, weight) => recent(points, (point) => point[key], weight);
  const span = `mean of ${words.duration(RECENT_S)}`;
  const broken = (key) => (round?.violated === key ? false : null);
  const locked = state.asked ? `asked for ${words.clocks(state.asked)}` : "left to the driver";
  const asked = state.not_given_back ? "not taken back by the driver: a lock may be in force" : locked;
  const degrees = words.known(gpu?.temperature_c) ? `${words.count(gpu.temperature_c)} °C, ` : "";
  return [
    [saved.title, saved.value, saved.detail, saved.good],
    [edp.title, edp.value, edp.detail, edp.good],
    [
      "Core clock",
      words.mhz(gpu?.core_clock),
      capped ? `${asked}; held low by power or heat` : asked,
      capped || state.not_given_back ? false : null,
    ],
    ["Power", words.watts(mean("power_w")), `${span}; ${degrees}${words.percent(gpu?.utilization)} busy now`, null],
    [
      "TPOT",
      words.latency(mean("tpot_s", (point) => point.decode_tps)),
      `${span}; ${words.limitWords(state.limits, "tpot")}`,
      broken("tpot"),
    ],
    ["TTFT", words.latency(mean("ttft_s")), `${span}; ${words.limitWords(state.limits, "ttft")}`, broken("ttft")],
    [
      "Load",
      words.perSecond(mean("decode_tps")),
      `${span}; now ${words.count(load.running)} running, ${words.count(load.waiting)} waiting, KV cache ${words.percent(load.kv_usage)}`,
      null,
    ],
  ];
}

/** The verdict on the run, in one line. */
function verdict({ verdict }) {
  const line = byId("verdict");
  say(line, verdict?.words ?? words.NOT_KNOWN);
  line.className = verdict?.good === true ? "good" : verdict?.good === false ? "bad" : "";
}

function tiles(state, points) {
  const list = byId("tiles");
  const all = figures(state, points);
  if (list.children.length !== all.length) {
    const tile = () => element("div", {}, element("dt"), element("dd", { class: "value" }), element("dd", { class: "muted" }));
    list.replaceChildren(...all.map(tile));
  }
  all.forEach(([name, value, detail, good], k) => {
    const [title, figure, rest] = list.children[k].children;
    say(title, name);
    say(figure, value);
    say(rest, detail);
    const style = value === words.UNKNOWN || value === words.NOT_KNOWN ? "none" : good === null ? "" : good ? "good" : "bad";
    figure.className = `value ${style}`;
  });
}

const head = (...names) =>
  element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));

function armRow(arm, asked, best, expected) {
  const marks = [];
  if (words.sameClocks(arm.clocks, best)) marks.push("best");
  if (words.sameClocks(arm.clocks, asked)) marks.push("asked for");
  const reward = words.known(arm.mean_reward) ? arm.mean_reward.toFixed(3) : "–";
  const spread = words.known(arm.uncertainty) ? ` ± ${arm.uncertainty.toFixed(3)}` : "";
  const tags = marks.flatMap((mark) => [
    " ",
    element("span", { class: `tag ${mark === "best" ? "best" : ""}` }, mark),
  ]);
  const why = arm.why ? `${words.statusWords(arm.status)}: ${arm.why}` : words.statusWords(arm.status);
  const style = arm.status === "available" ? null : "out";
  return element(
    "tr",
    { class: [style, marks.length ? "marked" : null].filter(Boolean).join(" ") || null },
    element("th", { scope: "row" }, words.clocks(arm.clocks), ...tags),
    element("td", { class: "n" }, words.count(arm.lessons)),
    element("td", { class: "n", title: expected }, reward + spread),
    element("td", { class: "why" }, why),
  );
}

const arms = whenChanged((list, asked, best, floor, policy, all) => {
  const tried = list.filter((arm) => arm.lessons > 0);
  const out = list.filter((arm) => arm.status !== "available");
  const summary = [
    `${list.length} clocks`,
    `${tried.length} tried`,
    `${out.length} ruled out`,
    best ? `best ${words.clocks(best)}` : "no best one yet",
    floor ? `floor ${words.mhz(floor)}` : null,
  ];
  say(byId("arms-summary"), summary.filter(Boolean).join(", "));
  const chosen = all
    ? list
    : list.filter((arm) => arm.lessons > 0 || arm.status !== "available" || words.sameClocks(arm.clocks, asked));
  const expected = policy === "structured" ? "expected, from the model of all clocks" : "mean of its lessons";
  const rows = chosen.map((arm) => armRow(arm, asked, best, expected));
  if (rows.length === 0) {
    rows.push(element("tr", {}, element("td", { colspan: "4", class: "muted" }, "none tried yet")));
  }
  byId("arms").replaceChildren(head("core clock", "lessons", "reward", "status and why"), element("tbody", {}, ...rows));
});

const KINDS = [["decision", "decisions"], ["fault", "faults"], ["limit", "limits"], ["info", "other"]];
const shown = new Set(KINDS.map(([kind]) => kind));

const notes = whenChanged((list) => {
  const chosen = list.filter((note) => shown.has(note.kind) || !KINDS.some(([kind]) => kind === note.kind));
  const items = chosen.toReversed().map((note) =>
    element(
      "li",
      { class: note.kind },
      element("time", { datetime: new Date(1000 * note.at_unix_s).toISOString() }, words.timeOfDay(note.at_unix_s)),
      element("span", { class: "tag" }, note.kind),
      element("span", { class: "text" }, note.text),
    ),
  );
  if (items.length === 0) items.push(element("li", { class: "muted" }, "nothing yet"));
  byId("notes").replaceChildren(...items);
});

/** Boxes that choose which kinds of news are listed. */
export function offerKinds(changed) {
  const boxes = KINDS.map(([kind, name]) => {
    const box = element("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      if (box.checked) shown.add(kind);
      else shown.delete(kind);
      changed();
    });
    return element("label", {}, box, ` ${name}`);
  });
  byId("kinds").append(...boxes);
}

const sum = (map) => Object.values(map).reduce((total, value) => total + value, 0);
const listed = (map) =>
  Object.entries(map)
    .filter(([, value]) => value > 0)
    .map(([name, value]) => `${words.plain(name)} ${words.count(value)}`)
    .join(", ");

const counts = whenChanged((count, parking) => {
  const facts = [
    ["Faults", words.count(sum(count.faults)), listed(count.faults), sum(count.faults) > 0],
    [
      "Limits broken",
      words.count(sum(count.limit_violations)),
      count.violated_s > 0 ? `${listed(count.limit_violations)}; ${words.duration(count.violated_s)} in all` : "",
      sum(count.limit_violations) > 0,
    ],
    ["Outages", words.count(count.outages), `${words.count(count.scrape_failures)} pages not had`, count.outages > 0],
    ["Clock changes", words.count(count.clock_changes), "", false],
    ["Rounds", words.count(count.rounds), `${words.count(count.lessons)} taught something`, false],
    ["Requests finished", words.count(count.finished), "", false],
    ["Tokens generated", words.count(count.generated_tokens), `${words.count(count.prompt_tokens)} of prompts`, false],
    [
      "Parked",
      `${words.duration(parking.books.parked_s)} in ${words.count(count.parkings)} spells`,
      sum(count.wakes) ? `woken by ${listed(count.wakes)}` : "",
      false,
    ],
    ["Saved by parking", ...saved_by_parking(parking), false],
  ];
  const facts_list = facts.map(([name, value, detail, bad]) =>
    element(
      "div",
      { class: bad ? "bad" : null },
      element("dt", {}, name),
      element("dd", {}, element("b", {}, value), detail ? element("span", { class: "muted" }, ` (${detail})`) : null),
    ),
  );
  const all = sum(count.mode_s);
  const spent = Object.entries(count.mode_s).filter(([, seconds]) => seconds >= 0.5);
  spent.sort(([, a], [, b]) => b - a);
  const modes = spent.map(([mode, seconds]) => {
    const bar = element("span", { class: `bar ${mode}` });
    bar.style.width = `${(100 * seconds) / all}%`;
    return element(
      "li",
      {},
      element("span", {}, words.plain(mode)),
      element("span", { class: "track" }, bar),
      element("span", { class: "n" }, words.duration(seconds)),
    );
  });
  byId("counts").replaceChildren(
    element("dl", { class: "facts" }, ...facts_list),
    element("h3", {}, "Time in each mode"),
    element("ul", { class: "modes" }, ...modes),
  );
});

const byLoad = whenChanged((rows, objective) => {
  byId("by-load").parentElement.parentElement.hidden = rows.length === 0;
  const against = (ratio) => words.change(ratio - 1, "less", "more");
  const expected = (of) => {
    if (!of) return words.NOT_KNOWN;
    const ratio = Math.exp(of.log);
    return `${against(ratio)} ±${words.percent(1.96 * ratio * of.sd, 1)}`;
  };
  const cells = rows.map((row) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, row.share === 1 ? "as now" : `${row.share}\u00a0×`),
      element("td", { class: "n" }, words.known(row.core) ? words.mhz(row.core) : "driver default"),
      element("td", { class: "n" }, against(row.cost_ratio)),
      element("td", { class: "n" }, against(row.tpot_ratio)),
      element("td", { class: "n" }, expected(row.ratios?.energy)),
    ),
  );
  const names = ["load", "core clock", objective.toUpperCase(), "TPOT", "energy"];
  byId("by-load").replaceChildren(head(...names), element("tbody", {}, ...cells));
});

const gpus = whenChanged((list) => {
  const rows = list.map((gpu) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", title: gpu.uuid }, `${gpu.index}: ${gpu.name}`),
      ...[
        words.mhz(gpu.core_clock),
        words.mhz(gpu.memory_clock),
        words.watts(gpu.power_w),
        words.known(gpu.temperature_c) ? `${words.count(gpu.temperature_c)} °C` : words.UNKNOWN,
        words.percent(gpu.utilization),
        words.joules(gpu.energy_j),
        gpu.capped ? "held low" : "",
      ].map((text) => element("td", { class: text === words.UNKNOWN ? "n muted" : "n" }, text)),
    ),
  );
  byId("gpus").replaceChildren(
    head("GPU", "core", "memory", "power", "heat", "busy", "energy", ""),
    element("tbody", {}, ...rows),
  );
});

/** Brings everything up to date. `points` of the last minutes and `news`, the notes seen so far: oldest first. */
export function update(state, points, news) {
  verdict(state);
  tiles(state, points);
  const { learner } = state;
  arms(learner.arms, state.asked, learner.best, state.floor, state.policy, byId("all-arms").checked);
  notes(news, [...shown]);
  counts(state.counts, state.parking);
  byLoad(learner.by_load ?? [], state.objective);
  gpus(state.gpus);
}
