"""Run agft-serve and agft beside a real llama-server and a mock GPU, and judge what they do.

    check.py --llama-server FILE --model FILE --binaries DIRECTORY --run DIRECTORY

Prints a line per check, `ok` or `FAIL` with its figure, and ends with 1 if one failed. What it starts it ends, by
process id. try-real-llama.sh calls it.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "real-vllm"))
import load

PATIENCE_S = 60.0  # for anything that has to come about, on a machine with much else to do
PARKED_MHZ = 210
LEAST_MHZ = 500  # lowest clock that is tried, so that no choice looks like parking
SLEEP_S = 4  # --sleep-idle-seconds
# agft reads the page until it shows no work and the GPU has been still for 2 s. A scrape in that time begins the count
# anew where a scrape is work.
SLEEP_LIMIT_S = SLEEP_S + 8.0
ASLEEP_S = 6.0  # how long it has to stay asleep beside agft
CALLERS_S = 25.0  # five vain calls, each judged after 3 s, until agft does not listen to a caller any more
IDLE_STOP_S = 3
REQUEST = {"prompt": 16, "answer": 128}  # tokens

# Instances and their GPUs. `scraped` and `unheard` behave as a llama-server to which a scrape is work; the clients of
# `unheard` are not listened to.
GPUS = {"chat": 0, "code": 1, "sleeper": 2, "scraped": 3, "unheard": 4}


class Failed(Exception):
    """Something that the next checks need did not come about."""


def wait(what, ask, patience_s=PATIENCE_S):
    """Ask until the answer is true; the answer, and the seconds that it took."""
    begun = time.monotonic()
    while True:
        if answer := ask():
            return answer, time.monotonic() - begun
        if time.monotonic() - begun > patience_s:
            raise Failed(f"{what}: not within {patience_s:g} s")
        time.sleep(0.05)


def get(url, data=None, headers=None, timeout_s=10.0):
    """JSON (or text) of an answer; None where nobody answers well."""
    request = urllib.request.Request(url, data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            body = answer.read().decode()
    except (OSError, urllib.error.URLError):
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body


def completion(port, tokens=16):
    """One request of its own connection: the seconds that it took, None if it failed."""
    begun = time.monotonic()
    body = {"prompt": list(range(2, 10)), "max_tokens": tokens, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    answer = get(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), headers, PATIENCE_S)
    good = isinstance(answer, dict) and answer.get("usage", {}).get("completion_tokens") == tokens
    return time.monotonic() - begun if good else None


def free_ports(count):
    """Ports that nobody has."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


class Traffic:
    """Clients that ask a server one request after the other, in a thread, while the mock GPU follows them."""

    def __init__(self, port, gpu, bench, clients=3, pause_s=0.05):
        self.server = load.Server(f"http://127.0.0.1:{port}", "tiny")
        self.gpu, self.bench, self.clients, self.pause_s = gpu, bench, clients, pause_s
        self.stopping = False
        self.begun = self.ended = None
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _client(self, number):
        for round_ in itertools.count():
            if self.stopping:
                return
            prompt = [2 + (number * 331 + round_ * 17 + i) % 990 for i in range(REQUEST["prompt"])]
            await self.server.ask(0, prompt, REQUEST["answer"])
            await asyncio.sleep(self.pause_s)

    async def _run(self):
        follower = asyncio.create_task(load.follow(self.server, self.bench.ctl, self.bench.state_file, self.gpu))
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))
        self.ended = time.monotonic()
        await asyncio.sleep(2 * load.FOLLOW_S)
        follower.cancel()
        self.bench.mock("load", self.bench.state_file, str(self.gpu), "0")

    def __enter__(self):
        self.begun = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        self.thread.join()

    @property
    def answers(self):
        return self.server.answers

    def figures(self):
        """Answers, tokens per second, times to first token."""
        good = [a for a in self.answers if not a.error]
        ttft = statistics.median(a.ttft_s for a in good) if good else float("nan")
        rate = sum(a.answer_tokens for a in good) / (self.ended - self.begun)
        wrong = "".join(f"; {e}" for e in sorted({a.error for a in self.answers if a.error})[:2])
        return f"{len(good)} of {len(self.answers)}, {rate:.0f} tokens/s, TTFT p50 {ttft * 1e3:.0f} ms{wrong}"

    def all_answered(self):
        return bool(self.answers) and not any(a.error for a in self.answers)


