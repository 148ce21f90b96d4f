"""What the mock driver was told, by the output of `nvml-mock-ctl history FILE --json`, and what came of it."""

import dataclasses
import json

SET = {"nvmlDeviceSetGpuLockedClocks": "core", "nvmlDeviceSetMemoryLockedClocks": "memory"}
RESET = {"nvmlDeviceResetGpuLockedClocks": "core", "nvmlDeviceResetMemoryLockedClocks": "memory"}


@dataclasses.dataclass(frozen=True)
class Write:
    """One call that sets or resets clocks; `at_s` is on the machine's monotonic clock."""

    call: str
    low_mhz: int
    high_mhz: int
    code: int
    at_s: float

    @property
    def done(self):
        """Did the driver do it?"""
        return self.code == 0

    @property
    def locks(self):
        """Which clock it locks, if it does."""
        return SET.get(self.call)

    @property
    def resets(self):
        """Which clock it gives back, if it does."""
        return RESET.get(self.call)

    def __str__(self):
        clocks = f" {self.low_mhz} to {self.high_mhz} MHz" if self.locks else ""
        return self.call.removeprefix("nvmlDevice") + clocks + ("" if self.done else f" (code {self.code})")


def read(path):
    """All writes to GPU 0, oldest first."""
    writes = [json.loads(line) for line in path.read_text().splitlines()]
    writes = sorted((w for w in writes if w["gpu"] == 0), key=lambda w: w["seq"])
    return [Write(w["call"], *w["args"], w["code"], w["at_ns"] / 1e9) for w in writes]


def locks_in_force(path):
    """The locks on GPU 0, in words, from the output of `nvml-mock-ctl show FILE --json`."""
    locks = json.loads(path.read_text())[0]["locks"]
    return [f"{clock} {lock['min']} to {lock['max']} MHz" for clock, lock in locks.items() if lock]
