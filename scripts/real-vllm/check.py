"""Judge one run against a real vLLM: what agft wrote down, what the mock driver was told, how agft ended.

    check.py RUN_DIRECTORY [--without-agft]
    check.py --self-test

Reads, all written by try-real-vllm.sh: load.json (load.py), page.txt (vLLM's metrics after the load), agft.json
(supervise.py), history.jsonl and gpus.json (the mock driver), experiment/*/rounds_data.jsonl (agft).
Prints one line per check and some figures. PASS and FAIL decide the exit code; NOTE is a figure off its target that
says more about the machine than about agft.
"""

import argparse
import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import sys

import history

PERIOD_S = 0.3
INTERVAL_TOLERANCE_S = 0.005
LATENESS_TARGET_S = 0.010
LEAST_COVERED = 0.95  # share of the load's time that the rounds' windows must cover
ROUNDS_TARGET = 0.95  # share of the periods of the load that should have a round
STOP_LIMIT_S = 3.0
CLOCK_TOLERANCE_MHZ = 15
SETTLE_S = 1.5  # after a phase began, until the features are those of the phase

# Each feature, a phase in which it must be higher, and one in which it must be lower.
FEATURES = (
    ("has_queue", "burst", "steady"),
    ("prefill_throughput_feature", "long", "steady"),
    ("decode_throughput_feature", "burst", "long"),
    ("packing_efficiency", "long", "steady"),
    ("concurrency", "burst", "steady"),
    ("gpu_cache_usage", "burst", "steady"),
    ("cache_hit_rate", "steady", "long"),
)

# What the features and the reward are made of, by vLLM 0.32's names.
SAMPLES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_sum",
    "vllm:iteration_tokens_total_count",
    "vllm:time_to_first_token_seconds_sum",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_sum",
    "vllm:inter_token_latency_seconds_count",
)


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table; `passed` is None for a figure that decides nothing."""

    name: str
    passed: bool | None
    detail: str
    word: str = ""

    def __str__(self):
        word = self.word or {True: "PASS", False: "FAIL", None: "    "}[self.passed]
        return f"{word}  {self.name:<42} {self.detail}"


def fact(name, detail):
    """A figure for the reader."""
    return Result(name, None, detail)


def target(name, met, detail):
    """A figure with a target that does not decide the run."""
    return Result(name, None, detail, "PASS" if met else "NOTE")


def quantile(values, share):
    """The smallest value that `share` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def numbers(rounds, field):
    """The finite values of a field."""
    return [r[field] for r in rounds if isinstance(r.get(field), (int, float)) and math.isfinite(r[field])]


def during(rounds, load, name):
    """Rounds within the phases of that name, the first moments of each left out."""
    bounds = [(p["begin"] + SETTLE_S, p["end"]) for p in load["phases"] if p["name"] == name]
    return [r for r in rounds if any(begin <= r["timestamp"] <= end for begin, end in bounds)]


def check_load(load):
    """The load reached the server and was answered."""
    asked = sum(p["requests"] for p in load["phases"])
    failed = sum(p["failed"] for p in load["phases"])
    detail = f"{asked - failed} of {asked}" + "".join(f"; {e}" for e in load["errors"])
    yield Result("requests answered", asked > 0 and failed == 0, detail)
    for p in load["phases"]:
        if p["requests"] > p["failed"]:
            ttft = f"{p['ttft_p50_s'] * 1e3:.1f} ms, {p['ttft_p99_s'] * 1e3:.1f} ms"
            yield fact(f"  {p['name']}: TTFT p50, p99; TPOT mean", f"{ttft}; {(p['tpot_mean_s'] or 0) * 1e3:.2f} ms")


def check_page(page):
    """vLLM serves the samples that agft reads, and they counted."""
    values = {}
    for line in page.splitlines():
        if line.startswith("vllm:"):
            name = line.split("{")[0].split(" ")[0]
            values[name] = values.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    missing = [name for name in SAMPLES if name not in values]
    still = [n for n in SAMPLES if n.endswith(("_total", "_sum", "_count")) and n in values and not values[n] > 0]
    detail = f"{len(SAMPLES) - len(missing)} of {len(SAMPLES)} samples, {len(page) / 1e3:.1f} kB"
    detail += "".join(f"; no {name}" for name in missing) + "".join(f"; {name} is 0" for name in still)
    yield Result("vLLM's page has what agft reads", not missing and not still, detail)


