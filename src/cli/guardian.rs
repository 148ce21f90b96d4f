//! `agft guardian`: what the daemon starts beside itself.

use tracing::level_filters::LevelFilter;

use super::{Cli, Exit, logging};
use crate::guardian::process::{Ward, run as guard};

/// Guards until the controller's end or a signal.
pub(super) fn run(ward: &Ward, cli: &Cli) -> Exit {
    // To the console only: the log file, which is renamed when it is full, is the controller's.
    let _log = logging::start(LevelFilter::INFO, cli.log_format, None);
    match guard(ward, &cli.config) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            tracing::error!(%error, "guardian ends");
            Exit::Failure
        }
    }
}
