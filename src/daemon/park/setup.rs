//! From the section `park` of a configuration to what a run is made of, at its start and when the file is read again.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::activity::Ports;
use super::hooks::{self, FanHooks, Programs};
use crate::config::{Park, Source};
use crate::connections::ConnectionError;
use crate::gpu::GpuError;
use crate::store::{Untrusted, trusted_path};

/// Why a run cannot be made of a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("park.ports: {0}")]
    Connections(#[from] ConnectionError),
    #[error("{key}: {program} is not started by root: {source}")]
    Program { key: &'static str, program: String, source: Untrusted },
    #[error("fan thread: {0}")]
    Fans(#[source] io::Error),
    #[error(
        "park.lever is {lever}, and {gpu} has one memory clock only; set park.lever: auto or core, or leave the GPU out of \
         park.gpus"
    )]
    NoMemoryClock { lever: String, gpu: String },
    #[error(
        "park.lever: {gpu} is parked by performance state in this run; start agft park again for another lever"
    )]
    Pstate { gpu: String },
    #[error("{gpu} cannot be parked: the driver lists no clocks; leave it out of park.gpus")]
    NoClocksListed { gpu: String },
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// The ports to watch, if connections are a source of activity.
pub(crate) fn ports(park: &Park) -> Result<Option<Ports>, SetupError> {
    if !park.sources.contains(&Source::Connections) {
        return Ok(None);
    }
    let ports = Ports::watch(&park.ports, Duration::from_millis(park.active_poll_ms))?;
    tracing::info!(ports = ?park.ports, from = %ports.source(), "connections are watched");
    Ok(Some(ports))
}

/// Who switches the fans; nobody if there is nothing to run. Root starts no program that others could have written.
pub(crate) fn fan_hooks(park: &Park) -> Result<Option<FanHooks>, SetupError> {
    check_fan_programs(park)?;
    if park.fan_on.is_empty() && park.fan_off.is_empty() {
        return Ok(None);
    }
    let programs = Programs {
        on: park.fan_on.clone(),
        off: park.fan_off.clone(),
        timeout: Duration::from_secs_f64(park.fan_timeout_s.0),
    };
    hooks::spawn(programs).map(Some).map_err(SetupError::Fans)
}

/// May root start the programs?
pub(crate) fn check_fan_programs(park: &Park) -> Result<(), SetupError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for (key, argv) in [("park.fan_on", &park.fan_on), ("park.fan_off", &park.fan_off)] {
        if let Some(program) = argv.first() {
            trusted_path(Path::new(program)).map_err(|source| SetupError::Program {
                key,
                program: program.clone(),
                source,
            })?;
        }
    }
    Ok(())
}
