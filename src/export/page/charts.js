// Which charts there are, the cursor they share, and the map of clocks.

import { TimeChart, element, svg, niceScale, say } from "./chart.js";
import * as words from "./words.js";

const { known } = words;
const inMs = (value) => (value < 1 ? `${Math.round(1000 * value * 10) / 10} ms` : `${value} s`);
const plainTick = (value) => String(Math.round(value * 1000) / 1000);
const kilo = (value) => (value >= 1000 ? `${Math.round(value / 100) / 10}k` : plainTick(value));

const limit = (key) => (state) => {
  if (!state.limits) return [];
  const { statistic } = state.limits;
  return [{ label: statistic === "mean" ? "limit" : `limit on the ${statistic}`, value: state.limits[key] }];
};

/** Measured against default clocks, as the two curves have it at one time. */
function against(_point, _state, [standard, measured]) {
  if (!known(measured) || !(standard > 0)) return "";
  return words.change(measured / standard - 1, "better", "worse");
}

const PLAIN = { name: "mean", weight: () => 1 };
/** A round of a long prompt gives few tokens, and each of them late: it counts by those tokens, as it does for users. */
const BY_TOKENS = { name: "mean of tokens", weight: (point) => point.decode_tps };

const SPECS = [
  {
    id: "clock",
    title: "Core clock",
    wide: true,
    series: [
      { label: "asked for", look: "b", step: true, none: "driver default", value: (point) => point.asked },
      { label: "running", look: "a", value: (point) => point.core_clock },
    ],
    format: words.mhz,
    tick: plainTick,
    bands: (point) => point.mode,
    remark: (point) => words.modeWords(point.mode, known(point.asked)),
  },
  {
    id: "power",
    title: "Power",
    series: [{ label: "all GPUs", look: "a", value: (point) => point.power_w }],
    format: words.watts,
    tick: plainTick,
    zero: true,
  },
  {
    id: "edp",
    title: "Energy-delay product (EDP)",
    series: [
      { label: "default (estimate)", look: "c", value: (point) => point.default_edp_js },
      { label: "measured", look: "a", value: (point) => point.edp_js },
    ],
    format: words.jouleSeconds,
    tick: plainTick,
    zero: true,
    smooth: BY_TOKENS,
    remark: against,
  },
  {
    id: "tpot",
    title: "Time per output token (TPOT)",
    series: [{ label: "mean", look: "a", value: (point) => point.tpot_s }],
    format: words.latency,
    tick: inMs,
    zero: true,
    smooth: BY_TOKENS,
    limits: limit("tpot"),
    remark: (_, state) => words.limitWords(state.limits, "tpot"),
  },
  {
    id: "ttft",
    title: "Time to first token (TTFT)",
    // Only rounds in which a request got its first token have a value: each is a dot.
    series: [{ label: "mean", look: "a", dots: true, value: (point) => point.ttft_s }],
    format: words.latency,
    tick: inMs,
    zero: true,
    smooth: PLAIN,
    limits: limit("ttft"),
    remark: (_, state) => words.limitWords(state.limits, "ttft"),
  },
  {
    id: "requests",
    title: "Requests",
    series: [
      { label: "running", look: "a", value: (point) => point.running },
      { label: "waiting", look: "b", value: (point) => point.waiting },
    ],
    format: words.count,
    tick: plainTick,
    zero: true,
    least: 4,
  },
  {
    id: "tokens",
    title: "Tokens per second",
    series: [
      { label: "prompt", look: "b", value: (point) => point.prefill_tps },
      { label: "generated", look: "a", value: (point) => point.decode_tps },
    ],
    format: words.count,
    tick: kilo,
    zero: true,
    smooth: PLAIN,
  },
];

/** All charts over time, with a cursor that moves through all of them. */
export class Charts {
  constructor(parent, spoken) {
    const cursor = {
      at: null,
      move: (time, speech) => {
        cursor.at = time;
        this.all.forEach((chart) => chart.drawCursor());
        if (speech) say(spoken, speech);
      },
    };
    this.all = SPECS.map((spec) => new TimeChart(spec, cursor));
    parent.append(...this.all.map((chart) => chart.node));
  }

  update(points, state) {
    this.all.forEach((chart) => chart.update(points, state));
  }
}

const HEIGHT = 150;
const EDGE = { left: 44, right: 10, top: 12, bottom: 22 };

