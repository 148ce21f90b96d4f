//! `agft guardian`: what the daemon starts beside itself.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tracing::level_filters::LevelFilter;

use super::{Cli, Exit, logging};
use crate::guardian::process::{Ward, run as guard};

/// Options of `guardian`. Not for people.
#[derive(Debug, Args)]
pub struct GuardianArgs {
    /// Process id of the controller
    #[arg(long)]
    pub controller: u32,
    /// UUID of a GPU to watch over
    #[arg(long = "gpu", required = true)]
    pub gpus: Vec<String>,
    /// Of these, a GPU whose performance state is forced
    #[arg(long = "forced-gpu")]
    pub forced: Vec<String>,
    /// Directory of locks and journals
    #[arg(long)]
    pub runtime_dir: PathBuf,
    /// Silence of the controller after which the clocks are given back, in milliseconds
    #[arg(long)]
    pub(crate) silence_ms: u64,
}

/// Guards until the controller's end or a signal.
pub(super) fn run(args: &GuardianArgs, cli: &Cli) -> Exit {
    // To the console only: the log file, which is renamed when it is full, is the controller's.
    let _log = logging::start(LevelFilter::INFO, cli.log_format, None);
    let ward = Ward {
        controller: args.controller,
        gpus: args.gpus.clone(),
        forced: args.forced.clone(),
        runtime_dir: args.runtime_dir.clone(),
        config: cli.config.clone(),
        silence: Duration::from_millis(args.silence_ms),
    };
    match guard(&ward) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            tracing::error!(%error, "guardian ends");
            Exit::Failure
        }
    }
}