def check_rounds(rounds, load):
    """Rounds come when they should."""
    busy = [(p["begin"], p["end"]) for p in load["phases"] if p["requests"]]
    loaded = [r for r in rounds if any(begin <= r["timestamp"] <= end for begin, end in busy)]
    length = sum(end - begin for begin, end in busy)
    covered = sum(numbers(loaded, "window_s")) / length
    yield Result("windows cover the load", LEAST_COVERED <= covered <= 2 - LEAST_COVERED, f"{covered:.1%}")
    # A tick without a page yet makes no round, and the next window is longer: a starved server does that.
    due = length / PERIOD_S
    yield target("a round in 95 % of the periods", len(loaded) >= ROUNDS_TARGET * due, f"{len(loaded)} of {due:.0f}")
    if len(rounds) < 3:
        return
    counts = [r["round"] for r in rounds]
    times = [r["timestamp"] for r in rounds]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    in_order = all(b == a + 1 for a, b in itertools.pairwise(counts)) and min(gaps) > 0
    yield Result("rounds numbered without gaps, times rising", in_order, f"{counts[0]} to {counts[-1]}")
    middle = statistics.median(gaps)
    yield Result(
        "interval p50 is 300 ms to 5 ms",
        abs(middle - PERIOD_S) <= INTERVAL_TOLERANCE_S,
        f"p50 {middle * 1e3:.1f} ms, p01 {quantile(gaps, 0.01) * 1e3:.1f} ms, p99 {quantile(gaps, 0.99) * 1e3:.1f} ms",
    )
    late = numbers(rounds, "tick_lateness_s")
    if late:
        worst = quantile(late, 0.99)
        detail = f"{worst * 1e3:.2f} ms (p50 {statistics.median(late) * 1e3:.2f} ms, max {max(late) * 1e3:.2f} ms)"
        yield target("tick lateness p99 at most 10 ms", worst <= LATENESS_TARGET_S, detail)
    else:
        yield Result("tick lateness p99 at most 10 ms", False, "no round has tick_lateness_s")
    scrape = numbers(rounds, "scrape_latency_s")
    if scrape:
        yield fact(
            "  scrape p50, p99", f"{statistics.median(scrape) * 1e3:.1f} ms, {quantile(scrape, 0.99) * 1e3:.1f} ms"
        )


def check_features(rounds, load):
    """Every feature is a number in every round, and follows the load."""
    for name, high, low in FEATURES:
        values = numbers(rounds, name)
        if not rounds or len(values) < len(rounds):
            yield Result(f"feature {name}", False, f"finite in {len(values)} of {len(rounds)} rounds")
            continue
        above, below = (numbers(during(rounds, load, phase), name) for phase in (high, low))
        if not above or not below:
            yield Result(f"feature {name}", False, f"no rounds in phase {low if above else high}")
            continue
        means = statistics.fmean(above), statistics.fmean(below)
        yield Result(f"feature {name}", means[0] > means[1], f"{high} {means[0]:.2f} > {low} {means[1]:.2f}")
    windows = [r for r in rounds if numbers([r], "window_s") and numbers([r], "decode_throughput_feature")]
    counted = sum(r["window_s"] * r["decode_throughput_feature"] for r in windows)
    answered = sum(p["answer_tokens"] for p in load["phases"])
    if windows and answered:
        share = counted / answered
        yield fact("  decode tokens seen by rounds / answered", f"{counted:.0f} / {answered} = {share:.3f}")


