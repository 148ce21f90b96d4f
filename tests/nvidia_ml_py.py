"""What NVIDIA's own Python client sees of the mock: run by nvidia_ml_py.rs, which checks the history afterwards."""

import time

from pynvml import *


def fails_with(code, call, *args):
    try:
        call(*args)
    except NVMLError as error:
        assert error.value == code, f"{call.__name__}: {error.value} is not {code}"
    else:
        raise AssertionError(f"{call.__name__} did not fail with {code}")


fails_with(NVML_ERROR_UNINITIALIZED, nvmlDeviceGetCount)
nvmlInit()
assert nvmlSystemGetDriverVersion() == "580.95.05"
assert nvmlSystemGetNVMLVersion() == "13.580.95.05"
assert nvmlSystemGetCudaDriverVersion_v2() == 13000
assert nvmlDeviceGetCount() == 2
a6000 = nvmlDeviceGetHandleByIndex(0)
a100 = nvmlDeviceGetHandleByIndex(1)
fails_with(NVML_ERROR_INVALID_ARGUMENT, nvmlDeviceGetHandleByIndex, 2)

# Identity, by every way in.
uuid, pci = nvmlDeviceGetUUID(a100), nvmlDeviceGetPciInfo(a100)
assert nvmlDeviceGetName(a100) == "NVIDIA A100-SXM4-80GB"
assert (pci.busId, pci.busIdLegacy, pci.bus) == ("00000000:02:00.0", "0000:02:00.0", 2), pci
for handle in nvmlDeviceGetHandleByUUID(uuid), nvmlDeviceGetHandleByPciBusId(pci.busId):
    assert nvmlDeviceGetIndex(handle) == 1
fails_with(NVML_ERROR_NOT_FOUND, nvmlDeviceGetHandleByUUID, "GPU-nobody")

# Clocks.
assert nvmlDeviceGetSupportedMemoryClocks(a6000) == [8001, 810, 405]
assert nvmlDeviceGetSupportedGraphicsClocks(a6000, 405) == list(range(420, 209, -15))
assert len(nvmlDeviceGetSupportedGraphicsClocks(a6000, 8001)) == 127
fails_with(NVML_ERROR_NOT_FOUND, nvmlDeviceGetSupportedGraphicsClocks, a6000, 811)
assert nvmlDeviceGetMaxClockInfo(a6000, NVML_CLOCK_SM) == 2100
assert nvmlDeviceGetMaxClockInfo(a6000, NVML_CLOCK_MEM) == 8001


def running(gpu):
    return nvmlDeviceGetClockInfo(gpu, NVML_CLOCK_SM), nvmlDeviceGetClockInfo(gpu, NVML_CLOCK_MEM)


assert running(a6000) == (2100, 8001)
nvmlDeviceSetGpuLockedClocks(a6000, 1005, 1005)
assert running(a6000) == (1005, 8001)
assert nvmlDeviceGetClock(a6000, NVML_CLOCK_GRAPHICS, NVML_CLOCK_ID_CURRENT) == 1005
nvmlDeviceSetMemoryLockedClocks(a6000, 405, 405)
assert running(a6000) == (420, 405), "the lowest memory clock goes with core clocks up to 420 MHz"
assert nvmlDeviceGetPerformanceState(a6000) == NVML_PSTATE_8
nvmlDeviceResetMemoryLockedClocks(a6000)
assert running(a6000) == (1005, 8001)
reasons = nvmlDeviceGetCurrentClocksEventReasons(a6000)
assert reasons == nvmlClocksEventReasonGpuIdle | nvmlClocksEventReasonApplicationsClocksSetting, reasons
assert nvmlDeviceGetCurrentClocksThrottleReasons(a6000) == reasons
assert reasons & ~nvmlDeviceGetSupportedClocksEventReasons(a6000) == 0
nvmlDeviceResetGpuLockedClocks(a6000)
assert running(a6000) == (2100, 8001)

# Symbolic limits, and what is refused.
TDP, UNLIMITED = NVML_CLOCK_LIMIT_ID_TDP, NVML_CLOCK_LIMIT_ID_UNLIMITED
nvmlDeviceSetGpuLockedClocks(a6000, TDP, TDP)
assert running(a6000) == (1410, 8001)
nvmlDeviceSetGpuLockedClocks(a6000, UNLIMITED, UNLIMITED)
assert running(a6000) == (2100, 8001)
fails_with(NVML_ERROR_INVALID_ARGUMENT, nvmlDeviceSetGpuLockedClocks, a6000, 210, UNLIMITED)
fails_with(NVML_ERROR_INVALID_ARGUMENT, nvmlDeviceSetGpuLockedClocks, a6000, 1005, 990)
fails_with(NVML_ERROR_NOT_SUPPORTED, nvmlDeviceSetMemoryLockedClocks, a100, 1593, 1593)

# Power and energy. The a6000's average sensor lags, its instantaneous one does not.
assert nvmlDeviceGetPowerUsage(a100) == 80000
assert nvmlDeviceGetEnforcedPowerLimit(a100) == nvmlDeviceGetPowerManagementLimit(a100) == 400000
assert nvmlDeviceGetPowerManagementLimitConstraints(a100) == [200000, 400000]
before = nvmlDeviceGetTotalEnergyConsumption(a100)
time.sleep(0.1)
energy, average, instant, unknown = nvmlDeviceGetFieldValues(a100, [83, 185, 186, 9999])
assert [entry.nvmlReturn for entry in (energy, average, instant, unknown)] == [0, 0, 0, NVML_ERROR_NOT_SUPPORTED]
assert energy.value.ullVal >= before + 80 * 100 - 80 * 20, "80 W for 0.1 s, less one tick of 20 ms"
assert (average.value.uiVal, instant.value.uiVal) == (80000, 80000)

# The rest.
assert nvmlDeviceGetUtilizationRates(a100).gpu == 0
assert nvmlDeviceGetTemperature(a100, NVML_TEMPERATURE_GPU) == 40
assert nvmlDeviceGetTemperatureV(a100, NVML_TEMPERATURE_GPU) == 40
for version in None, nvmlMemory_v2:
    memory = nvmlDeviceGetMemoryInfo(a100, version)
    assert (memory.total, memory.used) == (80 << 30, 1 << 30)
assert nvmlDeviceGetPersistenceMode(a100) == 1
assert nvmlDeviceGetMigMode(a100) == [0, 0]
fails_with(NVML_ERROR_NOT_SUPPORTED, nvmlDeviceGetMigMode, a6000)
for processes in nvmlDeviceGetComputeRunningProcesses_v2, nvmlDeviceGetComputeRunningProcesses_v3:
    assert [(process.pid, process.usedGpuMemory) for process in processes(a100)] == [(4711, 1 << 30)]
    assert processes(a6000) == []
assert nvmlDeviceGetPowerState(a100) == NVML_PSTATE_0

nvmlShutdown()
fails_with(NVML_ERROR_UNINITIALIZED, nvmlDeviceGetIndex, a100)
