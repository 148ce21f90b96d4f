"""What the mock driver was told: the output of `nvml-mock-ctl history FILE --json`."""

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
    writes = [w for w in json.loads(path.read_text()) if w["gpu"] == 0]
    writes.sort(key=lambda w: w["seq"])
    return [Write(w["call"], *w["args"], w["code"], w["at_ns"] / 1e9) for w in writes]


def locked_after(writes):
    """The locks in force once all of `writes` are done: which clock, and the write that did it."""
    locks = {}
    for write in writes:
        if write.done and write.locks:
            locks[write.locks] = write
        elif write.done and write.resets:
            locks.pop(write.resets, None)
    return locks