class Bench:
    """The programs under test with their files, and the line of each check."""

    def __init__(self, args):
        self.llama, self.model, self.run = args.llama_server.resolve(), args.model.resolve(), args.run.resolve()
        self.binaries = args.binaries.resolve()
        self.ctl = str(self.binaries / "nvml-mock-ctl")
        self.state_file = str(self.run / "nvml.state")
        self.children = {}
        self.llamas = set()
        self.failures = 0
        names = (*GPUS, "demand", "api")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.code_context = 8192

    # --- checks ---

    def check(self, name, passed, figure=""):
        self.failures += not passed
        print(f"{'ok  ' if passed else 'FAIL'}  {name:<58} {figure}", flush=True)

    # --- files and programs ---

    def llama_command(self, port, *more):
        fixed = [str(self.llama), "-m", str(self.model), "--alias", "tiny", "--host", "127.0.0.1", "--port", str(port)]
        return [*fixed, "--metrics", "-np", "4", "-t", "1", "--no-warmup", *more]

    def write_instances(self):
        """The instance file, as JSON, which YAML is a superset of."""

        def instance(name, *more, **keys):
            port = self.ports[name]
            return {
                "name": name,
                "command": self.llama_command(port, *more),
                "gpus": GPUS[name],
                "ready": {"http": f"http://127.0.0.1:{port}/health"},
                "metrics_url": f"http://127.0.0.1:{port}/metrics",
                "stop": {"grace_s": 10},
                **keys,
            }

        sleepy = ("-c", "8192", "--sleep-idle-seconds", str(SLEEP_S))
        demand = {
            "name": "demand",
            "command": self.llama_command("{port}", "-c", "8192"),
            "gpus": "none",
            "ready": {"http": "http://127.0.0.1:{port}/health"},
            "on_demand": {"listen": f"127.0.0.1:{self.ports['demand']}", "stop_after_idle_s": IDLE_STOP_S},
        }
        entries = [
            instance("chat", "-c", "8192"),
            instance("code", "-c", str(self.code_context)),
            instance("sleeper", *sleepy),
            instance("scraped", *sleepy, env={"LLAMA_SCRAPE_IS_WORK": "1"}),
            instance("unheard", *sleepy, env={"LLAMA_SCRAPE_IS_WORK": "1"}),
            demand,
        ]
        (self.run / "instances").mkdir(exist_ok=True)
        (self.run / "instances" / "llama.yaml").write_text(json.dumps(entries, indent=1) + "\n")

    def write_config(self):
        """The daemon's configuration: a quick sweep of few clocks."""
        servers = [
            {"name": name, "metrics_url": f"http://127.0.0.1:{self.ports[name]}/metrics", "gpus": gpu}
            for name, gpu in GPUS.items()
        ]
        servers[-1]["idle"] = {"core_mhz": PARKED_MHZ, "sources": ["metrics", "utilization"]}
        config = {
            "servers": servers,
            "gpu": {"runtime_dir": str(self.run / "agft"), "min_frequency": LEAST_MHZ},
            "idle": {"core_mhz": PARKED_MHZ},
            "linucb": {"coarse_step_mhz": 300},
            "metrics": {"baseline_measurements": 3},
            "observe": {"metrics_listen": "off"},
            "model": {"save_dir": str(self.run / "models")},
            "experiment": {"dir": str(self.run / "experiment")},
            "logging": {"dir": str(self.run / "logs")},
        }
        self.config = self.run / "config.yaml"
        self.config.write_text(json.dumps(config, indent=1) + "\n")

    def environment(self):
        driver = self.run / "driver"
        if not driver.exists():
            driver.mkdir()
            (driver / "libnvidia-ml.so.1").symlink_to(self.binaries / "libnvidia_ml.so")
            self.mock("create", "--preset", "a100", "--gpus", str(len(GPUS)), self.state_file)
        return {**os.environ, "LD_LIBRARY_PATH": str(driver), "NVML_MOCK_STATE": self.state_file}

    def mock(self, *arguments):
        return subprocess.run([self.ctl, *arguments], check=True, capture_output=True, text=True).stdout

    def start(self, name, command, env=None):
        with open(self.run / f"{name}.log", "ab") as log:
            self.children[name] = subprocess.Popen(
                command, env=env, cwd=self.run, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stop(self, name):
        """Seconds until it ended after SIGTERM, and its exit code."""
        child = self.children.pop(name)
        begun = time.monotonic()
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return time.monotonic() - begun, child.returncode

    # --- agft-serve ---

    def start_serve(self):
        directories = [f"--{name}={self.run / name}" for name in ("instances", "runtime-dir", "state-dir", "log-dir")]
        listen = f"--listen=127.0.0.1:{self.ports['api']}"
        self.start("agft-serve", [str(self.binaries / "agft-serve"), "serve", *directories, listen])

    def api(self, path, body=None):
        headers = {}
        if body is not None:
            token = (self.run / "runtime-dir" / "token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}"}
        return get(f"http://127.0.0.1:{self.ports['api']}/v1/{path}", body, headers, 30.0)

    def instances(self):
        answer = self.api("instances")
        listed = {one["name"]: one for one in answer["instances"]} if isinstance(answer, dict) else {}
        self.llamas |= {one["pid"] for one in listed.values() if one["pid"]}
        return listed

    def instance(self, name):
        return self.instances().get(name, {"state": None, "pid": None})

    def is_ready(self, *names):
        listed = self.instances()
        return all(listed.get(name, {}).get("state") == "ready" for name in names)

    # --- agft ---

    def start_agft(self):
        self.start("agft", [str(self.binaries / "agft"), "--config", str(self.config)], self.environment())

    def servers(self):
        """State of each server, as the control socket tells it."""
        for path in (self.run / "agft").glob("agft-*.sock"):
            with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(path))
                client.sendall(b'{"cmd":"status"}\n')
                answer = json.loads(client.makefile().readline())
                return {server["name"]: server for server in answer["state"]["servers"]}
        return {}

    def server(self, name):
        return self.servers().get(name, {"mode": None, "counts": {"lessons": 0}, "scrape": {"count": 0}})

    def core_lock(self, name):
        """The driver's lock of the core clock of an instance's GPU."""
        return json.loads(self.mock("show", "--json", self.state_file))[GPUS[name]]["locks"]["core"]

    def core_locks(self, name):
        """Upper bounds in MHz of all core locks of an instance's GPU so far."""
        writes = map(json.loads, self.mock("history", "--json", self.state_file).splitlines())
        locks = (w for w in writes if w["call"] == "nvmlDeviceSetGpuLockedClocks" and w["gpu"] == GPUS[name])
        return {w["args"][1] for w in locks if w["code"] == 0}

    def is_parked(self, name):
        lock = self.core_lock(name)
        return self.server(name)["mode"] == "IDLE" and lock is not None and lock["max"] == PARKED_MHZ

    def is_busy(self, name):
        lock = self.core_lock(name)
        unparked = lock is None or lock["max"] >= LEAST_MHZ
        return unparked and self.server(name)["mode"] not in (None, "IDLE", "OUTAGE", "STARTING", "FAULT")

    def is_asleep(self, name):
        """By the server's log: a question to the server could be taken for work."""
        log = (self.run / "log-dir" / f"{name}.log").read_text(errors="replace")
        return log.rfind("entering sleeping state") > log.rfind("exiting sleeping state")

    def says_it_sleeps(self, name):
        """By the server's own word."""
        props = get(f"http://127.0.0.1:{self.ports[name]}/props")
        return isinstance(props, dict) and props.get("is_sleeping") is True

    def lessons(self, name):
        return self.server(name)["counts"]["lessons"]

    def traffic(self, name, **more):
        return Traffic(self.ports[name], GPUS[name], self, **more)

    def end(self):
        """Ends what is left, after a failure too."""
        for name in reversed(list(self.children)):
            self.stop(name)
        for pid in self.llamas:
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe") == str(self.llama):
                    os.kill(pid, signal.SIGKILL)


