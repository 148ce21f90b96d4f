"""Does the checker see what it should? A made-up good run passes, and each way to spoil it fails its own check."""

import json
import pathlib
import tempfile

import check

BEGIN = 1_800_000_000.0
PHASES = (("steady", 18.0), ("burst", 9.0), ("silence", 12.0), ("long", 12.0), ("steady", 9.0))

# What each feature reads in each phase, in the order of check.FEATURES.
READINGS = {
    "steady": (0.0, 600.0, 1300.0, 3.0, 2.0, 12.0, 72.0),
    "burst": (1.0, 2200.0, 4800.0, 9.0, 8.0, 40.0, 73.0),
    "silence": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "long": (0.0, 12000.0, 640.0, 40.0, 1.0, 45.0, 0.0),
}


def phases():
    """What load.py writes of a run in which all went well."""
    begin = BEGIN
    for name, length in PHASES:
        busy = name != "silence"
        yield {
            "name": name,
            "begin": begin,
            "end": begin + length,
            "requests": 100 if busy else 0,
            "failed": 0,
            "prompt_tokens": 8800 if busy else 0,
            "answer_tokens": 19200 if busy else 0,
            "ttft_p50_s": 0.006 if busy else None,
            "ttft_p99_s": 0.020 if busy else None,
            "tpot_mean_s": 0.0015 if busy else None,
            "total_p50_s": 0.28 if busy else None,
            "total_p99_s": 0.44 if busy else None,
        }
        begin += length


def rounds():
    """What agft writes of it."""
    names = [feature for feature, _, _ in check.FEATURES]
    for number in range(round(sum(length for _, length in PHASES) / check.PERIOD_S)):
        at = number * check.PERIOD_S + 0.1
        name = next(p["name"] for p in phases() if at < p["end"] - BEGIN)
        features = dict(zip(names, READINGS[name], strict=True))
        clock = 1410 - 15 * (number % 20)
        yield {
            "round": number + 1,
            "timestamp": BEGIN + at + 0.0004 * (number % 3),
            "window_s": check.PERIOD_S,
            "tick_lateness_s": 0.0004 * (number % 3),
            "asked_core_mhz": clock,
            "read_core_mhz": clock,
            **features,
        }


def writes():
    """What the mock driver was told meanwhile: a reset, twenty locks, a reset."""
    calls = [("nvmlDeviceResetGpuLockedClocks", 0)]
    calls += [("nvmlDeviceSetGpuLockedClocks", 1410 - 15 * number) for number in range(20)]
    calls += [("nvmlDeviceResetGpuLockedClocks", 0)]
    for number, (call, clock) in enumerate(calls):
        at_ns = (100 + 3 * number) * 10**9
        yield {"seq": number, "at_ns": at_ns, "pid": 7, "gpu": 0, "call": call, "args": [clock, clock], "code": 0}


def good_run():
    """All files of a good run, as values to spoil."""
    return {
        "load.json": {"phases": list(phases()), "errors": [], "finished": BEGIN + 60.0},
        "page.txt": [f'{name}{{engine="0",model_name="tiny"}} 7.0' for name in check.SAMPLES],
        "rounds_data.jsonl": list(rounds()),
        "agft.json": {
            "exit_code": 0,
            "stopped_on_request": True,
            "forced": False,
            "asked_at_s": 163.0,
            "stop_s": 0.05,
            "wall_s": 63.0,
            "cpu_s": 0.6,
            "peak_rss_kib": 20480,
            "children": [{"name": "guardian", "cpu_s": 0.01, "peak_rss_kib": 3000}],
            "left_running": [],
        },
        "history.jsonl": list(writes()),
        "gpus.json": [{"locks": {"core": None, "memory": None}}],
    }


def write(run, files):
    """Lay the files of a run out as try-real-vllm.sh does."""
    experiment = run / "experiment" / "made_up"
    experiment.mkdir(parents=True)
    for name, content in files.items():
        if name.endswith(".jsonl"):
            to = (experiment if name == "rounds_data.jsonl" else run) / name
            to.write_text("".join(json.dumps(line) + "\n" for line in content))
        elif name == "page.txt":
            (run / name).write_text("\n".join(content) + "\n")
        else:
            (run / name).write_text(json.dumps(content))


