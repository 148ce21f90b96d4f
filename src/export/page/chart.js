// A line chart over time, drawn as SVG. It knows nothing of agft: series, limits and points are given to it.

import { known, timeOfDay, duration, UNKNOWN } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 48;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 22;
/** A longer silence than this between two points is a gap, in seconds. */
const GAP_S = 4;
/** Lengths of time that are shown, and the distance of their ticks, in seconds. */
const SPANS = [[60, 15], [120, 30], [180, 30], [300, 60], [420, 60], [600, 120]];
const TABLE_ROWS = 20;
/** Seconds over which jumpy curves are smoothed. */
const SMOOTH_S = 15;

export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Text always becomes a text node: whatever the daemon was told, it is never read as markup. */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === undefined || value === null) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Writes text only where it differs: screen readers are not told of what stayed the same. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The length of time to show for points that reach back this far, with its ticks. */
export function spanFor(seconds) {
  return SPANS.find(([span]) => seconds <= span) ?? SPANS[SPANS.length - 1];
}

/** Round numbers that enclose `low` to `high`, and the ticks between. */
export function niceScale(low, high, ticks = 4) {
  const width = high > low ? high - low : Math.max(Math.abs(high), 1);
  const rough = width / ticks;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= 0.999 * rough);
  const from = Math.floor(low / step + 1e-9) * step;
  let to = Math.ceil(high / step - 1e-9) * step;
  if (to <= from) to = from + step;
  const values = [];
  for (let k = 0; from + k * step <= to + step / 2; k += 1) values.push(from + k * step);
  return { from, to, values };
}

/** The path of one curve; breaks where a value is not known, and a lone value is a dot. */
function pathOf(points, values, series, x, y) {
  let path = "";
  let last = null;
  points.forEach((point, k) => {
    const value = values[k];
    if (!known(value)) {
      last = null;
      return;
    }
    const [px, py] = [x(point.at_unix_s).toFixed(1), y(value).toFixed(1)];
    if (series.dots || last === null || point.at_unix_s - last > GAP_S) path += `M${px} ${py}h0`;
    else path += series.step ? `H${px}V${py}` : `L${px} ${py}`;
    last = point.at_unix_s;
  });
  return path;
}

/**
 * For each point the mean of the known values of the last `SMOOTH_S` seconds, each counted by its weight; for the first
 * points, which have no such past, of the first ones.
 */
function smoothed(points, values, weight) {
  const early = points.findLastIndex((point) => point.at_unix_s < points[0].at_unix_s + SMOOTH_S);
  let from = 0;
  return points.map((point, k) => {
    while (points[from].at_unix_s <= point.at_unix_s - SMOOTH_S) from += 1;
    let [sum, all] = [0, 0];
    for (let n = from; n <= Math.max(k, early); n += 1) {
      const counted = known(values[n]) ? (weight(points[n]) ?? 0) : 0;
      if (counted > 0) sum += counted * values[n];
      all += counted;
    }
    return all > 0 ? sum / all : null;
  });
}