def served(bench):
    """1: agft-serve runs llama-servers that answer."""
    bench.write_instances()
    bench.environment()
    begun = time.monotonic()
    bench.start_serve()
    wait("instances ready", lambda: bench.is_ready(*GPUS))
    bench.check(f"agft serve: {len(GPUS)} llama-servers are ready", True, f"{time.monotonic() - begun:.2f} s")
    with bench.traffic("chat") as chat, bench.traffic("code") as code:
        # The list asks the pages every 5 s; a rate needs two of them.
        listed = {}

        def rates():
            nonlocal listed
            listed = bench.instances()
            return all(listed[name]["tokens_per_s"] for name in ("chat", "code"))

        with contextlib.suppress(Failed):
            wait("rates", rates, 20)
    for name, traffic in (("chat", chat), ("code", code)):
        bench.check(f"agft serve: {name} answers its requests", traffic.all_answered(), traffic.figures())
    rates = {name: listed[name]["tokens_per_s"] for name in ("chat", "code")}
    told = ", ".join(f"{name} {rate:.0f} tokens/s" if rate else f"{name} none" for name, rate in rates.items())
    bench.check("agft serve: the list has the rates of real pages", all(rates.values()), told)


def kept_awake_by_scrapes(bench):
    """Without agft: scrapes do keep the server awake to which they are work, or 6 would prove nothing."""
    asleep = {"sleeper": False, "scraped": False}
    until = time.monotonic() + SLEEP_S + 4
    while time.monotonic() < until:
        for name in asleep:
            get(f"http://127.0.0.1:{bench.ports[name]}/metrics")
            asleep[name] |= bench.is_asleep(name)
        time.sleep(0.3)
    bench.check("control: scrapes keep `scraped` awake", not asleep["scraped"], f"asleep: {asleep['scraped']}")
    bench.check("control: scrapes do not keep this build awake", asleep["sleeper"], f"asleep: {asleep['sleeper']}")


