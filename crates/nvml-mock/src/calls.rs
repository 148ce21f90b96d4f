//! The names of every function this library exports.

macro_rules! calls {
    ($($name:ident),* $(,)?) => {
        /// An exported NVML function, or one of NVAPI.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(non_camel_case_types, reason = "these are NVML's own names")]
        #[repr(u32)]
        pub(crate) enum Call { $($name),* }

        impl Call {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];
            pub(crate) const COUNT: usize = Self::ALL.len();

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

calls!(
    nvmlInit_v2,
    nvmlInitWithFlags,
    nvmlShutdown,
    nvmlSystemGetDriverVersion,
    nvmlSystemGetNVMLVersion,
    nvmlSystemGetCudaDriverVersion_v2,
    nvmlDeviceGetCount_v2,
    nvmlDeviceGetHandleByIndex_v2,
    nvmlDeviceGetHandleByUUID,
    nvmlDeviceGetHandleByPciBusId_v2,
    nvmlDeviceGetIndex,
    nvmlDeviceGetMinorNumber,
    nvmlDeviceGetName,
    nvmlDeviceGetUUID,
    nvmlDeviceGetPciInfo_v3,
    nvmlDeviceGetClockInfo,
    nvmlDeviceGetMaxClockInfo,
    nvmlDeviceGetClock,
    nvmlDeviceGetSupportedMemoryClocks,
    nvmlDeviceGetSupportedGraphicsClocks,
    nvmlDeviceSetGpuLockedClocks,
    nvmlDeviceResetGpuLockedClocks,
    nvmlDeviceSetMemoryLockedClocks,
    nvmlDeviceResetMemoryLockedClocks,
    nvmlDeviceGetPowerUsage,
    nvmlDeviceGetEnforcedPowerLimit,
    nvmlDeviceGetPowerManagementLimit,
    nvmlDeviceGetPowerManagementDefaultLimit,
    nvmlDeviceGetPowerManagementLimitConstraints,
    nvmlDeviceGetTotalEnergyConsumption,
    nvmlDeviceGetFieldValues,
    nvmlDeviceGetUtilizationRates,
    nvmlDeviceGetTemperature,
    nvmlDeviceGetTemperatureV,
    nvmlDeviceGetMemoryInfo,
    nvmlDeviceGetMemoryInfo_v2,
    nvmlDeviceGetCurrentClocksThrottleReasons,
    nvmlDeviceGetCurrentClocksEventReasons,
    nvmlDeviceGetSupportedClocksThrottleReasons,
    nvmlDeviceGetSupportedClocksEventReasons,
    nvmlDeviceGetPersistenceMode,
    nvmlDeviceGetPerformanceState,
    nvmlDeviceGetPowerState,
    nvmlDeviceGetMigMode,
    nvmlDeviceGetComputeRunningProcesses,
    nvmlDeviceGetComputeRunningProcesses_v2,
    nvmlDeviceGetComputeRunningProcesses_v3,
    NvAPI_Initialize,
    NvAPI_EnumPhysicalGPUs,
    NvAPI_GPU_GetBusId,
    NvAPI_GPU_SetForcePstate,
);

impl Call {
    /// The call of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|call| call.name() == name)
    }

    /// The call with that number, as stored in the shared file.
    pub(crate) fn from_number(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}