def failures(files):
    """Names of the checks that a run fails."""
    with tempfile.TemporaryDirectory() as directory:
        run = pathlib.Path(directory)
        write(run, files)
        return {result.name for result in check.judge(run, without_agft=False) if result.passed is False}


def every_round(**values):
    """Spoils: sets fields in all rounds."""

    def spoil(files):
        for r in files["rounds_data.jsonl"]:
            r.update(values)

    return spoil


def one_round(number, **values):
    """Spoils: sets fields in one round."""
    return lambda files: files["rounds_data.jsonl"][number].update(values)


def end(**values):
    """Spoils: agft ended otherwise."""
    return lambda files: files["agft.json"].update(values)


def told(number, **values):
    """Spoils: another write to the driver."""
    return lambda files: files["history.jsonl"][number].update(values)


def left_locked(clock):
    """Spoils: a lock is still there when agft has gone."""
    return lambda files: files["gpus.json"][0]["locks"].update({clock: {"min": 210, "max": 210}})


def slower(files):
    """Spoils: a round every 310 ms."""
    for number, r in enumerate(files["rounds_data.jsonl"]):
        r["timestamp"] = BEGIN + 0.1 + number * 0.31


def refused_requests(files):
    files["load.json"]["phases"][1]["failed"] = 3
    files["load.json"]["errors"] = ["HTTP/1.1 500 Internal Server Error"]


SPOILT = [
    ("requests answered", refused_requests),
    ("vLLM's page has what agft reads", lambda files: files["page.txt"].pop(3)),
    ("windows cover the load", lambda files: files["rounds_data.jsonl"].__delitem__(slice(40, None))),
    ("windows cover the load", every_round(window_s=0.2)),
    ("windows cover the load", every_round(window_s=0.4)),
    ("rounds numbered without gaps, times rising", lambda files: files["rounds_data.jsonl"].pop(100)),
    ("rounds numbered without gaps, times rising", one_round(7, timestamp=BEGIN)),
    ("interval p50 is 300 ms to 5 ms", slower),
    ("tick lateness p99 at most 10 ms", every_round(tick_lateness_s=None)),
    ("exit code 0 after SIGTERM", end(exit_code=1)),
    ("exit code 0 after SIGTERM", end(exit_code=-9, forced=True)),
    ("exit code 0 after SIGTERM", end(stopped_on_request=False)),
    ("stopped within 3 s", end(stop_s=4.0)),
    ("no process left running", end(left_running=[{"name": "guardian"}])),
    ("rounds say which clock was asked", every_round(asked_core_mhz=None)),
    *((f"feature {feature}", every_round(**{feature: 5.0})) for feature, _, _ in check.FEATURES),
    *((f"feature {feature}", one_round(50, **{feature: float("nan")})) for feature, _, _ in check.FEATURES),
    *((f"feature {feature}", one_round(50, **{feature: None})) for feature, _, _ in check.FEATURES),
    ("core clocks were locked", lambda files: files["history.jsonl"].__delitem__(slice(1, -1))),
    ("core clocks were locked", lambda files: files["history.jsonl"].clear()),
    ("first write is a reset", lambda files: files["history.jsonl"].pop(0)),
    ("first write is a reset", told(0, code=4)),
    ("last write is a reset", lambda files: files["history.jsonl"].pop()),
    ("no lock left on the GPU", left_locked("core")),
    ("no lock left on the GPU", left_locked("memory")),
]


def main():
    """Print what went wrong; 0 if nothing did."""
    wrong = [f"a good run failed: {name}" for name in sorted(failures(good_run()))]
    for name, spoil in SPOILT:
        files = good_run()
        spoil(files)
        found = failures(files)
        if name not in found:
            wrong.append(f"not seen: {name} ({spoil})")
    print(*wrong, f"{len(SPOILT) + 1} made-up runs, {len(wrong)} wrong", sep="\n")
    return 1 if wrong else 0
