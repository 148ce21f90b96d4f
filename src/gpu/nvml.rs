//! NVIDIA GPUs through NVML: the real [`GpuSensors`] and [`GpuClocks`], and the only place that names nvml-wrapper.
//!
//! Every function of the library is optional: what an older driver lacks is a missing sensor, not a failure.

mod error;
mod raw;

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::{GpuLockedClocksSetting, SampleValue};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_POWER_INSTANT;
use nvml_wrapper::{Device, Nvml};

use self::error::{call_failed, init_failed};
use super::host::Host;
use super::nvapi::{BY_DRIVER, Nvapi};
use super::pstate::{MayBeForced, PstateClocks, clocks_to_reset};
use super::{
    ClockReasons, GpuClocks, GpuError, GpuInfo, GpuReading, GpuSelector, GpuSensors, GpuSetup, MemoryLevel,
    SupportedClocks,
};
use crate::units::{Mhz, Millijoules, Watts};

/// The driver's library, initialised. Open it once and keep it: it costs 0.1 s to seconds on a real driver.
#[derive(Debug, Clone, Copy)]
pub struct NvmlHost {
    /// Leaked, so that devices can go to other threads and outlive this value. NVML is never shut down: the process
    /// needs it to its last moment, when the clocks are given back, and while a handle is open a driver without
    /// persistence mode does not unload and drop the locks.
    nvml: &'static Nvml,
}

impl NvmlHost {
    /// Loads `libnvidia-ml.so.1` and initialises it.
    pub fn open() -> Result<Self, GpuError> {
        Self::init(None)
    }

    /// The same with a library at that path.
    pub fn open_with(library: &Path) -> Result<Self, GpuError> {
        Self::init(Some(library.as_os_str()))
    }

    fn init(library: Option<&OsStr>) -> Result<Self, GpuError> {
        let mut builder = Nvml::builder();
        if let Some(path) = library {
            builder.lib_path(path);
        }
        let nvml = builder.init().map_err(init_failed)?;
        Ok(Self { nvml: Box::leak(Box::new(nvml)) })
    }

    /// The sensors of one GPU.
    /// Errors: [`GpuError::NotFound`], or what [`list`](Host::list) gives.
    pub fn sensors(&self, selector: &GpuSelector) -> Result<NvmlSensors, GpuError> {
        let (device, info) = self.device(selector)?;
        let label = info.to_string();
        Ok(NvmlSensors { device, info, label, power_source: OnceCell::new() })
    }

    /// The clock controls of one GPU. Getting them needs no privilege; using them does.
    /// Errors: [`GpuError::NotFound`], or what [`list`](Host::list) gives.
    pub fn clocks(&self, selector: &GpuSelector) -> Result<NvmlClocks, GpuError> {
        let (device, info) = self.device(selector)?;
        let label = info.to_string();
        Ok(NvmlClocks { device, info, label })
    }

    /// The number of the PCI bus of a GPU; `None` if there is another one on a bus of that number, in another domain.
    /// Errors: [`GpuError::NotFound`], or what [`list`](Host::list) gives.
    pub(crate) fn only_on_bus(&self, uuid: &str) -> Result<Option<u32>, GpuError> {
        let (device, info) = self.device(&GpuSelector::Uuid(uuid.to_owned()))?;
        let pci = device.pci_info();
        let pci = pci.map_err(|error| call_failed(&info.to_string(), "nvmlDeviceGetPciInfo", "", error))?;
        let others = self.devices()?.into_iter().filter_map(|(_, found)| found.ok());
        let same = others.filter(|(other, _)| other.pci_info().is_ok_and(|other| other.bus == pci.bus));
        Ok((same.count() == 1).then_some(pci.bus))
    }

