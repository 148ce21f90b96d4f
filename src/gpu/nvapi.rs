//! Performance states through NVAPI: the only file that names `libnvidia-api.so.1`.
//!
//! Boards before Volta lock no clocks through NVML, and can be sent to a low performance state by NVAPI instead. The functions
//! are undocumented and asked for by number; their form is that of the free tools that use them. A forced state outlives its
//! process like a lock, and is given back by forcing [`BY_DRIVER`].
#![cfg_attr(feature = "nvapi", expect(unsafe_code, reason = "C calls of a library that no crate binds"))]

use std::sync::OnceLock;

use super::GpuError;

/// The number that gives the choice of the state back to the driver.
pub(crate) const BY_DRIVER: u32 = 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NvapiError {
    #[cfg(not(feature = "nvapi"))]
    #[error("this agft was built without the feature nvapi")]
    NotBuilt,
    #[cfg(feature = "nvapi")]
    #[error("{0}; install the package of the driver that has libnvidia-api.so.1 (Debian: libnvidia-api1)")]
    NoLibrary(String),
    #[error("libnvidia-api.so.1: {0}")]
    Unfit(String),
}

/// The GPUs that NVAPI knows.
#[derive(Debug, Clone)]
pub(crate) struct Nvapi {
    functions: ffi::Functions,
    gpus: Vec<(ffi::Handle, u32)>,
}

