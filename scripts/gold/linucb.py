#!/usr/bin/env python3
"""Gold vectors for the learner: the same mathematics written a second time, in numpy.

    pip install numpy
    python3 scripts/gold/linucb.py            # writes tests/data/gold/*.json
    python3 scripts/gold/linucb.py --check    # says whether the files are what it would write

The tests in src/bandit/gold.rs read the files and compare to 1e-9. Nothing here is taken from the Rust code: matrices
are solved, not inverted; percentiles, variances and sorts are numpy's.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "gold"
MEMORY = 400.0  # lessons an arm remembers
FLOOR = 0.05  # least standard deviation of a difference in log cost
KEPT = 2  # clocks that stay


def plain(values, digits=4):
    """Rounded inputs: short files, and every reader sees the same number."""
    return np.round(np.asarray(values, dtype=float), digits).tolist()


# --- arms ---


def ridge(lam, xs, rs):
    """A and b of the weighted ridge regression, from its definition: all weights at once, no recursion.

    Lesson i of n weighs 1 up to MEMORY lessons; every lesson beyond scales the older ones, so that the weights add up
    to MEMORY again.
    """
    weights = np.zeros(len(xs))
    for i in range(len(xs)):
        total = weights.sum()
        if total + 1.0 > MEMORY:
            weights *= (MEMORY - 1.0) / total
        weights[i] = 1.0
    rows = np.hstack([np.ones((len(xs), 1)), np.asarray(xs).reshape(len(xs), 7)])
    a = lam * np.eye(8) + rows.T @ (weights[:, None] * rows)
    b = rows.T @ (weights * np.asarray(rs))
    try:
        np.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        a = a + 0.1 * np.eye(8)
    return a, b


def arm_case(rng, lam, n, scale=1.0):
    xs = plain(np.clip(rng.normal(0, 1.5, (n, 7)), -3, 3) * scale)
    truth = rng.normal(0, 0.3, 8)
    rs = plain([truth[0] + np.dot(truth[1:], x) + rng.normal(0, 0.2) for x in xs])
    a, b = ridge(lam, xs, rs)
    theta = np.linalg.solve(a, b)
    queries = []
    for x in plain(rng.uniform(-3, 3, (4, 7))):
        row, alpha = np.array([1.0, *x]), float(rng.choice([0.1, 0.5, 10.0]))
        mean, width = float(row @ theta), float(np.sqrt(row @ np.linalg.solve(a, row)))
        queries.append({"x": x, "alpha": alpha, "mean": mean, "width": width, "ucb": mean + alpha * width})
    return {"lambda": lam, "xs": xs, "rewards": rs, "theta": theta.tolist(), "queries": queries}


def arms(rng):
    cases = [arm_case(rng, lam, n) for lam, n in [(1.0, 0), (1.0, 1), (5.0, 7), (0.5, 40), (1.0, 150)]]
    cases.append(arm_case(rng, 1.0, 460))
    singular = {"lambda": 1e-300, "xs": [[2.0, 2.0, 0, 0, 0, 0, 0]], "rewards": [0.5], "queries": []}
    a, b = ridge(1e-300, singular["xs"], singular["rewards"])
    singular["theta"] = np.linalg.solve(a, b).tolist()
    return cases + [singular]


def alphas(_rng):
    rates = [(10.0, 0.02, 0.1), (1.0, 0.01, 0.1), (0.5, 0.0, 0.1), (2.0, 0.5, 0.0)]
    return [
        {"initial": a0, "rate": rate, "min": low, "rounds": t, "alpha": max(a0 * math.exp(-rate * t), low)}
        for a0, rate, low in rates
        for t in (0, 1, 17, 100, 229, 231, 5000)
    ]


# --- pruning ---


def prune_case(rng, n, noise, spread):
    clocks = sorted({int(c) for c in rng.choice(np.arange(210, 1411, 15), n, replace=False)}, reverse=True)
    bottom = rng.uniform(300, 1300)
    costs = {}
    for clock in clocks:
        mean = spread * ((clock - bottom) / 500) ** 2 + rng.normal(0, 0.05)
        costs[clock] = plain(mean + rng.normal(0, noise, int(rng.integers(0, 14))))
    case = {
        "clocks": clocks,
        "costs": [costs[c] for c in clocks],
        "extreme_min_samples": 3,
        "extreme_threshold": -1.2,
        "min_samples": 6,
        "multiplier": 4.0,
        "top": 1410,
        "fallback": 800,
    }
    below = case["top"] // 2
    measured = {c: v for c, v in costs.items() if v}

    extreme = [c for c in clocks if len(costs[c]) >= 3 and -np.mean(costs[c]) <= -1.2]
    well = {c: np.array(v) for c, v in measured.items() if len(v) >= 6}
    costly = []
    if well:
        means = {c: v.mean() for c, v in well.items()}
        best = min(means, key=means.get)
        freedom = sum(len(v) - 1 for v in well.values())
        pooled = sum(((v - v.mean()) ** 2).sum() for v in well.values()) / freedom
        for c, v in well.items():
            sd = max(math.sqrt(pooled * (1 / len(v) + 1 / len(well[best]))), FLOOR)
            if c != best and means[c] - means[best] > 4.0 * sd:
                costly.append({"clock": c, "gap": means[c] - means[best], "deviation": sd, "best": best})
        costly.sort(key=lambda v: -v["gap"])

    # The best clock of all: among those with three measurements if there are any.
    pool = {c: v for c, v in measured.items() if len(v) >= 3} or measured
    best = min(pool, key=lambda c: np.mean(pool[c])) if pool else None
    gone = []

    def give_up(wanted):
        for c in wanted:
            if c != best and c not in gone and len(clocks) - len(gone) > KEPT:
                gone.append(c)

    give_up(extreme + [v["clock"] for v in costly])
    for trigger in list(gone):
        if trigger < below:
            give_up(sorted(c for c in clocks if c < trigger))
    return case | {"extreme": extreme, "costly": costly, "below": below, "best": best, "gone": gone}


def pruning(rng):
    return [
        prune_case(rng, int(rng.integers(2, 16)), float(rng.choice([0.0, 0.05, 0.3])), float(rng.choice([0.2, 1.0, 3.0])))
        for _ in range(60)
    ]


# --- refinement ---


def percentiles(rng):
    cases = []
    for n in (1, 2, 3, 6, 7, 20, 64):
        values = plain(rng.normal(0, 1, n))
        for p in (0.0, 0.33, 0.5, 0.67, 1.0):
            cases.append({"values": values, "p": p, "percentile": float(np.percentile(values, 100 * p))})
    return cases


def statistical_anchor(series, last):
    def bins(costs):
        p33, p67 = np.percentile(costs, [33, 67])
        return lambda cost: "low" if cost <= p33 else "high" if cost >= p67 else "medium"

    by_clock = dict(series)
    if last is not None and len(by_clock.get(last[0], [])) >= 6:
        wanted = bins(by_clock[last[0]])(last[1])
        means = {}
        for clock, costs in series:
            if len(costs) >= 6:
                p33, p67 = np.percentile(costs, [33, 67])
                values = np.array(costs)
                mask = {
                    "low": values <= p33,
                    "medium": (values > p33) & (values < p67),
                    "high": values >= p67,
                }[wanted]
                if mask.sum() >= 2:
                    means[clock] = values[mask].mean()
        if means:
            return min(means, key=means.get)
    means = {clock: np.mean(costs) for clock, costs in series if len(costs) >= 4}
    return min(means, key=means.get) if means else None


def predictive_anchor(predicted):
    if not predicted:
        return None
    top = max(p["bound"] for p in predicted)
    near = 0.8 * top if top > 0 else top - 0.3
    pool = [p for p in predicted if p["bound"] >= near]
    measured = [p for p in pool if p["samples"] >= 4]
    if measured:
        return min(measured, key=lambda p: p["mean_cost"])["clock"]
    return max(predicted, key=lambda p: p["bound"])["clock"]


def anchors(rng):
    statistical, predictive = [], []
    for _ in range(60):
        clocks = [int(c) for c in sorted(rng.choice(np.arange(210, 1411, 90), 6, replace=False), reverse=True)]
        low, high = (0, 12) if rng.random() < 0.7 else (0, 6)
        series = [[c, plain(rng.normal(0, 0.5, int(rng.integers(low, high))), 3)] for c in clocks]
        known = [(c, costs) for c, costs in series if costs]
        clock, costs = known[int(rng.integers(len(known)))]
        last = None if rng.random() < 0.1 else [clock, costs[-1]]
        statistical.append({"series": series, "last": last, "anchor": statistical_anchor(series, last)})
    for _ in range(40):
        shift = float(rng.choice([1.0, -1.0]))
        predicted = [
            {
                "clock": 1410 - 90 * k,
                "bound": float(np.round(shift + rng.normal(0, 0.3), 4)),
                "samples": int(rng.integers(0, 9)),
                "mean_cost": float(np.round(rng.normal(), 4)),
            }
            for k in range(int(rng.integers(1, 8)))
        ]
        predictive.append({"predicted": predicted, "anchor": predictive_anchor(predicted)})
    return {"percentiles": percentiles(rng), "statistical": statistical, "predictive": predictive}


def lists(_rng):
    """Coarse lists and windows on cards with a grid of 15 MHz, and on one with a grid of 7 or 8 MHz."""
    grids = {
        "a100": list(range(1410, 209, -15)),
        "h100": list(range(1980, 344, -15)),
        "t4": sorted({int(300 + 7.5 * k) for k in range(173)}, reverse=True),
    }
    cases = []
    for name, grid in grids.items():
        for step in (90, 200):
            coarse = []
            for clock in grid:
                if not coarse or coarse[-1] - clock >= step:
                    coarse.append(clock)
            if coarse[-1] != grid[-1]:
                coarse.append(grid[-1])
            for anchor in (coarse[0], coarse[len(coarse) // 2], coarse[-1]):
                for floor in (None, anchor - 45):
                    window = [c for c in grid if abs(c - anchor) <= 150 and (floor is None or c >= floor)]
                    cases.append(
                        {"card": name, "grid": grid, "step": step, "coarse": coarse}
                        | {"anchor": anchor, "floor": floor, "window": window}
                    )
    return cases


# --- phases, features, rewards ---


def settling(rng):
    shares, rises = [], []
    for _ in range(30):
        choices = [int(c) for c in rng.choice([300, 600, 900, 1200, 1410], 100, p=rng.dirichlet([0.6] * 5))]
        k = int(rng.integers(1, 5))
        counts = np.sort(np.unique(choices, return_counts=True)[1])[::-1]
        shares.append({"choices": choices, "k": k, "share": float(counts[:k].sum() / len(choices))})
    for n in (90, 100, 101, 140):
        values = plain(np.concatenate([rng.normal(0, 0.3, n - 40), rng.normal(0.5, 0.3, 40)]))
        found = None
        if n >= 100:
            newest, before = np.array(values[-50:]), np.array(values[-100:-50])
            by = newest.mean() - before.mean()
            deviation = math.sqrt((newest.var(ddof=1) + before.var(ddof=1)) / 50)
            found = {"by": float(by), "deviation": deviation}
        rises.append({"values": values, "half": 50, "rise": found})
    return {"shares": shares, "rises": rises}


def features(rng):
    rows = rng.lognormal(3, 1, (40, 7))
    rows[:, 0] = rng.integers(0, 2, 40)
    rows[:, 5] = 25.0  # a constant feature
    rows[20, 3] = 1e6  # far beyond the clip
    rows = plain(rows)
    scores = []
    for n in range(1, len(rows) + 1):
        seen = np.array(rows[:n])
        deviation = seen.std(axis=0, ddof=1) if n > 1 else np.ones(7)
        scores.append(np.clip((seen[-1] - seen.mean(axis=0)) / (deviation + 1e-8), -3, 3).tolist())
    samples, emas = plain(rng.uniform(0, 50, 30)), []
    for n in range(1, 31):
        weights = 0.4 * 0.6 ** np.arange(n - 1, -1, -1.0)
        weights[0] = 0.6 ** (n - 1)
        emas.append(float(weights @ np.array(samples[:n])))
    return {"rows": rows, "scores": scores, "alpha": 0.4, "samples": samples, "emas": emas}


def rewards(rng):
    cases = []
    for ratio in [0.1, 0.45, 0.9, 1.0, 1.5, 1.8, 1.81, 3.0, *plain(rng.uniform(0.05, 4, 20))]:
        power, delay = plain([rng.uniform(50, 700), rng.uniform(0.005, 0.2)])
        base_power = float(np.round(rng.uniform(50, 700), 4))
        base_delay = power * delay / (ratio * base_power)
        edp, base = power * delay, base_power * base_delay
        cases.append(
            {
                "power": power,
                "delay": delay,
                "base_power": base_power,
                "base_delay": base_delay,
                "log_ratio": -math.log(edp / base),
                "clipped": 2.0 * (1.0 - min(2.0, edp / (0.9 * base))),
            }
        )
    return cases


def same(a, b):
    """Equal, numbers to 1e-9: the last digits depend on numpy's version and on the processor."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    return a == b


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    OUT.mkdir(parents=True, exist_ok=True)
    stale = []
    for seed, make in enumerate([arms, alphas, pruning, anchors, lists, settling, features, rewards]):
        text = json.dumps(make(np.random.default_rng(1000 + seed)), separators=(",", ":")) + "\n"
        path = OUT / f"{make.__name__}.json"
        if not check:
            path.write_text(text)
        elif not (path.exists() and same(json.loads(path.read_text()), json.loads(text))):
            stale.append(str(path))
    if stale:
        sys.exit("gold: not what this script writes: " + ", ".join(stale))


if __name__ == "__main__":
    main()