def watched(bench):
    """2: agft recognises the real page, parks and wakes by it, and learns from it."""
    bench.write_config()
    checked = subprocess.run(
        [str(bench.binaries / "agft"), "--config", str(bench.config), "check"],
        env=bench.environment(), cwd=bench.run, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (bench.run / "check.txt").write_text(checked.stdout + checked.stderr)
    seen = checked.stdout.count("engine: llama.cpp")
    bench.check(
        "agft check: every page is llama.cpp's",
        checked.returncode == 0 and seen == len(GPUS),
        f"{seen} of {len(GPUS)}, exit code {checked.returncode}",
    )
    bench.start_agft()
    _, took = wait("idle GPUs parked", lambda: all(bench.is_parked(name) for name in ("chat", "code")))
    bench.check("agft: GPUs of idle servers are parked", True, f"{took:.1f} s after its start")
    with bench.traffic("chat") as chat:
        _, took = wait("GPU busy under load", lambda: bench.is_busy("chat"))
        bench.check("agft: load wakes the GPU", True, f"{took:.2f} s")
        _, took = wait("learning", lambda: bench.lessons("chat") >= 5)
        state = bench.server("chat")
        figure = f"{state['counts']['lessons']} rounds learned in {took:.1f} s; delay: {state['delay']}"
        bench.check("agft: learns from the real page", True, figure)
        bench.check("agft: the other server's GPU stays parked", bench.is_parked("code"), bench.server("code")["mode"])
        locks = sorted(bench.core_locks("chat") - {PARKED_MHZ})
        bench.check("agft: it chose core clocks meanwhile", len(locks) > 0, f"{', '.join(map(str, locks))} MHz")
        bench.check("agft: the GPU is still busy", bench.is_busy("chat"), bench.server("chat")["mode"])
    bench.check("agft: all requests meanwhile were answered", chat.all_answered(), chat.figures())
    files = (bench.run / "experiment" / "chat").glob("*/rounds_data.jsonl")
    rounds = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    rewards = [r["reward"] for r in rounds if isinstance(r.get("reward"), float)]
    bench.check("agft: the record has rewards", len(rewards) >= 5, f"{len(rewards)} of {len(rounds)} rounds")
    _, took = wait("parked after the load", lambda: bench.is_parked("chat"))
    bench.check("agft: parked again after the load", True, f"{took:.1f} s")


def killed(bench):
    """3: a server that is killed comes back, and agft goes on."""
    before = bench.instance("chat")["pid"]
    os.kill(before, signal.SIGKILL)
    _, took = wait("new process", lambda: bench.instance("chat")["pid"] not in (None, before))
    _, more = wait("ready again", lambda: bench.is_ready("chat"))
    now = bench.instance("chat")["pid"]
    bench.check("kill -9: back with a new pid, and ready", now != before, f"{took + more:.2f} s, {before} -> {now}")
    answered = completion(bench.ports["chat"])
    bench.check("kill -9: answers", answered is not None, f"{answered or 0:.2f} s")
    learned = bench.lessons("chat")
    with bench.traffic("chat"):
        _, took = wait("learning after the kill", lambda: bench.lessons("chat") >= learned + 3)
    bench.check("kill -9: agft learns from the new process", True, f"3 rounds in {took:.1f} s")


def reloaded(bench):
    """4: a reload replaces what changed and nothing else."""
    before = bench.instances()
    bench.code_context = 4096
    bench.write_instances()
    answer = bench.api("reload", b"")
    replaced = isinstance(answer, dict) and answer.get("restarted") == ["code"]
    _, took = wait("changed instance", lambda: bench.instance("code")["pid"] not in (None, before["code"]["pid"]))
    _, more = wait("ready again", lambda: bench.is_ready("code"))
    now = bench.instances()
    others = [name for name in GPUS if name != "code"]
    stayed = all(now[name]["pid"] == before[name]["pid"] for name in others)
    bench.check("reload: the changed instance alone is replaced", replaced, f"{took + more:.2f} s, {answer}")
    bench.check("reload: the others' pids stay", stayed, ", ".join(f"{name} {now[name]['pid']}" for name in others))
    slots = get(f"http://127.0.0.1:{bench.ports['code']}/props")
    context = slots["default_generation_settings"]["n_ctx"] if isinstance(slots, dict) else None
    bench.check("reload: it runs with the new argument", context == 4096 // 4, f"{context} tokens per slot")
    answered = completion(bench.ports["code"])
    bench.check("reload: answers", answered is not None, f"{answered or 0:.2f} s")


def on_demand(bench):
    """5: a server that nobody needed for a while answers the first connection."""
    for when in ("never started", "stopped for idleness"):
        was, took = wait("stopped", lambda: bench.instance("demand")["state"] == "stopped-idle" and "stopped-idle")
        pid = bench.instance("demand")["pid"]
        answered = completion(bench.ports["demand"])
        bench.check(
            f"on demand: {when}, the first connection is answered",
            answered is not None and pid is None,
            f"{answered or 0:.2f} s (was {was} for {took:.1f} s)" if when == "never started"
            else f"{answered or 0:.2f} s; it had stopped after {took:.1f} s",
        )  # fmt: skip


def asleep(bench, name):
    """6: a server goes to sleep beside agft, stays asleep, and wakes for a request."""
    wait("watched by agft", lambda: bench.server(name)["mode"] is not None)
    for turn in ("first", "second"):
        learned = bench.lessons(name)
        with bench.traffic(name) as traffic:
            wait("awake", lambda: not bench.is_asleep(name))
            _, took = wait("learning", lambda: bench.lessons(name) >= learned + 2)
        what = f"{name}: {turn} load is answered, agft learns"
        first = traffic.answers[0].ttft_s
        figure = f"first token after {first:.2f} s, 2 rounds in {took:.1f} s; {traffic.figures()}"
        bench.check(what, traffic.all_answered(), figure)
        scrapes = bench.server(name)["scrape"]["count"]
        try:
            _, took = wait("asleep", lambda: bench.is_asleep(name), SLEEP_LIMIT_S)
            told = f"{took:.1f} s after the load"
        except Failed:
            took, told = None, f"awake after {SLEEP_LIMIT_S:g} s"
        asked = bench.server(name)["scrape"]["count"] - scrapes
        told = f"{told}, {asked} looks of agft"
        bench.check(f"{name}: goes to sleep beside agft", took is not None and asked > 0, told)
        if took is None:
            return
        begun, stayed, modes = time.monotonic(), True, set()
        while time.monotonic() - begun < ASLEEP_S:
            stayed &= bench.is_asleep(name)
            modes.add(bench.server(name)["mode"])
            time.sleep(0.2)
        # An outage, on a machine that has too much to do, ends parking for a moment.
        wait(f"{name} parked", lambda: bench.is_parked(name))
        figure = f"{ASLEEP_S:g} s, mode {', '.join(sorted(map(str, modes)))}, lock {bench.core_lock(name)}"
        bench.check(f"{name}: stays asleep, its GPU parked", stayed and bench.says_it_sleeps(name), figure)


@contextlib.contextmanager
def health_checks(bench, name, every_s):
    """Somebody asks for the server's health meanwhile, over a new connection each time."""
    done = threading.Event()

    def ask():
        while not done.wait(every_s):
            get(f"http://127.0.0.1:{bench.ports[name]}/health")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def asleep_beside_health_checks(bench, name):
    """6, and somebody asks for the server's health: agft hears of it, and must learn that it brings no work."""
    with bench.traffic(name):
        wait("awake", lambda: not bench.is_asleep(name))
        time.sleep(2)
    with health_checks(bench, name, 1.0):
        try:
            _, took = wait("asleep", lambda: bench.is_asleep(name), SLEEP_LIMIT_S + CALLERS_S)
            told = f"{took:.1f} s after the load"
        except Failed:
            took, told = None, f"awake after {SLEEP_LIMIT_S + CALLERS_S:g} s"
    bench.check(f"{name}: goes to sleep beside agft and health checks", took is not None, told)


def ended(bench):
    """Both programs end when told to, with nothing left behind."""
    took, code = bench.stop("agft")
    locks = [bench.core_lock(name) for name in GPUS]
    bench.check("agft ends, and gives all clocks back", code == 0 and not any(locks), f"{took:.2f} s, exit code {code}")
    took, code = bench.stop("agft-serve")
    left = [pid for pid in bench.llamas if pathlib.Path(f"/proc/{pid}").exists()]
    bench.check("agft serve ends, and all servers with it", code == 0 and not left, f"{took:.2f} s, exit code {code}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--llama-server", "--model", "--binaries", "--run"):
        parser.add_argument(name, type=pathlib.Path, required=True)
    bench = Bench(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(143))
    steps = (
        lambda: served(bench),
        lambda: kept_awake_by_scrapes(bench),
        lambda: watched(bench),
        lambda: killed(bench),
        lambda: reloaded(bench),
        lambda: on_demand(bench),
        lambda: asleep(bench, "sleeper"),
        lambda: asleep(bench, "scraped"),
        lambda: asleep(bench, "unheard"),
        lambda: asleep_beside_health_checks(bench, "scraped"),
        lambda: ended(bench),
    )
    try:
        for step in steps:
            try:
                step()
            except Failed as why:
                bench.check(str(why), False)
                if any(child.poll() is not None for child in bench.children.values()):
                    print("a program under test has ended: see its log", flush=True)
                    break
    finally:
        bench.end()
    print(f"{bench.failures} failed" if bench.failures else "all well", flush=True)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