impl Nvapi {
    /// Loads and initialises the library, once; it stays until the process ends, which may have to give states back then.
    pub(crate) fn open() -> Result<&'static Self, NvapiError> {
        static NVAPI: OnceLock<Result<Nvapi, NvapiError>> = OnceLock::new();
        NVAPI
            .get_or_init(|| {
                let functions = ffi::load()?;
                let gpus = functions.gpus().map_err(NvapiError::Unfit)?;
                Ok(Self { functions, gpus })
            })
            .as_ref()
            .map_err(Clone::clone)
    }

    /// The GPU on this PCI bus. NVAPI does not tell domains apart: `None` unless there is exactly one.
    pub(crate) fn gpu(&'static self, bus: u32) -> Option<NvapiGpu> {
        let mut found = self.gpus.iter().filter(|(_, of)| *of == bus);
        let (handle, _) = found.next()?;
        found.next().is_none().then_some(NvapiGpu { functions: self.functions, handle: *handle })
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct NvapiGpu {
    functions: ffi::Functions,
    handle: ffi::Handle,
}

impl NvapiGpu {
    /// Forces a performance state, or [`BY_DRIVER`]; `gpu` is its name for humans.
    pub(crate) fn force(&self, state: u32, gpu: &str) -> Result<(), GpuError> {
        const CALL: &str = "NvAPI_GPU_SetForcePstate";
        const NOT_SUPPORTED: i32 = -104;
        const NO_PRIVILEGE: i32 = -137;
        let gpu = gpu.to_owned();
        match self.functions.force(self.handle, state) {
            0 => Ok(()),
            NOT_SUPPORTED => Err(GpuError::NotSupported { gpu, call: CALL }),
            NO_PRIVILEGE => Err(GpuError::NoPermission { gpu, call: CALL }),
            status => Err(GpuError::Failed { gpu, call: CALL, detail: self.functions.message(status) }),
        }
    }
}

#[cfg(feature = "nvapi")]
mod ffi {
    use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

    use libloading::Library;

    use super::NvapiError;

    /// `NvPhysicalGpuHandle`, as a number that may go to other threads.
    pub(super) type Handle = usize;
    type Raw = *mut c_void;
    /// NVAPI's `NVAPI_MAX_PHYSICAL_GPUS`.
    const MOST: usize = 64;

    #[derive(Debug, Clone, Copy)]
    pub(super) struct Functions {
        enumerate: unsafe extern "C" fn(*mut Raw, *mut c_uint) -> c_int,
        bus: unsafe extern "C" fn(Raw, *mut c_uint) -> c_int,
        force: unsafe extern "C" fn(Raw, c_uint, c_uint) -> c_int,
        message: Option<unsafe extern "C" fn(c_int, *mut c_char) -> c_int>,
    }

    pub(super) fn load() -> Result<Functions, NvapiError> {
        // SAFETY: the driver's own library; its constructors ask nothing of us.
        let load = |name| unsafe { Library::new(name) };
        let library = load("libnvidia-api.so.1").or_else(|first| load("libnvidia-api.so").map_err(|_| first));
        let library = library.map_err(|error| NvapiError::NoLibrary(error.to_string()))?;
        // Never unloaded: the process needs it to its last moment.
        let library: &'static Library = Box::leak(Box::new(library));
        type Query = unsafe extern "C" fn(c_uint) -> *const c_void;
        // SAFETY: this is the form of NVAPI's one exported function.
        let query = unsafe { library.get::<Query>(b"nvapi_QueryInterface\0") };
        let query = query.map_err(|error| NvapiError::Unfit(error.to_string()))?;
        let find = |name: &str, id| {
            // SAFETY: it takes any number, and gives a function or null.
            let found = unsafe { query(id) };
            if found.is_null() { Err(NvapiError::Unfit(format!("no function {name}"))) } else { Ok(found) }
        };
        let initialize = find("NvAPI_Initialize", 0x0150_e828)?;
        let enumerate = find("NvAPI_EnumPhysicalGPUs", 0xe5ac_921f)?;
        let bus = find("NvAPI_GPU_GetBusId", 0x1be0_b8e5)?;
        let force = find("NvAPI_GPU_SetForcePstate", 0x025b_fb10)?;
        let message = find("NvAPI_GetErrorMessage", 0x6c2d_048c).ok();
        // SAFETY: not null, and the functions of these numbers have these forms.
        let (initialize, functions) = unsafe {
            (
                std::mem::transmute::<*const c_void, unsafe extern "C" fn() -> c_int>(initialize),
                Functions {
                    enumerate: std::mem::transmute::<
                        *const c_void,
                        unsafe extern "C" fn(*mut Raw, *mut c_uint) -> c_int,
                    >(enumerate),
                    bus: std::mem::transmute::<*const c_void, unsafe extern "C" fn(Raw, *mut c_uint) -> c_int>(
                        bus,
                    ),
                    force: std::mem::transmute::<
                        *const c_void,
                        unsafe extern "C" fn(Raw, c_uint, c_uint) -> c_int,
                    >(force),
                    message:
                        message.map(|message| {
                            std::mem::transmute::<
                                *const c_void,
                                unsafe extern "C" fn(c_int, *mut c_char) -> c_int,
                            >(message)
                        }),
                },
            )
        };
        // SAFETY: it takes nothing.
        match unsafe { initialize() } {
            0 => Ok(functions),
            status => Err(NvapiError::Unfit(format!("NvAPI_Initialize: {}", functions.message(status)))),
        }
    }

    impl Functions {
        pub(super) fn gpus(&self) -> Result<Vec<(Handle, u32)>, String> {
            let mut raw: [Raw; MOST] = [std::ptr::null_mut(); MOST];
            let mut count: c_uint = 0;
            // SAFETY: room for as many handles as NVAPI ever gives.
            let status = unsafe { (self.enumerate)(raw.as_mut_ptr(), &raw mut count) };
            if status != 0 {
                return Err(format!("NvAPI_EnumPhysicalGPUs: {}", self.message(status)));
            }
            let with_bus = |handle: &Raw| {
                let mut bus: c_uint = 0;
                // SAFETY: a handle that NVAPI gave, and a valid place for the answer.
                let status = unsafe { (self.bus)(*handle, &raw mut bus) };
                (status == 0).then(|| (handle.expose_provenance(), bus))
            };
            Ok(raw.iter().take(count as usize).filter_map(with_bus).collect())
        }

        pub(super) fn force(&self, gpu: Handle, state: u32) -> i32 {
            // SAFETY: a handle that NVAPI gave; it checks the state.
            unsafe { (self.force)(std::ptr::with_exposed_provenance_mut(gpu), state, 0) }
        }

        pub(super) fn message(&self, status: i32) -> String {
            let mut text: [c_char; MOST] = [0; MOST];
            // SAFETY: a short string of NVAPI has 64 characters.
            let told = self.message.is_some_and(|message| unsafe { message(status, text.as_mut_ptr()) } == 0);
            text[MOST - 1] = 0;
            // SAFETY: it ends with a zero.
            let words = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
            if told && !words.is_empty() { format!("{words} ({status})") } else { format!("status {status}") }
        }
    }
}

#[cfg(not(feature = "nvapi"))]
mod ffi {
    use super::NvapiError;

    #[derive(Debug, Clone, Copy)]
    pub(super) enum Handle {}

    #[derive(Debug, Clone, Copy)]
    pub(super) enum Functions {}

    pub(super) fn load() -> Result<Functions, NvapiError> {
        Err(NvapiError::NotBuilt)
    }

    impl Functions {
        pub(super) fn gpus(&self) -> Result<Vec<(Handle, u32)>, String> {
            match *self {}
        }

        pub(super) fn force(&self, _: Handle, _: u32) -> i32 {
            match *self {}
        }

        pub(super) fn message(&self, _: i32) -> String {
            match *self {}
        }
    }
}