/** How a clock stands, as one of four looks. */
function look(arm, state) {
  if (words.sameClocks(arm.clocks, state.learner.best)) return "best";
  return arm.status === "available" ? "open" : "out";
}

/** Mean reward over core clock: a dot for what may be chosen, a cross for what may not, a ring around the best. */
export class ArmMap {
  constructor(parent) {
    this.canvas = svg("svg", { role: "img", height: HEIGHT });
    this.parent = parent;
    parent.append(
      this.canvas,
      element(
        "ul",
        { class: "legend small" },
        ...[
          ["dot open", "may be chosen"],
          ["dot out", "ruled out"],
          ["dot best", "best"],
          ["key b upright", "asked for"],
        ].map(([style, text]) => element("li", {}, element("span", { class: style }), text)),
      ),
    );
    new ResizeObserver(() => this.draw()).observe(parent);
  }

  update(state) {
    this.state = state;
    this.draw();
  }

  draw() {
    const { state } = this;
    if (!state) return;
    const { arms } = state.learner;
    const tried = arms.filter((arm) => known(arm.mean_reward));
    const clocks = arms.map((arm) => arm.clocks.core);
    this.parent.hidden = tried.length === 0;
    // Only what is not hidden has a width.
    const width = this.parent.clientWidth;
    if (tried.length === 0 || width === 0) return;
    const rewards = tried.map((arm) => arm.mean_reward);
    const scale = niceScale(Math.min(...rewards, 0), Math.max(...rewards, 0), 3);
    const [low, high] = [Math.min(...clocks), Math.max(...clocks)];
    const x = (clock) =>
      EDGE.left + ((clock - low) / Math.max(high - low, 1)) * (width - EDGE.left - EDGE.right);
    const inner = HEIGHT - EDGE.top - EDGE.bottom;
    const y = (value) => HEIGHT - EDGE.bottom - ((value - scale.from) / (scale.to - scale.from)) * inner;
    const parts = scale.values.flatMap((value) => [
      svg("line", {
        class: Math.abs(value) < 1e-9 ? "grid zero" : "grid",
        x1: EDGE.left,
        x2: width - EDGE.right,
        y1: y(value),
        y2: y(value),
      }),
      svg("text", { class: "y", x: EDGE.left - 6, y: y(value) + 4 }, String(Math.round(value * 100) / 100)),
    ]);
    const ends = [[low, "start"], [high, "end"]];
    for (const [clock, anchor] of ends) {
      const place = { class: "x", x: x(clock), y: HEIGHT - 5, "text-anchor": anchor };
      parts.push(svg("text", place, words.mhz(clock)));
    }
    if (state.asked) {
      const at = x(state.asked.core);
      parts.push(svg("line", { class: "asked", x1: at, x2: at, y1: EDGE.top - 8, y2: HEIGHT - EDGE.bottom }));
    }
    for (const arm of arms) {
      const at = x(arm.clocks.core);
      const base = HEIGHT - EDGE.bottom;
      const style = look(arm, state);
      parts.push(svg("line", { class: `tick ${style}`, x1: at, x2: at, y1: base, y2: base - 4 }));
      if (!known(arm.mean_reward)) continue;
      parts.push(mark(style, at, y(arm.mean_reward), arm));
    }
    const best = state.learner.best ? `best ${words.clocks(state.learner.best)}` : "no best clock yet";
    const label = `Mean reward of ${tried.length} tried clocks from ${words.mhz(low)} to ${words.mhz(high)}; ${best}. The table below has all of them.`;
    if (this.canvas.getAttribute("aria-label") !== label) this.canvas.setAttribute("aria-label", label);
    this.canvas.setAttribute("width", width);
    this.canvas.replaceChildren(...parts);
  }
}

function mark(style, x, y, arm) {
  const text = `${words.clocks(arm.clocks)}: reward ${words.short(arm.mean_reward)}, ${arm.lessons} lessons, ${arm.why ?? words.statusWords(arm.status)}`;
  const title = svg("title", {}, text);
  if (style === "out") {
    const d = `M${x - 3.5} ${y - 3.5}l7 7m0 -7l-7 7`;
    return svg("path", { class: "arm out", d }, title);
  }
  return svg("circle", { class: `arm ${style}`, cx: x, cy: y, r: style === "best" ? 5.5 : 3.5 }, title);
}
