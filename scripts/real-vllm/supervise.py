"""Run a daemon until we are told to stop; then stop it and write down how it ended and what it used.

SIGTERM or SIGINT sent to this program is passed on to the daemon as SIGTERM. What the daemon leaves running is found by
a variable of its environment (--mark), which every process it starts inherits.

    supervise.py --out usage.json --mark NAME -- COMMAND...
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

LOOK_S = 0.5  # how often /proc is read: peak memory is gone once a process has ended
GRACE_S = 15.0  # patience with a daemon told to stop
LINGER_S = 2.0  # a guardian may outlive the daemon by this much
TICKS = os.sysconf("SC_CLK_TCK")


def marked(mark):
    """Ids of the processes, other than this one, whose environment holds `mark` (`NAME=value`)."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                pass  # ended meanwhile, or not ours
    return found


def usage_of(pid):
    """Name, CPU seconds and peak memory of a running process; None once it has ended."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    # The name is in brackets and may hold anything; the numbers begin after the last bracket, with field 3.
    name, rest = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
    peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    if not peak:
        return None  # a zombie has no memory any more
    return {"name": name, "cpu_s": (int(rest[11]) + int(rest[12])) / TICKS, "peak_rss_kib": int(peak[0])}


class Supervisor:
    """One daemon and what is known of it."""

    def __init__(self, mark):
        self.mark = mark
        self.stop_wanted = False
        self.seen = {}

    def look(self):
        """Note the usage of the daemon and of all it started."""
        for pid in marked(self.mark):
            if usage := usage_of(pid):
                self.seen[pid] = usage

    def run(self, command):
        """Run `command` until it ends or `stop_wanted` is set; returns the report."""
        begun = looked = time.monotonic()
        asked = None
        forced = False
        daemon = subprocess.Popen(command)
        while True:
            pid, status, used = os.wait4(daemon.pid, os.WNOHANG)
            if pid:
                break
            now = time.monotonic()
            if asked is None and (self.stop_wanted or now - looked > LOOK_S):
                self.look()
                looked = now
            if asked is None and self.stop_wanted:
                asked = time.monotonic()
                os.kill(daemon.pid, signal.SIGTERM)
            elif asked is not None and now - asked > GRACE_S and not forced:
                forced = True
                os.kill(daemon.pid, signal.SIGKILL)
            time.sleep(0.02)
        ended = time.monotonic()
        daemon.returncode = os.waitstatus_to_exitcode(status)
        while (left := marked(self.mark)) and time.monotonic() - ended < LINGER_S:
            time.sleep(0.05)
        own = self.seen.pop(daemon.pid, {})
        return {
            "exit_code": daemon.returncode,
            "stopped_on_request": asked is not None,
            "forced": forced,
            "asked_at_s": asked,
            "stop_s": None if asked is None else ended - asked,
            "wall_s": ended - begun,
            "cpu_s": used.ru_utime + used.ru_stime,
            "peak_rss_kib": own.get("peak_rss_kib"),
            "children": list(self.seen.values()),
            "left_running": [usage_of(pid) or {"name": str(pid)} for pid in left],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--mark", required=True, help="name of an environment variable set here")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    if args.mark not in os.environ:
        parser.error(f"the environment has no {args.mark}")
    supervisor = Supervisor(f"{args.mark}={os.environ[args.mark]}")

    def stop(*_signal):
        supervisor.stop_wanted = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    report = supervisor.run(args.command)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["stopped_on_request"] and report["exit_code"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