    fn device(&self, selector: &GpuSelector) -> Result<(Device<'static>, GpuInfo), GpuError> {
        let mut devices = self.devices()?;
        if let GpuSelector::Index(index) = selector
            && let Some(place) = devices.iter().position(|(at, found)| at == index && found.is_err())
        {
            return devices.swap_remove(place).1;
        }
        let devices: Vec<_> = answering(devices).collect();
        let present = devices.iter().map(|(_, info)| format!("{} ({})", info.index, info.uuid));
        let present = present.collect::<Vec<_>>().join(", ");
        devices.into_iter().find(|(_, info)| selector.selects(info)).ok_or_else(|| GpuError::NotFound {
            wanted: selector.to_string(),
            present: if present.is_empty() { "none".to_owned() } else { present },
        })
    }

    fn devices(&self) -> Result<Vec<(u32, Found)>, GpuError> {
        let failed = |error| call_failed("every GPU", "nvmlDeviceGetCount", "", error);
        let count = self.nvml.device_count().map_err(failed)?;
        let driver_version = self.nvml.sys_driver_version().ok();
        let find = |index| {
            let failed =
                |error| call_failed(&format!("GPU {index}"), "nvmlDeviceGetHandleByIndex", "", error);
            let device = self.nvml.device_by_index(index).map_err(failed)?;
            let info = info(&device, index, driver_version.clone())?;
            Ok((device, info))
        };
        Ok((0..count).map(|index| (index, find(index))).collect())
    }
}

impl Host for NvmlHost {
    fn list(&self) -> Result<Vec<GpuInfo>, GpuError> {
        Ok(answering(self.devices()?).map(|(_, info)| info).collect())
    }

    fn sensors(&self, selector: &GpuSelector) -> Result<Box<dyn GpuSensors>, GpuError> {
        Ok(Box::new(Self::sensors(self, selector)?))
    }

    fn clocks(&self, selector: &GpuSelector) -> Result<Box<dyn GpuClocks>, GpuError> {
        Ok(Box::new(Self::clocks(self, selector)?))
    }

    fn state_clocks(&self, gpu: &GpuInfo, state: u32) -> Result<Box<dyn GpuClocks>, GpuError> {
        Ok(Box::new(PstateClocks::open_to_force(*self, gpu, state)?))
    }

    fn has_states(&self, gpu: &GpuInfo) -> bool {
        PstateClocks::open(*self, &gpu.uuid, BY_DRIVER).is_ok()
    }

    fn clocks_to_reset(&self, uuid: &str, forced: MayBeForced) -> Result<Box<dyn GpuClocks>, GpuError> {
        clocks_to_reset(*self, uuid, forced)
    }

