// The list of servers, and of GPUs without one: hidden where there is only one of them.

import { element, say } from "./chart.js";
import * as words from "./words.js";

const COLUMNS = ["server", "GPUs", "mode", "power", "energy", "limits"];

/** A server in a few words. */
function ofServer(state) {
  const saved = words.savings(state);
  const { verdict } = state;
  const about = verdict?.saved ? ` ±${words.percent(verdict.saved.half_width, 1)}` : "";
  const kind = about + (verdict?.saved ? `, ${verdict.source === "holdout" ? "measured" : "estimate"}` : "");
  const broken = state.round?.violated;
  const power = state.gpus.every((gpu) => words.known(gpu.power_w))
    ? state.gpus.reduce((sum, gpu) => sum + gpu.power_w, 0)
    : undefined;
  return {
    name: state.name,
    cells: [
      state.gpus.map((gpu) => gpu.index).join(", "),
      words.plain(state.mode),
      words.watts(power),
      saved.value + kind,
      !state.limits ? "none" : broken ? `${broken.toUpperCase()} broken` : "kept",
    ],
    bad: Boolean(state.limits && broken),
  };
}

/** A GPU without a server in a few words. */
function ofParked(gpu) {
  const saved = gpu.saved?.joules ?? gpu.saved_about_j;
  const power = { PARKED: gpu.parked_power_w, QUIET: gpu.idle_power_w }[gpu.state];
  const energy = words.known(saved) ? `${words.joules(saved)} saved by parking` : words.UNKNOWN;
  return { name: null, cells: [String(gpu.index), words.plain(gpu.state), words.watts(power), energy, ""] };
}

/** Shows the list; `choose` is called with the name of the server that is asked for. */
export class Servers {
  constructor(node, choose) {
    this.node = node;
    this.choose = choose;
  }

  update(host, shown) {
    const rows = [...host.servers.map(ofServer), ...(host.park?.gpus ?? []).map(ofParked)];
    this.node.hidden = rows.length < 2 && host.servers.length === 1;
    const gist = rows.map((row) => row.name).join("\n");
    if (gist !== this.gist) {
      // Built anew only when somebody comes or goes: the focus stays where it is.
      this.gist = gist;
      this.node.querySelector("table").replaceChildren(
        element("thead", {}, element("tr", {}, ...COLUMNS.map((name) => element("th", { scope: "col" }, name)))),
        element("tbody", {}, ...rows.map((row) => this.row(row))),
      );
    }
    rows.forEach((row, k) => {
      const line = this.node.querySelectorAll("tbody tr")[k];
      const is = row.name !== null && row.name === shown;
      line.className = is ? "marked" : "";
      line.querySelector("button")?.setAttribute("aria-pressed", String(is));
      row.cells.forEach((text, at) => say(line.children[at + 1], text));
      line.lastElementChild.className = row.bad ? "bad" : "";
    });
  }

  row(row) {
    let name = "without a server";
    if (row.name !== null) {
      name = element("button", { type: "button" }, row.name);
      name.addEventListener("click", () => this.choose(row.name));
    }
    const style = row.name === null ? "muted" : null;
    return element("tr", {}, element("th", { scope: "row", class: style }, name), ...row.cells.map(() => element("td")));
  }
}
