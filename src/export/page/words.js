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

/** A measured change and how far off it may be. */
function measured(of, less, more) {
  return `${change(of.relative, less, more)} (±${percent(of.relative_half_width, 1)})`;
}

/**
 * Energy against default clocks: `title`, `value`, `detail`, `good`. Measured by the holdout once that has shown something,
 * and good or bad only if its 95 % interval leaves no doubt; an estimate before.
 */
export function savings(state) {
  const { effect, cycles, share } = state.savings ?? {};
  const power = effect?.power_w;
  if (power) {
    const [low, high] = [-1, 1].map((side) => power.relative + side * power.relative_half_width);
    const slower = effect.tpot_s ? `; TPOT ${measured(effect.tpot_s, "less", "more")}` : "";
    return {
      title: "Energy, measured",
      value: change(power.relative, "less", "more"),
      detail: `than at default clocks, ±${percent(power.relative_half_width, 1)} (95 %)${slower}; ${count(cycles)} holdout cycles`,
      good: high < 0 ? true : low > 0 ? false : null,
    };
  }
  const title = "Energy, estimate";
  const { energy, time, seconds } = estimate(state);
  if (!known(energy)) return { title, value: UNKNOWN, detail: "nothing to compare with yet", good: null };
  const slower = known(time) ? `, ${change(time, "faster", "slower")} per token` : "";
  const holdout = share > 0 ? "; the holdout cannot tell yet" : "";
  return {
    title,
    value: change(energy, "less", "more"),
    detail: `than at default clocks${slower}, over ${duration(seconds)}${holdout}`,
    good: energy < 0,
  };
}

/** The estimated changes of energy and of time per token against default clocks. */
function estimate(state) {
  const { compared_s, energy_j, default_energy_j, token_time_s, default_token_time_s } = state.estimate;
  return {
    seconds: compared_s,
    energy: default_energy_j > 0 ? energy_j / default_energy_j - 1 : undefined,
    time: default_token_time_s > 0 ? token_time_s / default_token_time_s - 1 : undefined,
  };
}

/** The energy-delay product against default clocks: energy times time per token, both as estimated. */
export function edp(state) {
  const title = "EDP, estimate";
  const { energy, time, seconds } = estimate(state);
  if (!known(energy) || !known(time)) {
    return { title, value: UNKNOWN, detail: "nothing to compare with yet", good: null };
  }
  const product = (1 + energy) * (1 + time) - 1;
  const detail = `than at default clocks, over ${duration(seconds)}`;
  return { title, value: change(product, "better", "worse"), detail, good: product < 0 };
}
