// Values as words. What is not known is called so, never 0.

export const UNKNOWN = "unknown";
export const known = (value) => typeof value === "number" && Number.isFinite(value);

const number = (digits) =>
  new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const formats = [0, 1, 2, 3].map(number);

/** A number with about three digits that say something. */
export function short(value) {
  if (!known(value)) return UNKNOWN;
  const size = Math.abs(value);
  const digits = size >= 100 || value === 0 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return formats[digits].format(value);
}

/** A number and its unit stay on one line. */
const unit = (format, name) => (value) => (known(value) ? `${format(value)}\u00a0${name}` : UNKNOWN);
const whole = (value) => formats[0].format(value);
export const count = (value) => (known(value) ? whole(value) : UNKNOWN);
export const mhz = unit((value) => String(Math.round(value)), "MHz");
export const watts = unit(whole, "W");
export const jouleSeconds = unit(short, "J·s");
export const perSecond = unit(whole, "tok/s");

/** Seconds as a latency: milliseconds where that reads better. */
export function latency(seconds) {
  if (!known(seconds)) return UNKNOWN;
  return seconds < 1 ? `${short(1000 * seconds)}\u00a0ms` : `${short(seconds)}\u00a0s`;
}

export function joules(value) {
  if (!known(value)) return UNKNOWN;
  if (Math.abs(value) < 1000) return `${whole(value)} J`;
  return Math.abs(value) < 1e6 ? `${short(value / 1e3)} kJ` : `${short(value / 1e6)} MJ`;
}

export function percent(share, digits = 0) {
  return known(share) ? `${formats[digits].format(100 * share)}\u00a0%` : UNKNOWN;
}

/** How long something lasts: the two largest units. */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const total = Math.max(0, Math.round(seconds));
  const parts = [
    [Math.floor(total / 86400), "d"],
    [Math.floor(total / 3600) % 24, "h"],
    [Math.floor(total / 60) % 60, "min"],
    [total % 60, "s"],
  ];
  const first = parts.findIndex(([amount]) => amount > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([amount]) => amount > 0)
    .map(([amount, name]) => `${amount}\u00a0${name}`)
    .join(" ");
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
/** Time of day, in the time zone of whoever looks. */
export const timeOfDay = (unixSeconds) => clock.format(new Date(1000 * unixSeconds));

/** A pair of clocks; none is the driver's own choice. */
export function clocks(pair) {
  if (!pair) return "driver default";
  return known(pair.memory) ? `${mhz(pair.core)}, memory ${mhz(pair.memory)}` : mhz(pair.core);
}

export const sameClocks = (a, b) => Boolean(a && b) && a.core === b.core && a.memory === b.memory;

/** `SLO_GUARD` as `slo guard`. */
export const plain = (name) => String(name).toLowerCase().replaceAll("_", " ");

const MODES = {
  STARTING: "waiting for the engine's first answers",
  BASELINE: "measures at default clocks",
  EXPLORATION: "tries clocks out",
  EXPLOITATION: "uses what it has learned",
  SLO_GUARD: "a latency limit broke: default clocks",
  IDLE: "no work: parked",
  OUTAGE: "the engine does not answer: default clocks",
  FAULT: "a clock command failed: default clocks",
  PAUSED: "paused by an operator",
  HOLDOUT: "holdout: measures what default clocks cost now",
  DATA_COLLECTION: "only measures",
};
/** What a mode means; `locked`: a clock is asked for. */
export function modeWords(mode, locked) {
  if (mode === "BASELINE" && locked) return "learns; default clocks not measured fully yet";
  return MODES[mode] ?? plain(mode);
}

const STATUS = {
  available: "may be chosen",
  failed: "failed",
  below_floor: "below the floor",
  pruned_extreme: "given up: far too bad",
  pruned_cost: "given up: costs more",
  pruned_cascade: "given up: below a bad one",
  pruned_descent: "given up: lower is worse",
  pruned_unknown: "given up",
};
export const statusWords = (status) => STATUS[status] ?? plain(status);

/** A limit with what it is about. */
export function limitWords(limits, key) {
  if (!limits) return "no limit set";
  return `limit ${latency(limits[key])}, ${limits.statistic} over ${duration(limits.window)}`;
}

/** `9 % less`, `4 % more`. */
export function change(share, less, more) {
  if (!known(share)) return UNKNOWN;
  const rounded = Math.round(1000 * Math.abs(share)) / 1000;
  if (rounded === 0) return "the same";
  return `${percent(rounded, rounded < 0.1 ? 1 : 0)} ${share < 0 ? less : more}`;
}

/** Said of what is not known against default clocks: neither a number nor a guess. */
export const NOT_KNOWN = "not known yet";

/** A change that may be off by so much. */
const within = (of, less, more) => `${change(of.value, less, more)} (±${percent(of.half_width, 1)})`;

/** What the figures against default clocks are, and what time they are about. */
function basis({ source, span }) {
  return source === "holdout" ? `measured in ${span} of the holdout` : `estimate over ${span} of this run`;
}

/** Good or bad only if the 95 % interval leaves no doubt; less is better. */
function judged(of) {
  return Math.abs(of.value) > of.half_width ? of.value < 0 : null;
}

/** Energy against default clocks, as the verdict has it: `title`, `value`, `detail`, `good`. */
export function savings({ verdict }) {
  const title = "Energy, against default clocks";
  if (!verdict?.saved) return { title, value: NOT_KNOWN, detail: "", good: null };
  const energy = { value: -verdict.saved.value, half_width: verdict.saved.half_width };
  const slower = verdict.slower ? `; ${within(verdict.slower, "faster", "slower")} per token` : "";
  return {
    title,
    value: change(energy.value, "less", "more"),
    detail: `±${percent(energy.half_width, 1)} (95 %)${slower}; ${basis(verdict)}`,
    good: judged(energy),
  };
}

/** The energy-delay product against default clocks, of the same source and time. */
export function edp({ verdict }) {
  const title = "EDP, against default clocks";
  if (!verdict?.edp) return { title, value: NOT_KNOWN, detail: "", good: null };
  return {
    title,
    value: change(verdict.edp.value, "better", "worse"),
    detail: `±${percent(verdict.edp.half_width, 1)} (95 %); ${basis(verdict)}`,
    good: judged(verdict.edp),
  };
}
