//! `agft release`: gives the clocks back, whoever took them.

use super::{Cli, Exit, ReleaseArgs, exit_of, load_config, report_gpu_error};
use crate::gpu::lease::ClockLease;
use crate::gpu::nvml::NvmlHost;
use crate::gpu::{GpuError, GpuInfo, GpuSelector};
use crate::units::Mhz;

/// Releases the configured GPUs, or all of them.
#[must_use]
pub fn run(args: &ReleaseArgs, cli: &Cli) -> Exit {
    // Without a readable configuration every GPU is meant: this command must work when everything else is broken.
    let selectors = if args.all || !cli.config.exists() {
        None
    } else {
        match load_config(cli) {
            Ok(config) => Some(config.gpu.device_id),
            Err(exit) => return exit,
        }
    };
    let host = match NvmlHost::open() {
        Ok(host) => host,
        Err(error) => return report_gpu_error(&error),
    };
    let gpus = match targets(host, selectors) {
        Ok(gpus) => gpus,
        Err(error) => return report_gpu_error(&error),
    };
    let mut exit = Exit::Ok;
    for gpu in gpus {
        match release_one(host, &gpu) {
            Ok(()) => println!("{gpu}: clocks given back"),
            Err(error) => {
                eprintln!("agft: {error}");
                exit = exit_of(&error);
            }
        }
    }
    exit
}

fn targets(host: NvmlHost, selectors: Option<Vec<GpuSelector>>) -> Result<Vec<GpuInfo>, GpuError> {
    match selectors {
        None => host.list(),
        Some(selectors) => {
            use crate::gpu::GpuSensors;
            selectors.iter().map(|selector| Ok(host.sensors(selector)?.info().clone())).collect()
        }
    }
}

fn release_one(host: NvmlHost, gpu: &GpuInfo) -> Result<(), GpuError> {
    let clocks = host.clocks(&GpuSelector::Uuid(gpu.uuid.clone()))?;
    // Taking the lease resets the clocks; nothing is locked with it, so the lowest clock does not matter.
    ClockLease::take(vec![(Box::new(clocks), Mhz(0))]).map(drop)
}