export class TimeChart {
  /**
   * `spec`: `id`, `title`, `series` (`label`, `value(point)`, `look`, `step`, `none`; `dots`: with `smooth`, each second
   * is a dot), `format(value)`, `tick(value)`, `zero` (the axis begins at 0), `least` (it reaches this high), `smooth` (`name`, `weight(point)`: what is
   * shown is the mean of the last seconds, each second is faint behind it), `limits(state)` (`label`, `value`),
   * `remark(point, state, values)`, `bands(point)`.
   * `cursor` is shared by all charts: `at` is the time that is looked at, `move(time, speak)` changes it.
   */
  constructor(spec, cursor) {
    this.spec = spec;
    this.cursor = cursor;
    this.points = [];
    this.state = null;
    const heading = `chart-${spec.id}`;
    this.legend = spec.series.map((series) => {
      const value = element("b");
      const key = element("span", { class: `key ${series.look}` });
      return { value, item: element("li", {}, key, `${series.label} `, value) };
    });
    this.remark = element("li", { class: "remark" });
    const note = spec.smooth ? element("li", {}, `${SMOOTH_S} s ${spec.smooth.name}`) : null;
    this.button = element(
      "button",
      { type: "button", "aria-expanded": "false", "aria-controls": `${heading}-table` },
      "Table",
      element("span", { class: "hidden" }, ` of ${spec.title}`),
    );
    this.canvas = svg("svg", { "aria-hidden": "true", focusable: "false" });
    this.plot = element(
      "div",
      { class: "plot", tabindex: "0", role: "img", "aria-describedby": "chart-help" },
      this.canvas,
    );
    this.table = element("div", {
      id: `${heading}-table`,
      class: "scroll",
      tabindex: "0",
      role: "region",
      "aria-label": `${spec.title} as a table`,
      hidden: true,
    });
    this.node = element(
      "section",
      { class: `card chart ${spec.wide ? "wide" : ""}`, "aria-labelledby": heading, id: spec.id },
      element("div", { class: "head" }, element("h3", { id: heading }, spec.title), this.button),
      element("ul", { class: "legend" }, ...this.legend.map((entry) => entry.item), note, this.remark),
      this.plot,
      this.table,
    );
    this.button.addEventListener("click", () => this.toggle());
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.cursor.move(null, null));
    this.plot.addEventListener("blur", () => this.cursor.move(null, null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  update(points, state) {
    this.points = points;
    this.state = state;
    this.draw();
    if (!this.table.hidden) this.fillTable();
  }

  draw() {
    const width = this.plot.clientWidth;
    const height = this.plot.clientHeight;
    if (width === 0 || !this.state || this.points.length === 0) return;
    const { spec } = this;
    const end = this.points[this.points.length - 1].at_unix_s;
    const [span, every] = spanFor(end - this.points[0].at_unix_s);
    const points = this.points.filter((point) => point.at_unix_s >= end - span);
    const raw = spec.series.map((series) => points.map(series.value));
    this.curves = spec.smooth ? raw.map((curve) => smoothed(points, curve, spec.smooth.weight)) : raw;
    const values = this.curves.flat().filter(known);
    // Dots are to be seen, each of them; faint lines may leave the scale that the curves need.
    const spread = spec.series.flatMap((series, k) => (series.dots ? raw[k].filter(known) : []));
    const limits = (spec.limits?.(this.state) ?? []).filter((limit) => known(limit.value));
    const highest = Math.max(...values, ...spread, 0);
    // A limit far above everything would flatten the curve: it is named in the remark then, and not drawn.
    const drawn = limits.filter((limit) => limit.value <= 3 * highest);
    const all = values.concat(spread, drawn.map((limit) => limit.value));
    const scale = all.length
      ? niceScale(spec.zero ? 0 : Math.min(...all), Math.max(...all, spec.least ?? -Infinity))
      : niceScale(0, 1);
    const x = (time) => LEFT + ((time - end + span) / span) * (width - LEFT - RIGHT);
    const share = (value) => Math.min((value - scale.from) / (scale.to - scale.from), 1);
    const y = (value) => height - BOTTOM - share(value) * (height - TOP - BOTTOM);
    this.scales = { x, y, end, span, width, height, points };
    const parts = [];
    for (const value of scale.values) {
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
      if (all.length) {
        const label = svg("text", { x: LEFT - 6, y: y(value) + 4, class: "y" }, spec.tick(value));
        parts.push(label);
      }
    }
    const crowd = Math.ceil(80 / (x(end) - x(end - every)));
    for (let ago = 0; ago <= span; ago += crowd * every) {
      const label = ago === 0 ? "now" : span <= 120 ? `−${ago} s` : `−${ago / 60} min`;
      const anchor = ago === 0 ? "end" : ago === span ? "start" : "middle";
      const place = { x: x(end - ago), y: height - 6, class: "x", "text-anchor": anchor };
      parts.push(svg("text", place, label));
    }
    if (spec.bands) parts.push(...this.bands(points, x, height - BOTTOM, end));
    for (const limit of drawn) {
      parts.push(svg("line", { class: "limit", x1: LEFT, x2: width - RIGHT, y1: y(limit.value), y2: y(limit.value) }));
    }
    const line = (curve, k, style, dots) => {
      const series = spec.series[k];
      const d = pathOf(points, curve, { ...series, dots }, x, y);
      if (d) parts.push(svg("path", { class: `line ${series.look} ${style}`, d }));
    };
    if (spec.smooth) {
      raw.forEach((curve, k) => line(curve, k, spec.series[k].dots ? "dots" : "faint", spec.series[k].dots));
    }
    this.curves.forEach((curve, k) => line(curve, k, "shown", false));
    if (values.length === 0) {
      parts.push(svg("text", { x: width / 2, y: height / 2, class: "none" }, "no values yet"));
    }
    this.marks = svg("g", { class: "cursor" });
    // In pixels of the page: text keeps its size.
    this.canvas.setAttribute("width", width);
    this.canvas.setAttribute("height", height);
    this.canvas.replaceChildren(...parts, this.marks);
    this.drawCursor();
    // A label that changes while it is being listened to is read again and again.
    if (document.activeElement !== this.plot) this.plot.setAttribute("aria-label", this.summary(limits));
  }

  /** A ribbon along the time axis, one colour for each stretch of the same name. */
  bands(points, x, bottom, end) {
    const ribbons = [];
    for (let from = 0; from < points.length; ) {
      const name = this.spec.bands(points[from]);
      let to = from;
      while (to + 1 < points.length && this.spec.bands(points[to + 1]) === name) to += 1;
      const [start, stop] = [x(points[from].at_unix_s), x(points[to + 1]?.at_unix_s ?? end)];
      const place = { x: start, width: Math.max(stop - start, 1), y: bottom - 5, height: 5 };
      ribbons.push(svg("rect", { class: `band ${name}`, ...place }));
      from = to + 1;
    }
    return ribbons;
  }

  /** Which point is looked at: the cursor's, else the newest. */
  looked() {
    const { points } = this.scales;
    if (this.cursor.at === null) return points.length - 1;
    const distance = (k) => Math.abs(points[k].at_unix_s - this.cursor.at);
    return points.reduce((best, _, k) => (distance(k) < distance(best) ? k : best), 0);
  }

  /** A value in words; `none` is what the absence of a value means, where it does mean something. */
  worded(series, value) {
    return known(value) ? this.spec.format(value) : (series.none ?? UNKNOWN);
  }

  drawCursor() {
    if (!this.scales) return;
    const { spec, curves } = this;
    const { points, x, y, width, height } = this.scales;
    const index = this.looked();
    const point = points[index];
    const values = curves.map((curve) => curve[index]);
    spec.series.forEach((series, k) => say(this.legend[k].value, this.worded(series, values[k])));
    say(this.remark, spec.remark?.(point, this.state, values) ?? "");
    if (this.cursor.at === null) {
      this.marks.replaceChildren();
      return;
    }
    const at = x(point.at_unix_s);
    const dots = spec.series.flatMap((series, k) =>
      known(values[k]) ? [svg("circle", { class: series.look, cx: at, cy: y(values[k]), r: 4 })] : [],
    );
    // The time stands on the axis: in the legend it would push the chart about.
    const middle = Math.min(Math.max(at, LEFT + 30), width - RIGHT - 30);
    this.marks.replaceChildren(
      svg("line", { x1: at, x2: at, y1: TOP, y2: height - BOTTOM }),
      ...dots,
      svg("rect", { x: middle - 32, y: height - BOTTOM + 2, width: 64, height: BOTTOM - 2, rx: 4 }),
      svg("text", { x: middle, y: height - 6, "text-anchor": "middle" }, timeOfDay(point.at_unix_s)),
    );
  }

  /** What the chart shows, in a sentence. */
  summary(limits) {
    const { spec } = this;
    const parts = spec.series.map((series, k) => {
      const values = this.curves[k].filter(known);
      const now = this.worded(series, this.curves[k].at(-1));
      if (values.length === 0) return `${series.label} now ${now}`;
      const [low, high] = [Math.min(...values), Math.max(...values)].map(spec.format);
      return `${series.label} now ${now}, between ${low} and ${high}`;
    });
    const bounds = limits.map((limit) => `${limit.label} ${spec.format(limit.value)}`);
    return `${spec.title}, last ${duration(this.scales.span)}: ${[...parts, ...bounds].join("; ")}.`;
  }

  point(event) {
    if (!this.scales) return;
    const { end, span, width } = this.scales;
    const offset = event.clientX - this.plot.getBoundingClientRect().left;
    const share = Math.min(Math.max((offset - LEFT) / (width - LEFT - RIGHT), 0), 1);
    this.cursor.move(end - span + share * span, null);
  }

  key(event) {
    const points = this.scales?.points;
    if (!points?.length || event.ctrlKey || event.altKey || event.metaKey) return;
    const step = event.shiftKey ? 10 : 1;
    const here = this.looked();
    const there = {
      ArrowLeft: here - step,
      ArrowRight: here + step,
      PageUp: here - 60,
      PageDown: here + 60,
      Home: 0,
      End: points.length - 1,
    }[event.key];
    if (event.key === "Escape") this.cursor.move(null, null);
    else if (there === undefined) return;
    else {
      const index = Math.min(Math.max(there, 0), points.length - 1);
      this.cursor.move(points[index].at_unix_s, this.words(index));
    }
    event.preventDefault();
  }

  words(index) {
    const values = this.spec.series.map(
      (series, k) => `${series.label} ${this.worded(series, this.curves[k][index])}`,
    );
    return `${timeOfDay(this.scales.points[index].at_unix_s)}: ${values.join(", ")}`;
  }

  toggle() {
    const open = this.table.hidden;
    this.table.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    if (open) this.fillTable();
  }

  fillTable() {
    if (!this.scales) return;
    const { points, end, span } = this.scales;
    const rows = [];
    for (let k = 0; k < TABLE_ROWS; k += 1) {
      const until = end - (k * span) / TABLE_ROWS;
      const index = points.findLastIndex((point) => point.at_unix_s <= until);
      if (index < 0 || until - points[index].at_unix_s > span / TABLE_ROWS) continue;
      const cells = this.spec.series.map((series, n) => {
        const value = this.curves[n][index];
        return element("td", { class: known(value) ? null : "muted" }, this.worded(series, value));
      });
      const time = timeOfDay(points[index].at_unix_s);
      rows.push(element("tr", {}, element("th", { scope: "row" }, time), ...cells));
    }
    const heads = ["time", ...this.spec.series.map((series) => series.label)];
    this.table.replaceChildren(
      element(
        "table",
        {},
        element("caption", { class: "hidden" }, this.spec.title),
        element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
        element("tbody", {}, ...rows),
      ),
    );
  }
}