    fn compute_processes(&self) -> Result<Vec<(GpuInfo, Vec<u32>)>, GpuError> {
        const CALL: &str = "nvmlDeviceGetComputeRunningProcesses";
        let (mut listed, mut missing) = (Vec::new(), None);
        for (device, info) in answering(self.devices()?) {
            let processes = device.running_compute_processes();
            match processes.map_err(|error| call_failed(&info.to_string(), CALL, "", error)) {
                Ok(processes) => {
                    // One entry for each instance of a GPU that is cut into instances.
                    let pids: BTreeSet<u32> = processes.into_iter().map(|process| process.pid).collect();
                    listed.push((info, pids.into_iter().collect()));
                }
                Err(error) if error.is_missing_sensor() => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
        missing.filter(|_| listed.is_empty()).map_or(Ok(listed), Err)
    }

    fn pci_name(&self, uuid: &str) -> Option<String> {
        let (device, _) = self.device(&GpuSelector::Uuid(uuid.to_owned())).ok()?;
        let pci = device.pci_info().ok()?;
        // The driver's domain has eight digits, the kernel's four.
        let (domain, rest) = pci.bus_id.split_once(':')?;
        let domain = u32::from_str_radix(domain, 16).ok()?;
        Some(format!("{domain:04x}:{}", rest.to_ascii_lowercase()))
    }

    fn is_gone(&self, uuid: &str, pci: Option<&str>) -> bool {
        let Ok(devices) = self.devices() else { return false };
        let absent = devices.iter().all(|(_, found)| found.as_ref().is_ok_and(|(_, info)| info.uuid != uuid));
        let known = Path::new("/sys/bus/pci/devices");
        let at = pci.map(|pci| known.join(pci));
        absent && known.is_dir() && at.is_some_and(|at| !at.exists())
    }

    fn restart(&self) -> Result<(), GpuError> {
        raw::restart(self.nvml).map_err(init_failed)
    }

    fn libraries(&self) -> Vec<(&'static str, String)> {
        let nvapi = match Nvapi::open() {
            Ok(_) => {
                "loaded: agft park can force performance states where clocks cannot be locked".to_owned()
            }
            Err(error) => format!("not there, which matters to agft park before Volta alone: {error}"),
        };
        vec![("driver", "libnvidia-ml.so.1 loaded and initialised".to_owned()), ("NVAPI", nvapi)]
    }
}

/// A GPU that NVML counts, or why it does not answer.
type Found = Result<(Device<'static>, GpuInfo), GpuError>;

fn answering(devices: Vec<(u32, Found)>) -> impl Iterator<Item = (Device<'static>, GpuInfo)> {
    let warn = |gpu, error: &GpuError| tracing::warn!(gpu, %error, "GPU does not answer; left out");
    devices.into_iter().filter_map(move |(gpu, found)| found.inspect_err(|error| warn(gpu, error)).ok())
}

fn info(device: &Device<'_>, index: u32, driver_version: Option<String>) -> Result<GpuInfo, GpuError> {
    let gpu = format!("GPU {index}");
    let uuid = device.uuid().map_err(|error| call_failed(&gpu, "nvmlDeviceGetUUID", "", error));
    let name = device.name().map_err(|error| call_failed(&gpu, "nvmlDeviceGetName", "", error));
    let limit_mw = device.enforced_power_limit().or_else(|_| device.power_management_limit());
    let highest_mw = device.power_management_limit_constraints();
    Ok(GpuInfo {
        index,
        uuid: text_or(uuid, || format!("GPU-unknown-{index}"))?,
        name: text_or(name, || "unknown".to_owned())?,
        driver_version,
        power_limit: limit_mw.ok().map(|mw| watts(f64::from(mw))),
        power_limit_max: highest_mw.ok().map(|limits| watts(f64::from(limits.max_limit))),
    })
}

/// A text that a driver may not have: then one of ours.
fn text_or(text: Result<String, GpuError>, ours: impl FnOnce() -> String) -> Result<String, GpuError> {
    match text {
        Err(error) if error.is_missing_sensor() => Ok(ours()),
        text => text,
    }
}

fn watts(milliwatts: f64) -> Watts {
    Watts(milliwatts / 1e3)
}

/// Which power sensor a board has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PowerSource {
    /// Field 186, instantaneous: driver 535 and later.
    Instant,
    /// `nvmlDeviceGetPowerUsage`: a mean over 1 s on Ampere (but GA100) and later.
    Usage,
    Missing,
}

/// The sensors of one GPU.
#[derive(Debug)]
pub struct NvmlSensors {
    device: Device<'static>,
    info: GpuInfo,
    label: String,
    /// Decided by the first conclusive answer: asking for what is not there costs a driver call each time.
    power_source: OnceCell<PowerSource>,
}

impl NvmlSensors {
    fn failed(&self, call: &'static str) -> impl FnOnce(NvmlError) -> GpuError + '_ {
        move |error| call_failed(&self.label, call, "", error)
    }

    fn clock(&self, clock: Clock) -> Result<Mhz, GpuError> {
        self.device.clock_info(clock).map(Mhz).map_err(self.failed("nvmlDeviceGetClockInfo"))
    }

    fn reasons(&self) -> Result<ClockReasons, GpuError> {
        let bits = match raw::clock_event_reasons(&self.device) {
            Err(NvmlError::FailedToLoadSymbol(_)) => {
                self.device.current_throttle_reasons().map(|reasons| reasons.bits())
            }
            answer => answer,
        };
        bits.map(ClockReasons).map_err(self.failed("nvmlDeviceGetCurrentClocksEventReasons"))
    }

    fn power_instant(&self) -> Result<Watts, GpuError> {
        const CALL: &str = "nvmlDeviceGetFieldValues(POWER_INSTANT)";
        let answers = self.device.field_values_for(&[FieldId(NVML_FI_DEV_POWER_INSTANT)]);
        let answer = answers.map_err(self.failed(CALL))?.pop().unwrap_or(Err(NvmlError::NoData));
        let value = answer.and_then(|sample| sample.value).map_err(self.failed(CALL))?;
        #[expect(clippy::cast_precision_loss, reason = "milliwatts of a board are far below 2^53")]
        let milliwatts = match value {
            SampleValue::U32(mw) => f64::from(mw),
            SampleValue::U64(mw) => mw as f64,
            SampleValue::I64(mw) => mw as f64,
            SampleValue::F64(mw) => mw,
        };
        // A live board draws something: a driver that answers 0 here has no such sensor.
        if milliwatts > 0.0 {
            Ok(watts(milliwatts))
        } else {
            Err(GpuError::NotSupported { gpu: self.label.clone(), call: CALL })
        }
    }

    fn power_usage(&self) -> Result<Watts, GpuError> {
        let milliwatts = self.device.power_usage().map_err(self.failed("nvmlDeviceGetPowerUsage"))?;
        Ok(watts(f64::from(milliwatts)))
    }

    /// Tries the sensors from the freshest down. Remembers a source that answered, and that there is none; an error
    /// that may pass decides nothing.
    fn find_power(&self) -> Result<Watts, GpuError> {
        let (source, answer) = match self.power_instant() {
            Err(error) if error.is_missing_sensor() => (PowerSource::Usage, self.power_usage()),
            answer => (PowerSource::Instant, answer),
        };
        match &answer {
            Ok(_) => drop(self.power_source.set(source)),
            Err(error) if error.is_missing_sensor() => drop(self.power_source.set(PowerSource::Missing)),
            Err(_) => {}
        }
        answer
    }
}

/// Sensors of one reading, some of which may fail.
#[derive(Default)]
struct Gathered {
    answers: usize,
    passing: Option<GpuError>,
}

impl Gathered {
    /// A sensor's value, or `None` for one that is missing or fails for the moment; an error ends the reading.
    fn take<T>(&mut self, answer: Result<T, GpuError>) -> Result<Option<T>, GpuError> {
        match answer {
            Ok(value) => {
                self.answers += 1;
                Ok(Some(value))
            }
            Err(error) if error.is_missing_sensor() => Ok(None),
            Err(error) if !error.ends_sampling() => {
                self.passing = Some(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl GpuSensors for NvmlSensors {
    fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn setup(&self) -> GpuSetup {
        GpuSetup {
            mig: self.device.mig_mode().ok().map(|mode| mode.current != 0),
            persistence: self.device.is_in_persistent_mode().ok(),
        }
    }

    fn supported_clocks(&self) -> Result<SupportedClocks, GpuError> {
        const CALL: &str = "nvmlDeviceGetSupportedMemoryClocks";
        let mut levels = Vec::new();
        for memory in self.device.supported_memory_clocks().map_err(self.failed(CALL))? {
            match raw::supported_core_clocks(&self.device, memory) {
                Ok(core) => levels.push(MemoryLevel {
                    memory: Mhz(memory),
                    core: core.into_iter().filter(|clock| *clock > 0).map(Mhz).collect(),
                }),
                Err(error) => match self.failed("nvmlDeviceGetSupportedGraphicsClocks")(error) {
                    error if error.ends_sampling() => return Err(error),
                    error => tracing::warn!(memory_mhz = memory, %error, "memory clock left out"),
                },
            }
        }
        SupportedClocks::new(levels)
            .ok_or_else(|| GpuError::NotSupported { gpu: self.label.clone(), call: CALL })
    }

    fn reading(&self) -> Result<GpuReading, GpuError> {
        let mut gathered = Gathered::default();
        let reading = GpuReading {
            core_clock: gathered.take(self.core_clock())?,
            memory_clock: gathered.take(self.clock(Clock::Memory))?,
            power: gathered.take(self.power())?,
            utilization_percent: gathered.take(self.utilization())?,
            temperature_c: gathered.take(self.temperature())?,
            reasons: gathered.take(self.reasons())?,
        };
        match gathered.passing {
            Some(error) if gathered.answers == 0 => Err(error),
            _ => Ok(reading),
        }
    }

    fn power(&self) -> Result<Watts, GpuError> {
        match self.power_source.get() {
            None => self.find_power(),
            Some(PowerSource::Instant) => self.power_instant(),
            Some(PowerSource::Usage) => self.power_usage(),
            Some(PowerSource::Missing) => {
                Err(GpuError::NotSupported { gpu: self.label.clone(), call: "nvmlDeviceGetPowerUsage" })
            }
        }
    }

    fn core_clock(&self) -> Result<Mhz, GpuError> {
        self.clock(Clock::SM).or_else(|_| self.clock(Clock::Graphics))
    }

    fn utilization(&self) -> Result<f64, GpuError> {
        let rates = self.device.utilization_rates().map_err(self.failed("nvmlDeviceGetUtilizationRates"))?;
        Ok(f64::from(rates.gpu))
    }

    fn temperature(&self) -> Result<f64, GpuError> {
        let celsius = self.device.temperature(TemperatureSensor::Gpu);
        celsius.map(f64::from).map_err(self.failed("nvmlDeviceGetTemperature"))
    }

    fn memory_clock(&self) -> Result<Mhz, GpuError> {
        self.clock(Clock::Memory)
    }

    fn energy(&self) -> Result<Millijoules, GpuError> {
        const CALL: &str = "nvmlDeviceGetTotalEnergyConsumption";
        self.device.total_energy_consumption().map(Millijoules).map_err(self.failed(CALL))
    }
}

/// The clock controls of one GPU.
#[derive(Debug)]
pub struct NvmlClocks {
    device: Device<'static>,
    info: GpuInfo,
    label: String,
}

impl GpuClocks for NvmlClocks {
    fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn lock_core(&mut self, min: Mhz, max: Mhz) -> Result<(), GpuError> {
        let range = GpuLockedClocksSetting::Numeric { min_clock_mhz: min.0, max_clock_mhz: max.0 };
        self.device.set_gpu_locked_clocks(range).map_err(|error| {
            call_failed(&self.label, "nvmlDeviceSetGpuLockedClocks", &format!("{min} to {max}"), error)
        })
    }

    fn lock_memory(&mut self, min: Mhz, max: Mhz) -> Result<(), GpuError> {
        self.device.set_mem_locked_clocks(min.0, max.0).map_err(|error| {
            call_failed(&self.label, "nvmlDeviceSetMemoryLockedClocks", &format!("{min} to {max}"), error)
        })
    }

    fn reset_core(&mut self) -> Result<(), GpuError> {
        let reset = self.device.reset_gpu_locked_clocks();
        reset.map_err(|error| call_failed(&self.label, "nvmlDeviceResetGpuLockedClocks", "", error))
    }

    fn reset_memory(&mut self) -> Result<(), GpuError> {
        let reset = self.device.reset_mem_locked_clocks();
        reset.map_err(|error| call_failed(&self.label, "nvmlDeviceResetMemoryLockedClocks", "", error))
    }
}