def check_clocks(rounds, load, writes, left):
    """Clocks were borrowed, and given back."""
    clocks = sorted({w.high_mhz for w in writes if w.locks == "core" and w.done})
    detail = f"{len(clocks)} clocks" + (f", {clocks[0]} to {clocks[-1]} MHz" if clocks else "")
    yield Result("core clocks were locked", bool(clocks), f"{detail}; {len(writes)} writes")
    refused = sorted({str(w) for w in writes if not w.done})
    if refused:
        yield fact("  writes the driver refused", "; ".join(refused))
    first, last = (writes[0], writes[-1]) if writes else (None, None)
    yield Result("first write is a reset", bool(writes) and bool(first.resets) and first.done, str(first))
    # A board may refuse to reset a memory clock that it cannot lock: whether the core lock is gone is the next check's.
    yield Result("last write is a reset", bool(writes) and bool(last.resets), str(last))
    yield Result("no lock left on the GPU", not left, ", ".join(left) or "none")
    told = numbers(rounds, "asked_core_mhz")
    yield Result("rounds say which clock was asked", bool(told), f"{len(told)} of {len(rounds)} rounds")
    # The clock asked for is of the next window; the running one of an idle GPU is the lock's lower bound.
    pairs = [(a, b) for a, b in itertools.pairwise(rounds) if b.get("decode_throughput_feature")]
    pairs = [(a.get("asked_core_mhz"), b.get("read_core_mhz")) for a, b in pairs]
    pairs = [(asked, read) for asked, read in pairs if asked and read]
    if pairs:
        same = sum(abs(asked - read) <= CLOCK_TOLERANCE_MHZ for asked, read in pairs)
        yield fact("  running clock is the one asked for", f"{same} of {len(pairs)} windows with tokens")
    silent = numbers(during(rounds, load, "silence"), "asked_core_mhz")
    if silent:
        yield fact("  lowest clock asked for in silence", f"{min(silent)} MHz")


def check_end(agft, writes):
    """agft ran until told to stop, stopped soon, and left nothing running."""
    yield Result(
        "exit code 0 after SIGTERM",
        agft["stopped_on_request"] and not agft["forced"] and agft["exit_code"] == 0,
        f"exit code {agft['exit_code']}"
        + (" after SIGKILL" if agft["forced"] else "")
        + ("" if agft["stopped_on_request"] else ", before it was told to stop"),
    )
    if agft["stop_s"] is not None:
        yield Result("stopped within 3 s", agft["stop_s"] <= STOP_LIMIT_S, f"{agft['stop_s'] * 1e3:.0f} ms")
        resets = [w.at_s for w in writes if w.resets and w.done and w.at_s >= agft["asked_at_s"]]
        if resets:
            yield fact("  clocks given back after SIGTERM", f"{(resets[0] - agft['asked_at_s']) * 1e3:.0f} ms")
    left = ", ".join(process["name"] for process in agft["left_running"])
    yield Result("no process left running", not left, left or "none")
    yield fact("  CPU time", f"{agft['cpu_s']:.2f} s of {agft['wall_s']:.0f} s, {agft['cpu_s'] / agft['wall_s']:.2%}")
    if agft["peak_rss_kib"]:
        yield fact("  peak memory", f"{agft['peak_rss_kib'] / 1024:.1f} MiB")
    for child in agft["children"]:
        yield fact(
            f"  child {child['name']}: CPU time, peak memory",
            f"{child['cpu_s']:.2f} s, {child['peak_rss_kib'] / 1024:.1f} MiB",
        )


def read_rounds(run):
    """All rounds of the one experiment of the run."""
    files = sorted(run.glob("experiment/*/rounds_data.jsonl"))
    if len(files) != 1:
        raise SystemExit(f"check.py: {run}/experiment has {len(files)} rounds_data.jsonl; it should have one")
    return [json.loads(line) for line in files[0].read_text().splitlines()]


def judge(run, without_agft):
    """All results of one run."""
    load = json.loads((run / "load.json").read_text())
    yield from check_load(load)
    yield from check_page((run / "page.txt").read_text())
    if without_agft:
        return
    rounds = read_rounds(run)
    writes = history.read(run / "history.jsonl")
    yield from check_rounds(rounds, load)
    yield from check_features(rounds, load)
    yield from check_clocks(rounds, load, writes, history.locks_in_force(run / "gpus.json"))
    yield from check_end(json.loads((run / "agft.json").read_text()), writes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, nargs="?")
    parser.add_argument("--without-agft", action="store_true", help="judge only the server and the load")
    parser.add_argument("--self-test", action="store_true", help="try every check on a made-up run, good and spoilt")
    args = parser.parse_args()
    if args.self_test:
        import self_test

        return self_test.main()
    if args.run is None:
        parser.error("which run? Give its directory")
    results = list(judge(args.run, args.without_agft))
    print(*results, sep="\n")
    failed = sum(r.passed is False for r in results)
    print(f"{sum(r.passed is True for r in results)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
